"""The trade-off page: one HTML file that holds its charts, its tables and the raw JSON.

It opens from disk and asks no network for anything: its policy (CSP) allows the two scripts it was
written with, by their hashes, and nothing else. Plotly's script comes from the installed `plotly`
package, compressed; without that package the page is written without charts, and says so.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..artifact.machine import isa_name
from . import page_table as tables
from .compare_table import comparison_sections
from .page_data import Shown, chart_data
from .page_details import details
from .page_summary import summary
from .page_sweep import search, search_warnings
from .page_table import text
from .table import all_warnings, caption, final_lines
from .write import to_json

HERE = Path(__file__).parent
PIECES = ("page_trade_off.js", "page_details.js")
NO_PLOTLY = (
    "No charts: Plotly is not installed. pip install 'edgeml-toolchain[report]', then again."
)

POINTS_NOTE = (
    '<p class="note">What each point\'s own run found: its times are of that run, before the front was timed '
    "together above.</p>"
)


def to_page(results: Sequence[Shown]) -> str:
    """The page of one result or several.

    Args:
        results: in the order they are told.

    Returns:
        The whole HTML document.
    """
    plotly = plotly_script()
    script = page_script()
    style = (HERE / "page.css").read_text(encoding="utf-8")
    allowed = " ".join(_hash(source) for source in (script, plotly) if source)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    title = f"edgeml: {', '.join(shown.name for shown in results)}"
    several = len(results) > 1
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(title)}</title><style>{style}</style></head><body>",
        f"<header><h1>{text(title)}</h1>",
        '<button type="button" id="theme" aria-label="light or dark">◐ theme</button></header><main>',
        *(summary(shown, several) for shown in results),
        _warnings(results),
        comparison_sections(results),
        _trade_off(results, plotly is not None),
        *_details(results, plotly is not None),
        *(_origin(index, shown, several) for index, shown in enumerate(results)),
        "</main><footer>Written by edgeml. Every figure is the raw JSON's; fields and units: "
        "docs/result-schema.md.</footer>",
        _data("chart-data", json.dumps(chart_data(results), allow_nan=False)),
        *(_data(f"raw-{index}", to_json(shown.table)) for index, shown in enumerate(results)),
    ]
    if plotly is not None:
        packed = base64.b64encode(_packed(plotly)).decode("ascii")
        parts.append(f'<script type="text/plain" id="plotly">{packed}</script>')
    parts.append(f"<script>{script}</script></body></html>\n")
    return "\n".join(parts)


def page_script() -> str:
    """The page's own script: ``page.js`` with its pieces in their place."""
    source = (HERE / "page.js").read_text(encoding="utf-8")
    pieces = "\n".join((HERE / name).read_text(encoding="utf-8") for name in PIECES)
    return source.replace("/* pieces */", pieces)


@cache
def plotly_script() -> str | None:
    """The script of the installed Plotly (its full build: the package has no smaller one)."""
    found = find_spec("plotly")
    for folder in (found and found.submodule_search_locations) or []:
        path = Path(folder) / "package_data" / "plotly.min.js"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    return None


@cache
def _packed(source: str) -> bytes:
    # 4.8 MB become 1.5; without a time in it, so that the same result is the same page.
    return gzip.compress(source.encode("utf-8"), 9, mtime=0)


def _hash(source: str) -> str:
    digest = hashlib.sha256(source.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _data(name: str, source: str) -> str:
    """JSON inside a page: no text in it can end the element or begin a comment (it stays JSON)."""
    for sign in "<>&\u2028\u2029":
        source = source.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json" id="{name}">{source}</script>'


def _warnings(results: Sequence[Shown]) -> str:
    found = []
    for shown in results:
        name = f"{shown.name}: " if len(results) > 1 else ""
        found += [f"{name}{line}" for line in (*search_warnings(shown), *all_warnings(shown.table))]
    if len(results) > 1:
        found = [*_incomparable(results), *found]
    if not found:
        return ""
    items = "".join(f"<li>{text(line)}</li>" for line in found)
    count = f"{len(found)} warning{'s' if len(found) > 1 else ''}"
    return f'<details class="warnings" open><summary>{count}</summary><ul tabindex="0">{items}</ul></details>'


def _incomparable(results: Sequence[Shown]) -> list[str]:
    """What must not be compared between these results."""

    def differ(values: Sequence[Any]) -> bool:
        return len({json.dumps(value, sort_keys=True, default=str) for value in values}) > 1

    machines = [(s.table.machine.get("cpu"), isa_name(s.table.machine)) for s in results]
    found = []
    if differ(machines):
        found.append("timed on different machines: no latency of one stands beside another's")
    else:
        found.append("timed in separate runs: compare ratios to the reference, not milliseconds")
    if differ([s.table.primary for s in results]):
        found.append("scored by different metrics")
    if differ([s.table.settings.get("data") for s in results]):
        found.append("scored on different data")
    for word in ("threads", "batch"):
        if differ([s.table.settings.get(word) for s in results]):
            found.append(f"different {word}")
    return found


def _trade_off(results: Sequence[Shown], charts: bool) -> str:
    captions = [line for shown in results for line in caption(shown.table)]
    notes = "".join(f'<p class="note">{text(line)}</p>' for line in dict.fromkeys(captions))
    chart = (
        '<div class="controls"><label>across <select id="axis-x"></select></label>'
        '<label>up <select id="axis-y"></select></label>'
        '<label><input type="checkbox" id="log-x"> logarithmic across</label></div>'
        '<div class="chart" id="pareto" role="group" aria-label="Trade-off chart; its figures are in the '
        'table below"></div><p class="note" id="absent"></p>'
        '<p class="note">Bars are 95 % intervals, of the drop one-sided bounds. '
        "The dashed line joins what no other engine of the same "
        "run beats on both axes by its point value; engines whose intervals overlap may be equal. "
        "Screened engines were measured on few samples and are not on it. Press a point, or <em>hold</em> in "
        "its row, to hold it; two held points stand side by side.</p>"
        if charts
        else f'<p class="note">{text(NO_PLOTLY)}</p>'
    )
    return (
        f"<section><h2>Trade-off</h2>{notes}{chart}"
        '<div class="held" id="held" aria-live="polite"></div>'
        '<div class="controls"><label>filter rows <input type="search" id="filter" '
        'placeholder="int8 nncf"></label><span class="note" id="count"></span></div>'
        f"{tables.all_rows(results)}</section>"
    )


def _details(results: Sequence[Shown], charts: bool) -> list[str]:
    """Each result's own parts; of a sweep its search, and the points of its front, closed."""
    parts, index = [], 0
    for shown in results:
        of = f" of {text(shown.name)}" if len(results) > 1 else ""
        parts.append(details(index, shown, of, charts))
        index += 1
        if shown.table.command == "sweep":
            parts.append(search(shown))
        if shown.points:
            parts.append(f"<section><h2>Points of the front{of}</h2>{POINTS_NOTE}")
        for point in shown.points:
            inner = details(index, point, "", charts) or "<p>nothing more was measured of it</p>"
            parts.append(
                f'<details class="point"><summary>{text(point.name)}: '
                f"{text(point.table.verdict_line or '')}</summary>{inner}</details>"
            )
            index += 1
        if shown.points:
            parts.append("</section>")
    return parts


def _origin(index: int, shown: Shown, several: bool) -> str:
    """Machine, versions, n, the command to repeat it, the raw data."""
    table = shown.table
    facts: list[tuple[str, Any]] = list(shown.about.items())
    machine = {name: value for name, value in table.machine.items() if name != "tools"}
    tools = table.machine.get("tools") or {}
    facts += [(f"machine: {name}", value) for name, value in machine.items()]
    facts += [
        ("versions", ", ".join(f"{name} {version}" for name, version in tools.items()))
    ] * bool(tools)
    facts += [(f"setting: {name}", value) for name, value in table.settings.items()]
    if table.final:
        facts += [("test samples", table.final.get("n")), ("test read", table.final.get("reads"))]
        facts += [("test split sha256", table.final.get("split_hash"))]
    body = "".join(
        f"<dt>{text(name)}</dt><dd>{text(_said(value))}</dd>"
        for name, value in facts
        if value is not None
    )
    repeat = f"<h3>To repeat it</h3><pre>{text(shown.repeat)}</pre>" if shown.repeat else ""
    of = f": {text(shown.name)}" if several else ""
    name = f"results-{index + 1}.json" if several else "results.json"
    lines = "".join(f'<p class="note">{text(line)}</p>' for line in final_lines(table))
    return (
        f"<section><h2>How each figure was got{of}</h2>{lines}{repeat}"
        f'<p><button type="button" class="download" data-raw="raw-{index}" data-name="{name}">'
        f"save the raw JSON ({name})</button></p>"
        f'<details><summary>machine, versions, settings</summary><dl class="facts">{body}</dl></details>'
        "</section>"
    )


def _said(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return json.dumps(value, default=str) if isinstance(value, dict) else str(value)
