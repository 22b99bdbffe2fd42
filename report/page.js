"use strict";
// Draws the charts from the embedded JSON and makes the tables sort and filter. Text from files
// reaches the page as textContent, or escaped where Plotly reads markup.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("chart-data").textContent);
  const root = document.documentElement;
  const esc = (s) => String(s).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;")
    .replace(/[$]/g, "&#36;"); // two dollar signs are an equation to Plotly

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  // Okabe and Ito's colours, which colour-blind readers can tell apart; shapes say the state.
  const LIGHT = ["#0072B2", "#D55E00", "#007A5A", "#B0568E", "#8A6D00", "#56606a"];
  const DARK = ["#56B4E9", "#F0A050", "#2FC79A", "#E39AC8", "#F0E442", "#a5b0ba"];
  const SHAPES = { shipped: "star", reference: "diamond", measured: "circle", screened: "circle-open" };
  const palette = () => (root.dataset.theme === "dark" ? DARK : LIGHT);
  const number = (v) => (v === null || v === undefined ? "" : Number(v.toPrecision(4)).toString());
  const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"] };

  const layout = (more) => ({
    paper_bgcolor: colour("--ground"), plot_bgcolor: colour("--ground"),
    font: { color: colour("--text"), size: 13 }, margin: { l: 70, r: 20, t: 20, b: 55 },
    hoverlabel: { align: "left" }, ...more,
  });
  const axis = (more) => ({
    gridcolor: colour("--line"), zerolinecolor: colour("--quiet"), linecolor: colour("--line"),
    automargin: true, ...more,
  });

  // ── the trade-off ────────────────────────────────────────────────────────────────────────────
  const selectX = byId("axis-x"), selectY = byId("axis-y");
  const held = [];
  const titleOf = (a) => (a.unit ? `${a.title}, ${a.unit}` : a.title);
  const axisOf = (select) => data.axes[select.selectedIndex];

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
    selectX.selectedIndex = data.names.length > 1 ? first("speedup", "latency_p50_ms") : first("latency_p50_ms", "size_bytes");
    selectY.selectedIndex = first("change_points", "metrics.", "size_bytes", "latency_p99_ms");
  }

  function front(points, x, y) {
    if (x === y || x.lower === null || y.lower === null) return [];
    const cost = (p, a) => p.values[a.key][0] * (a.lower ? 1 : -1);
    const beats = (p, q) =>
      cost(p, x) <= cost(q, x) && cost(p, y) <= cost(q, y) && (cost(p, x) < cost(q, x) || cost(p, y) < cost(q, y));
    return points.filter((q) => !points.some((p) => beats(p, q))).sort((p, q) => cost(p, x) - cost(q, x));
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
    const said = (p, a) => {
      const [v, low, high] = p.values[a.key].map((value) => (value === null ? null : value * a.factor));
      return `${esc(titleOf(a))}: ${number(v)}` + (low === null || high === null ? "" : ` (${number(low)} … ${number(high)})`);
    };
    const traces = [];
    groups.forEach((name, g) => {
      const c = palette()[g % palette().length];
      const mine = both.filter((p) => groupOf(p) === g);
      const line = front(mine.filter((p) => p.kind === "measured" || p.kind === "shipped"), x, y);
      if (several && line.length > 1) traces.push(frontLine(line, x, y, c));
      for (const [kind, symbol] of Object.entries(SHAPES)) {
        const points = mine.filter((p) => p.kind === kind);
        if (!points.length) continue;
        traces.push({
          type: "scatter", mode: "markers", name: `${esc(name)}: ${kind}`, customdata: points.map((p) => data.points.indexOf(p)),
          x: points.map((p) => p.values[x.key][0] * x.factor), y: points.map((p) => p.values[y.key][0] * y.factor),
          error_x: error(points, x, c), error_y: error(points, y, c),
          marker: { symbol, color: c, size: kind === "shipped" ? 17 : 11, line: { width: 1.5, color: kind === "screened" ? c : colour("--text") } },
          text: points.map((p) => [`<b>${esc(p.label)}</b>`, `${p.kind}${p.mark ? ", " + esc(p.mark) : ""}`, said(p, x), said(p, y)].join("<br>")),
          hoverinfo: "text",
        });
      }
    });
    if (!several) {
      const line = front(both.filter((p) => p.kind === "measured" || p.kind === "shipped"), x, y);
      if (line.length > 1) traces.unshift(frontLine(line, x, y, colour("--quiet")));
    }
    const log = byId("log-x").checked && both.every((p) => p.values[x.key][0] > 0);
    const plot = byId("pareto");
    Plotly.react(plot, traces, layout({
      height: 520, hovermode: "closest", legend: { orientation: "h", y: -0.18 },
      xaxis: axis({ title: { text: esc(titleOf(x)) }, type: log ? "log" : "linear", rangemode: "normal" }),
      yaxis: axis({ title: { text: esc(titleOf(y)) } }),
    }), CONFIG);
    plot.removeAllListeners("plotly_click");
    plot.on("plotly_click", (event) => hold(event.points[0].customdata));
    const absent = data.points.filter((p) => !both.includes(p)).map((p) => p.label);
    byId("absent").textContent = absent.length ? `Not measured on these axes: ${absent.join("; ")}.` : "";
  }

  const frontLine = (line, x, y, c) => ({
    type: "scatter", mode: "lines", hoverinfo: "skip", name: "not beaten on both axes", showlegend: data.names.length === 1,
    x: line.map((p) => p.values[x.key][0] * x.factor), y: line.map((p) => p.values[y.key][0] * y.factor),
    line: { dash: "dash", width: 1.5, color: c },
  });

  function hold(index) {
    if (index === undefined) return;
    const at = held.indexOf(index);
    if (at >= 0) held.splice(at, 1);
    else { held.push(index); if (held.length > 2) held.shift(); }
    const box = byId("held");
    box.replaceChildren();
    box.classList.toggle("some", held.length > 0);
    if (!held.length) return;
    const make = (tag, said) => { const one = document.createElement(tag); one.textContent = said; return one; };
    const table = make("table", ""), head = document.createElement("tr");
    table.append(make("caption", "held"));
    head.append(make("th", ""), ...held.map((i) => make("th", data.points[i].label)));
    table.append(head);
    for (const a of data.axes) {
      const values = held.map((i) => data.points[i].values[a.key]);
      if (!values.some(Boolean)) continue;
      const row = document.createElement("tr");
      row.append(make("td", titleOf(a)), ...values.map((v) => make("td", !v ? "not measured" :
        number(v[0] * a.factor) + (v[1] === null || v[2] === null ? "" : ` (${number(v[1] * a.factor)} … ${number(v[2] * a.factor)})`))));
      table.append(row);
    }
    const wide = document.createElement("div");
    wide.className = "wide";
    wide.tabIndex = 0;
    wide.append(table);
    box.append(wide);
  }

  // ── steps and classes ────────────────────────────────────────────────────────────────────────
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

  function drawSteps(index) {
    const place = byId(`steps-${index}`), steps = data.steps[index];
    if (!place) return;
    // The ratio is to plain INT8, so that row is 1 by definition.
    const plain = steps.rows.map((s) => ({ ...s, ratio: s.ratio ?? (/plain INT8$/.test(s.label) ? 1 : null) }));
    const hasRatio = steps.rows.some((s) => s.ratio !== null && s.ratio !== undefined);
    const traces = [
      waterfall(steps.rows, "metric", steps.factor, steps.unit, steps.metric, "x", steps.lower),
      hasRatio ? waterfall(plain, "ratio", 100, "%", "of plain INT8", "x2", true) : null,
    ].filter(Boolean);
    if (!traces.length) { place.remove(); return; }
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
  }

  function drawClasses(index) {
    const place = byId(`classes-${index}`), classes = data.classes[index].slice(0, 40);
    if (!place) return;
    if (!classes.length) { place.remove(); return; }
    const at = classes.map((_, i) => i);
    const some = (sure) => {
      const mine = at.filter((i) => classes[i].significant === sure);
      const c = palette()[sure ? 1 : 0];
      return {
        type: "scatter", mode: "markers", name: sure ? "more than chance" : "cannot be told from none",
        x: mine.map((i) => classes[i].value), y: mine, marker: { color: c, size: 10, symbol: sure ? "x" : "circle" },
        error_x: {
          type: "data", symmetric: false, color: c, thickness: 1.4,
          array: mine.map((i) => (classes[i].high === null ? 0 : classes[i].high - classes[i].value)),
          arrayminus: mine.map((i) => (classes[i].low === null ? 0 : classes[i].value - classes[i].low)),
        },
        text: mine.map((i) => `<b>${esc(classes[i].label)}</b>, n = ${classes[i].n}<br>${number(classes[i].value)} points (${number(classes[i].low)} … ${number(classes[i].high)})`),
        hoverinfo: "text",
      };
    };
    const cut = data.classes[index].length > 40 ? `, the 40 worst of ${data.classes[index].length}` : "";
    Plotly.react(place, [some(true), some(false)].filter((t) => t.x.length), layout({
      height: 130 + 24 * classes.length, showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, margin: { l: 70, r: 20, t: 45, b: 55 },
      xaxis: axis({ title: { text: `change, points (95 % interval of each class alone${cut})` } }),
      yaxis: axis({ tickvals: at, ticktext: classes.map((c) => esc(c.label.length > 40 ? c.label.slice(0, 39) + "…" : c.label)), range: [classes.length - 0.4, -0.6], zeroline: false }),
    }), CONFIG);
  }

  function drawAll() {
    if (!window.Plotly) return;
    drawTradeOff();
    data.names.forEach((_, index) => { drawSteps(index); drawClasses(index); });
  }

  // ── tables ───────────────────────────────────────────────────────────────────────────────────
  function sortable(table) {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
    const key = (row, column) => {
      const cell = row.cells[column];
      if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
      return "field" in cell.dataset ? null : cell.textContent;
    };
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      // What was not measured stays last in both directions.
      rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) :
        down * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)))));
      body.append(...rows.map(([, row]) => row));
    }));
  }
  document.querySelectorAll("table.sorts").forEach(sortable);

  const rows = [...document.querySelector("table.rows").tBodies[0].rows];
  function filter() {
    const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const row of rows) {
      const said = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => said.includes(word));
      left += row.hidden ? 0 : 1;
    }
    byId("count").textContent = words.length ? `${left} of ${rows.length} rows` : `${rows.length} rows`;
  }
  byId("filter").addEventListener("input", filter);
  filter();

  // ── theme, raw data ──────────────────────────────────────────────────────────────────────────
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  root.dataset.theme = dark.matches ? "dark" : "light";
  const themed = (name) => { root.dataset.theme = name; drawAll(); };
  dark.addEventListener("change", () => themed(dark.matches ? "dark" : "light"));
  byId("theme").addEventListener("click", () => themed(root.dataset.theme === "dark" ? "light" : "dark"));
  document.querySelectorAll("button.download").forEach((button) => button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([byId(button.dataset.raw).textContent], { type: "application/json" }));
    link.download = button.dataset.name;
    link.click();
    URL.revokeObjectURL(link.href);
  }));

  // ── Plotly, unpacked ─────────────────────────────────────────────────────────────────────────
  async function start() {
    const packed = byId("plotly");
    if (!packed) return;
    const bytes = Uint8Array.from(atob(packed.textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    fillAxes();
    for (const id of ["axis-x", "axis-y", "log-x"]) byId(id).addEventListener("change", drawTradeOff);
    drawAll();
    root.dataset.drawn = "yes";
  }
  start().catch((error) => {
    root.dataset.drawn = "no";
    const place = byId("pareto");
    if (place) place.textContent = `The charts could not be drawn here (${error}); the tables hold every figure.`;
  });
})();
