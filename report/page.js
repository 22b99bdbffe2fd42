// Draws the charts from the embedded JSON and makes the tables sort and filter. Text from files
// reaches the page as textContent, or escaped where Plotly reads markup. The pieces of this script
// (page_trade_off.js, page_details.js) stand where the line "pieces" says.
"use strict";
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
  const SHAPES = { dominated: "circle", screened: "circle-open", measured: "circle", undecided: "triangle-up-open", baseline: "square", front: "triangle-up", reference: "diamond", shipped: "star" };
  const SIZES = { shipped: 17, front: 14, undecided: 13, reference: 12, baseline: 12, dominated: 8 };
  const WORDS = { shipped: "shipped", reference: "reference", measured: "measured", screened: "screened", baseline: "baseline", front: "on the front", undecided: "cannot be told from the front", dominated: "dominated" };
  const palette = () => (root.dataset.theme === "dark" ? DARK : LIGHT);
  const number = (v) => (v === null || v === undefined ? "" : Number(v.toPrecision(4)).toString().replace("-", "−"));
  const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"] };

  const layout = (more) => ({
    paper_bgcolor: colour("--ground"), plot_bgcolor: colour("--ground"),
    font: { color: colour("--text"), size: 13 }, margin: { l: 70, r: 20, t: 20, b: 55 },
    hoverlabel: { align: "left", bgcolor: colour("--raised"), bordercolor: colour("--quiet"), font: { color: colour("--text") } }, ...more,
  });
  const axis = (more) => ({
    gridcolor: colour("--line"), zerolinecolor: colour("--quiet"), linecolor: colour("--line"),
    automargin: true, ...more,
  });

  /* pieces */

  function drawAll() {
    if (!window.Plotly) return;
    drawTradeOff();
    drawDetails();
  }

  // ── tables ───────────────────────────────────────────────────────────────────────────────────
  function sortable(table) {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
    const key = (row, column) => {
      const cell = row.cells[column];
      if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
      return "field" in cell.dataset ? null : cell.textContent;
    };
    heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      // What was not measured stays last in both directions.
      rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) :
        down * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }))));
      body.append(...rows.map(([, row]) => row));
    }));
  }
  document.querySelectorAll("table.sorts").forEach(sortable);

  const rows = [...document.querySelector("table.rows").tBodies[0].rows];
  const words = rows.map((row) => row.textContent.toLowerCase());
  function filter() {
    const wanted = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    rows.forEach((row, index) => {
      row.hidden = !wanted.every((word) => words[index].includes(word));
      left += row.hidden ? 0 : 1;
    });
    byId("count").textContent = wanted.length ? `${left} of ${rows.length} rows` : `${rows.length} rows`;
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
    const letters = atob(packed.textContent), bytes = new Uint8Array(letters.length);
    // A plain loop: Uint8Array.from with a function takes a third of a second for 1.5 MB.
    for (let i = 0; i < letters.length; i += 1) bytes[i] = letters.charCodeAt(i);
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
