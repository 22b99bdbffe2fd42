// The trade-off chart: axes to choose, points to hold. One of the pieces of the page's script, which
// page.js begins; they share its names.

// ── the trade-off ──────────────────────────────────────────────────────────────────────────────
const selectX = byId("axis-x"), selectY = byId("axis-y");
const held = [];
const titleOf = (a) => (a.unit ? `${a.title}, ${a.unit}` : a.title);
const axisOf = (select) => data.axes[select.selectedIndex];
// What may stand on the dashed line: engines whose accuracy was measured in full.
const ON_LINE = ["measured", "shipped", "front", "undecided", "baseline"];

function fillAxes() {
  for (const select of [selectX, selectY]) {
    for (const a of data.axes) {
      const option = document.createElement("option");
      option.textContent = titleOf(a);
      select.append(option);
    }
  }
  const first = (...keys) => {
    for (const key of keys) {
      const at = data.axes.findIndex((a) => a.key.startsWith(key));
      if (at >= 0) return at;
    }
    return 0;
  };
  // Milliseconds of separate runs do not stand beside each other; ratios to the reference do.
  selectX.selectedIndex = data.ratios ? first("speedup", "latency_p50_ms") : first("latency_p50_ms", "size_bytes");
  selectY.selectedIndex = first("change_points", "metrics.", "size_bytes", "latency_p99_ms");
  const values = data.points.map((p) => p.values[axisOf(selectX).key]).filter(Boolean).map((v) => v[0]);
  byId("log-x").checked = values.length > 1 && Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) >= 5;
}

// From the least to the largest end of what was measured in full: an engine screened on a few samples
// has an interval that would squeeze all others, and its own may run out of the picture.
function range(points, a, log) {
  const ends = points.flatMap((p) => {
    const [v, low, high] = p.values[a.key].map((value) => (value === null ? null : value * a.factor));
    return p.kind === "screened" ? [v] : [low ?? v, high ?? v, v];
  }).filter((v) => !log || v > 0).map((v) => (log ? Math.log10(v) : v));
  if (!ends.length) return undefined;
  const low = Math.min(...ends), high = Math.max(...ends), room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low - room, high + room];
}

function front(points, x, y) {
  if (x === y || x.lower === null || y.lower === null) return [];
  const cost = (p, a) => p.values[a.key][0] * (a.lower ? 1 : -1);
  const beats = (p, q) =>
    cost(p, x) <= cost(q, x) && cost(p, y) <= cost(q, y) && (cost(p, x) < cost(q, x) || cost(p, y) < cost(q, y));
  return points.filter((q) => !points.some((p) => beats(p, q))).sort((p, q) => cost(p, x) - cost(q, x));
}

// Plotly's own labels of a logarithmic axis leave the power of ten out ("7" for 0.7).
function logTicks([low, high]) {
  const found = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power += 1) {
    for (const step of high - low > 1.2 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]) {
      const at = Math.log10(step) + power;
      if (at >= low && at <= high) found.push(Number((step * 10 ** power).toPrecision(2)));
    }
  }
  return found.length ? { tickmode: "array", tickvals: found, ticktext: found.map(number) } : {};
}

function drawTradeOff() {
  const x = axisOf(selectX), y = axisOf(selectY);
  const both = data.points.filter((p) => p.values[x.key] && p.values[y.key]);
  const several = data.names.length > 1;
  const groups = several ? data.names : [...new Set(data.points.map((p) => p.runtime))];
  const groupOf = (p) => (several ? p.bundle : groups.indexOf(p.runtime));
  const error = (points, a, c) => ({
    type: "data", symmetric: false, visible: true, thickness: 1.2, width: 3, color: c,
    array: points.map((p) => { const [v, , high] = p.values[a.key]; return high === null ? 0 : Math.max(0, high - v) * a.factor; }),
    arrayminus: points.map((p) => { const [v, low] = p.values[a.key]; return low === null ? 0 : Math.max(0, v - low) * a.factor; }),
  });
  const said = (p, a) => `${esc(titleOf(a))}: ${esc(figure(p.values[a.key], a))}`;
  const about = (p) => [
    `<b>${esc(p.label)}</b>`, `${WORDS[p.kind]}${p.mark ? ", " + esc(p.mark) : ""}`, said(p, x), said(p, y),
    ...(p.recipe ? [esc(p.recipe)] : []), ...p.front.map(esc),
  ].join("<br>");
  const traces = [];
  groups.forEach((name, g) => {
    const c = palette()[g % palette().length];
    const mine = both.filter((p) => groupOf(p) === g);
    if (several) traces.push(...frontLine(front(mine.filter((p) => ON_LINE.includes(p.kind)), x, y), x, y, c));
    for (const [kind, symbol] of Object.entries(SHAPES)) {
      const points = mine.filter((p) => p.kind === kind);
      if (!points.length) continue;
      traces.push({
        type: "scatter", mode: "markers", name: `${esc(name)}: ${WORDS[kind]}`, customdata: points.map((p) => data.points.indexOf(p)),
        x: points.map((p) => p.values[x.key][0] * x.factor), y: points.map((p) => p.values[y.key][0] * y.factor),
        error_x: error(points, x, c), error_y: error(points, y, c),
        marker: { symbol, color: c, size: SIZES[kind] ?? 10, opacity: kind === "dominated" ? 0.55 : 1, line: { width: 1.5, color: symbol.endsWith("-open") ? c : colour("--text") } },
        text: points.map(about), hoverinfo: "text",
      });
    }
  });
  if (!several) traces.unshift(...frontLine(front(both.filter((p) => ON_LINE.includes(p.kind)), x, y), x, y, colour("--quiet")));
  // What is held has a ring, so that the two columns below are found again in the chart.
  const ringed = held.map((i) => data.points[i]).filter((p) => both.includes(p));
  if (ringed.length) {
    traces.push({
      type: "scatter", mode: "markers", name: "held", hoverinfo: "skip", showlegend: false,
      x: ringed.map((p) => p.values[x.key][0] * x.factor), y: ringed.map((p) => p.values[y.key][0] * y.factor),
      marker: { symbol: "circle-open", size: 24, color: colour("--accent"), line: { width: 2.5, color: colour("--accent") } },
    });
  }
  const log = byId("log-x").checked && both.every((p) => p.values[x.key][0] > 0);
  const across = range(both, x, log), plot = byId("pareto");
  Plotly.react(plot, traces, layout({
    height: 540, hovermode: "closest", legend: { orientation: "h", y: -0.18 },
    xaxis: axis({ title: { text: esc(titleOf(x)) }, type: log ? "log" : "linear", range: across, ...(log && across ? logTicks(across) : {}) }),
    yaxis: axis({ title: { text: esc(titleOf(y)) }, range: range(both, y, false) }),
  }), CONFIG);
  plot.removeAllListeners("plotly_click");
  plot.on("plotly_click", (event) => hold(event.points[0].customdata));
  const absent = data.points.filter((p) => !both.includes(p)).map((p) => p.label);
  const some = absent.length > 12 ? [...absent.slice(0, 12), `and ${absent.length - 12} more`] : absent;
  byId("absent").textContent = absent.length ? `Not measured on these axes: ${some.join("; ")}.` : "";
}

const frontLine = (line, x, y, c) => (line.length < 2 ? [] : [{
  type: "scatter", mode: "lines", hoverinfo: "skip", name: "not beaten on both axes", showlegend: data.names.length === 1,
  x: line.map((p) => p.values[x.key][0] * x.factor), y: line.map((p) => p.values[y.key][0] * y.factor),
  line: { dash: "dash", width: 1.5, color: c },
}]);

function figure(values, a) {
  const [v, low, high] = values.map((value) => (value === null ? null : value * a.factor));
  return number(v) + (low === null || high === null ? "" : ` (${number(low)} … ${number(high)})`);
}

// ── two points side by side ────────────────────────────────────────────────────────────────────
function hold(index) {
  if (index === undefined) return;
  const at = held.indexOf(index);
  if (at >= 0) held.splice(at, 1);
  else { held.push(index); if (held.length > 2) held.shift(); }
  document.querySelectorAll("button.hold").forEach((button) =>
    button.setAttribute("aria-pressed", String(held.includes(Number(button.dataset.point)))));
  drawHeld();
  if (window.Plotly && selectX) drawTradeOff();
}

// What two intervals show: 95 % intervals that overlap tell two engines not apart (the other way round
// they do, and cautiously so).
function apart(values) {
  const [a, b] = values;
  if (values.length < 2 || !a || !b) return "";
  if ([a[1], a[2], b[1], b[2]].includes(null)) return a[0] === b[0] ? "equal" : "";
  return a[1] > b[2] || b[1] > a[2] ? "told apart" : "intervals overlap";
}

function drawHeld() {
  const box = byId("held");
  box.replaceChildren();
  box.classList.toggle("some", held.length > 0);
  if (!held.length) return;
  const make = (tag, said, more = {}) => Object.assign(document.createElement(tag), { textContent: said, ...more });
  const line = (...cells) => { const row = document.createElement("tr"); row.append(...cells); return row; };
  const table = make("table", "", { className: "held-table" }), two = held.length === 2;
  const points = held.map((i) => data.points[i]);
  table.append(make("caption", two ? "Held, side by side" : "Held; press another point to set it beside this one"));
  table.append(line(make("td", ""), ...points.map((p) => make("th", p.label, { scope: "col" })), ...(two ? [make("th", "by their intervals", { scope: "col" })] : [])));
  const words = (name, get) => {
    if (points.some((p) => get(p))) table.append(line(make("th", name, { scope: "row" }), ...points.map((p) => make("td", get(p), { className: "words" })), ...(two ? [make("td", "")] : [])));
  };
  words("state", (p) => WORDS[p.kind]);
  words("recipe", (p) => p.recipe);
  words("against others", (p) => (p.kind === "front" ? "" : p.front.join("; ")));
  for (const a of data.axes) {
    const values = points.map((p) => p.values[a.key]);
    if (!values.some(Boolean)) continue;
    table.append(line(make("th", titleOf(a), { scope: "row" }),
      ...values.map((v) => make("td", v ? figure(v, a) : "not measured")), ...(two ? [make("td", a.bound ? "" : apart(values))] : [])));
  }
  const wide = make("div", "", { className: "wide", tabIndex: 0 });
  wide.setAttribute("role", "region");
  wide.setAttribute("aria-label", "held points");
  wide.append(table);
  box.append(wide);
}
document.querySelectorAll("button.hold").forEach((button) =>
  button.addEventListener("click", () => hold(Number(button.dataset.point))));
