// The charts of one result: steps, classes and groups, layers, confidences. One of the pieces of the
// page's script, which page.js begins; they share its names.

// ── steps ──────────────────────────────────────────────────────────────────────────────────────
function waterfall(steps, key, factor, unit, title, xaxis, lower) {
  // What a step did not measure is left out; the next one is set against the last that did.
  const rows = steps.filter((s) => s[key] !== null && s[key] !== undefined);
  if (rows.length < 2) return null;
  const values = rows.map((s) => s[key] * factor);
  return {
    type: "waterfall", name: title, xaxis, x: values.map((v, i) => (i === 0 ? v : v - values[i - 1])),
    y: rows.map((s) => esc(s.label)), orientation: "h", measure: rows.map((_, i) => (i === 0 ? "absolute" : "relative")),
    text: values.map((v, i) => `${number(v)} ${unit}` + (i ? ` (${v >= values[i - 1] ? "+" : "−"}${number(Math.abs(v - values[i - 1]))})` : "")),
    textposition: "outside", hoverinfo: "y+text", cliponaxis: false, connector: { line: { color: colour("--quiet"), width: 1 } },
    increasing: { marker: { color: palette()[lower ? 1 : 0] } }, decreasing: { marker: { color: palette()[lower ? 0 : 1] } },
    totals: { marker: { color: colour("--quiet") } },
  };
}

function drawSteps(place, steps) {
  // The ratio is to plain INT8, so that row is 1 by definition.
  const plain = steps.rows.map((s) => ({ ...s, ratio: s.ratio ?? (/plain INT8$/.test(s.label) ? 1 : null) }));
  const hasRatio = steps.rows.some((s) => s.ratio !== null && s.ratio !== undefined);
  const traces = [
    waterfall(steps.rows, "metric", steps.factor, steps.unit, steps.metric, "x", steps.lower),
    hasRatio ? waterfall(plain, "ratio", 100, "%", "of plain INT8", "x2", true) : null,
  ].filter(Boolean);
  if (!traces.length) return false;
  const values = steps.rows.map((s) => s.metric).filter((v) => v !== null && v !== undefined).map((v) => v * steps.factor);
  // A metric's steps are small beside its height: the axis begins near them, and says so.
  const low = Math.min(...values), high = Math.max(...values), room = (high - low || Math.abs(high) || 1) * 0.6;
  const two = traces.length === 2;
  Plotly.react(place, traces, layout({
    height: 110 + 42 * steps.rows.length, showlegend: false,
    xaxis: axis({ title: { text: `${esc(steps.metric)}${steps.unit && ", " + steps.unit} (axis does not begin at 0)` }, range: [low - room, high + room], domain: two ? [0, 0.47] : [0, 1] }),
    xaxis2: axis({ title: { text: "latency, % of plain INT8" }, range: [0, 150], domain: [0.53, 1] }),
    yaxis: axis({ type: "category", autorange: "reversed", categoryorder: "array", categoryarray: steps.rows.map((s) => esc(s.label)) }),
  }), CONFIG);
  return true;
}

// ── classes and groups: a point with its interval each, worst first ────────────────────────────
const MOST = 40;
const SIGNS = ["circle", "x", "diamond", "square"];

function drawIntervals(place, all) {
  const rows = all.rows.slice(0, MOST);
  if (!rows.length) return false;
  const at = rows.map((_, i) => i);
  const traces = all.states.map((state, s) => {
    const mine = at.filter((i) => rows[i].state === state);
    const c = palette()[s % palette().length];
    return {
      type: "scatter", mode: "markers", name: esc(state), x: mine.map((i) => rows[i].value), y: mine,
      marker: { color: c, size: 10, symbol: SIGNS[s % SIGNS.length] },
      error_x: {
        type: "data", symmetric: false, color: c, thickness: 1.4,
        array: mine.map((i) => (rows[i].high === null ? 0 : rows[i].high - rows[i].value)),
        arrayminus: mine.map((i) => (rows[i].low === null ? 0 : rows[i].value - rows[i].low)),
      },
      text: mine.map((i) => `<b>${esc(rows[i].label)}</b>, n = ${rows[i].n}<br>${number(rows[i].value)} points (${number(rows[i].low)} … ${number(rows[i].high)})<br>${esc(state)}`),
      hoverinfo: "text",
    };
  }).filter((t) => t.x.length);
  const cut = all.rows.length > MOST ? `, the ${MOST} worst of ${all.rows.length}` : "";
  const limit = all.limit === null ? [] : [{ type: "line", x0: all.limit, x1: all.limit, yref: "paper", y0: 0, y1: 1, line: { dash: "dot", color: colour("--bad"), width: 2 } }];
  Plotly.react(place, traces, layout({
    height: 130 + 24 * rows.length, showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, margin: { l: 70, r: 20, t: 45, b: 55 }, shapes: limit,
    xaxis: axis({ title: { text: esc(all.title) + cut } }),
    yaxis: axis({ tickvals: at, ticktext: rows.map((c) => esc(c.label.length > 40 ? c.label.slice(0, 39) + "…" : c.label)), range: [rows.length - 0.4, -0.6], zeroline: false }),
  }), CONFIG);
  return true;
}

// ── layers: time by layer, the type its kernel computed in ─────────────────────────────────────
function drawLayers(place, layers) {
  if (!layers.length) return false;
  const types = [...new Set(layers.map((l) => l.type))].sort();
  const hatch = ["", "/", "x", ".", "\\", "+"];
  const traces = types.map((type, t) => [type, t, layers.map((l, i) => [l, i + 1]).filter(([l]) => l.type === type)]).map(([type, t, mine]) => ({
    type: "bar", name: esc(type), x: mine.map(([, i]) => i), y: mine.map(([l]) => l.us), width: 0.85,
    marker: { color: palette()[t % palette().length], pattern: { shape: hatch[t % hatch.length], fillmode: "overlay", fgcolor: colour("--ground"), size: 6, solidity: 0.25 } },
    text: mine.map(([l]) => `<b>${esc(l.name)}</b><br>${esc(l.kind)}, ${esc(type)}<br>${number(l.us)} µs`), textposition: "none", hoverinfo: "text",
  }));
  Plotly.react(place, traces, layout({
    height: 300, barmode: "overlay", bargap: 0.15, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, margin: { l: 70, r: 20, t: 45, b: 45 }, showlegend: true,
    xaxis: axis({ title: { text: "layers, in the order they run" }, zeroline: false }), yaxis: axis({ title: { text: "µs" } }),
  }), CONFIG);
  return true;
}

// ── confidences: what was promised against what was right ──────────────────────────────────────
function drawReliability(place, lines) {
  if (!lines.some((l) => l.bins.length)) return false;
  const traces = [{
    type: "scatter", mode: "lines", name: "as confident as right", x: [0, 1], y: [0, 1], hoverinfo: "skip",
    line: { dash: "dot", color: colour("--quiet"), width: 1.5 },
  }, ...lines.map((l, i) => ({
    type: "scatter", mode: "lines+markers", name: esc(l.label), x: l.bins.map((b) => b.confidence), y: l.bins.map((b) => b.accuracy),
    marker: { symbol: SIGNS[i], size: 9, color: palette()[i] }, line: { color: palette()[i], width: 1.5 },
    error_y: {
      type: "data", symmetric: false, color: palette()[i], thickness: 1, visible: l.bins.some((b) => b.low !== null),
      array: l.bins.map((b) => (b.high === null ? 0 : b.high - b.accuracy)), arrayminus: l.bins.map((b) => (b.low === null ? 0 : b.accuracy - b.low)),
    },
    text: l.bins.map((b) => `${esc(l.label)}, n = ${b.n}<br>confidence ${number(b.confidence)}<br>right ${number(b.accuracy)}`), hoverinfo: "text",
  }))];
  Plotly.react(place, traces, layout({
    height: 420, legend: { orientation: "h", y: -0.2 }, xaxis: axis({ title: { text: "mean confidence of a bin" }, range: [0, 1.02], constrain: "domain" }),
    yaxis: axis({ title: { text: "share that was right" }, range: [0, 1.02], scaleanchor: "x", constrain: "domain" }),
  }), CONFIG);
  return true;
}

const DRAW = { steps: drawSteps, classes: drawIntervals, groups: drawIntervals, layers: drawLayers, reliability: drawReliability };

// A chart in a closed part of the page has no width yet: it is drawn when its part is opened.
function drawDetails(within = document) {
  within.querySelectorAll("div.chart[data-chart]").forEach((place) => {
    const closed = place.closest("details:not([open])");
    if (closed) return;
    const drawn = DRAW[place.dataset.chart](place, data.details[Number(place.dataset.detail)][place.dataset.chart]);
    if (!drawn) place.remove();
  });
}
document.querySelectorAll("details.point").forEach((part) => part.addEventListener("toggle", () => {
  if (part.open && window.Plotly) drawDetails(part);
}));
