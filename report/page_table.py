"""The page's tables as HTML. Each figure's cell carries the JSON's own value beside the text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from ..artifact.measurement import Measurement
from ..artifact.result_row import EngineRow
from ..artifact.row_text import decimals, significant
from .budget_table import table_told
from .page_data import Quantity, Shown, kind, own_bench, quantities
from .sweep_text import front_lines, params_text
from .table import NOT_MEASURED, SUFFIX, clean, marks, row_label, size_text

# In the table's head a word is enough; the chart's axes say it whole.
HEADS = {
    "change_points": "change, points",
    "drop_points": "drop, points",
    "flips": "flips",
    "latency_p50_ms": "p50 ms",
    "latency_p90_ms": "p90 ms",
    "latency_p99_ms": "p99 ms",
    "speedup": "× ref",
    "size_bytes": "size",
    "peak_memory_bytes": "memory",
    "energy_gross_mj": "mJ",
    "energy_net_mj": "net mJ",
    "gpu_compute_ms": "GPU ms",
    "throughput_per_s": "per s",
    "load_ms": "load ms",
    "first_inference_ms": "first ms",
    "int8_mac_share": "INT8 MACs",
    "test.change_points": "test: change, points",
    "test.drop_points": "test: drop, points",
    "test.flips": "test: flips",
}
# Heads of columns of text; all others are of numbers.
LEFT = ("bundle", "engine", "state", "verdict", "remarks", "step", "table off by", "group", "kind")
LEFT += ("layers", "class", "over all classes together", "part", "at most", "recipe", "outcome")
LEFT += ("as the runtime says",)
LEFT += ("of", "bin", "target")
LEFT += ("quantity", "says", "by what", "what")
LEFT += ("reason", "group of samples", "judged", "layer", "operator", "computed in", "device")
# Heads without a button: nothing to sort by.
PLAIN_HEADS = ("hold",)
BYTES = ("size_bytes", "peak_memory_bytes")
SHARES = ("flips", "int8_mac_share", "test.flips")
# How a row is called by its state.
WORDS = {"undecided": "cannot tell"}


def text(value: Any) -> str:
    """Anything as HTML text: one line, no control characters, nothing that is markup."""
    return escape(clean(str(value)), quote=True)


def figure(value: float, quantity: Quantity) -> str:
    """A value in the JSON's unit as the page writes it."""
    if quantity.key in BYTES:
        return size_text(value)
    if quantity.key in SHARES:
        return f"{decimals(value * 100, 1)} %"
    key = quantity.key.removeprefix("test.")
    if key.startswith("metrics.") and quantity.unit == "%":
        return f"{decimals(value * 100)} %"
    if key == "ece":
        return f"{decimals(value * 100)} %"
    if key in ("change_points", "drop_points", "group_drop_points"):
        return decimals(value, 2, sign=key != "drop_points")
    return significant(value, 4 if key.startswith("metrics.") else 3)


def measured_cell(
    m: Measurement | None, quantity: Quantity, missing: str = NOT_MEASURED, more: str = ""
) -> str:
    """One ``<td>``: the value, its interval, how it was got; the JSON's numbers in ``data-``.

    Args:
        missing: what stands where there is no value.
        more: a caveat below the interval.
    """
    name = f'data-field="{text(quantity.key)}"'
    if m is None or m.value is None:
        why = f' title="{text(m.note)}"' if m is not None and m.note else ""
        return f'<td class="none" {name}{why}>{missing}</td>'
    said = text(figure(m.value, quantity) + SUFFIX.get(m.how, f" ({m.how})"))
    data = [f'data-value="{json.dumps(m.value)}"', f'data-how="{text(m.how)}"', f'data-n="{m.n}"']
    if m.low is not None and m.high is not None:
        low, high = (figure(value, quantity) for value in (m.low, m.high))
        # One-sided bounds are no interval: the drop's upper end is what the verdict reads.
        one_sided = quantity.key in ("drop_points", "test.drop_points")
        span = f"≤ {high}" if one_sided else f"{low} … {high}"
        said += f'<span class="interval">{text(span)}</span>'
        data += [f'data-low="{json.dumps(m.low)}"', f'data-high="{json.dumps(m.high)}"']
    if more:
        said += f'<span class="interval">{text(more)}</span>'
    notes = [f"n = {m.n:,}", *([m.method] if m.method else []), *([m.note] if m.note else [])]
    return f'<td {name} {" ".join(data)} title="{text("; ".join(notes))}">{said}</td>'


def all_rows(results: Sequence[Shown]) -> str:
    """The table of every row of every result."""
    columns = quantities(results)
    several = len(results) > 1
    sweeps = any(shown.table.command == "sweep" for shown in results)
    judged = any(row.verdict for shown in results for row in shown.table.rows)
    heads = ["hold", *(["bundle"] if several else []), "engine", "state"]
    heads += ["verdict"] if judged else []
    heads += [HEADS.get(q.key, q.title.replace(" (validation)", "")) for q in columns]
    heads += [*(["recipe"] if sweeps else []), "remarks"]
    body = []
    point = 0
    for index, shown in enumerate(results):
        for row in shown.table.rows:
            label = text(row_label(shown.table, row))
            hold = ""
            if row.status != "failed":  # a failed engine is no point of the chart
                hold = f'<button type="button" class="hold" data-point="{point}" '
                hold += f'aria-pressed="false" aria-label="hold {label}">hold</button>'
                point += 1
            cells = [f'<td class="hold">{hold}</td>']
            cells += [f"<td>{text(shown.name)}</td>"] if several else []
            cells += [
                f'<th scope="row">{label}</th>',
                f'<td><span class="mark {kind(row)}">{WORDS.get(kind(row), kind(row))}</span></td>',
            ]
            cells += [f"<td>{text(row.verdict or '')}</td>"] if judged else []
            empty = "" if row.status in ("reference", "failed") else NOT_MEASURED
            for q in columns:
                more = "own trial's bench" if own_bench(row, q.key) else ""
                # Only front points and baselines of a sweep were ever meant to have a test score.
                none = "" if q.key.startswith("test.") else empty
                cells.append(measured_cell(q.get(row), q, none, more))
            if sweeps:
                cells.append(f'<td class="remark">{text(params_text(row.params))}</td>')
            remarks = "; ".join([*_remarks(row), *front_lines(shown.table, row)])
            cells.append(f'<td class="remark">{text(remarks)}</td>')
            body.append(
                f'<tr data-bundle="{index}" data-id="{text(row.id)}" class="{kind(row)}">'
                + "".join(cells)
                + "</tr>"
            )
    return table(heads, body, "rows", "Every engine that was tried")


def _remarks(row: EngineRow) -> list[str]:
    said = [mark for mark in marks(row)[1 if row.shipped else 0 :] if mark != row.verdict]
    return [*said, *([row.reason] if row.reason else [])]


def steps(shown: Shown) -> str:
    """What each step of a run that prunes reached and cost."""
    metric = shown.table.primary or "metric"
    fraction = shown.table.points_per_unit == 100
    body = []
    for step in shown.table.steps:
        cells = [f'<th scope="row">{text(step.get("step", ""))}</th>']
        value = step.get("metric")
        written = (
            None
            if value is None
            else f"{decimals(value * 100)} %"
            if fraction
            else significant(value, 4)
        )
        cells.append(plain_cell("metric", value, written))
        cells.append(plain_cell("latency_p50_ms", step.get("latency_p50_ms")))
        ratio = step.get("ratio")
        cells.append(plain_cell("ratio", ratio, None if ratio is None else f"{ratio:.1%}"))
        size = step.get("size_bytes")
        cells.append(plain_cell("size_bytes", size, None if size is None else size_text(size)))
        cells.append(f"<td>{text(table_told(step))}</td>")
        cells += [plain_cell(name, step.get(name)) for name in ("epochs", "seconds")]
        body.append(f"<tr>{''.join(cells)}</tr>")
    heads = ["step", metric, "p50 ms", "of plain INT8", "size", "table off by", "epochs", "seconds"]
    return table(heads, body, "steps", "The steps, in their order")


def removed(shown: Shown) -> str:
    """What was pruned, a row a group, in the order it went."""
    body = []
    for row in shown.table.removed:
        cells = [plain_cell("round", row.get("round"))]
        cells.append(f'<th scope="row">{text(row.get("group", ""))}</th>')
        cells.append(f"<td>{text(row.get('kind', ''))}</td>")
        cells += [plain_cell(name, row.get(name)) for name in ("before", "after")]
        cells += [plain_cell(name, row.get(name)) for name in ("saved_us", "importance_lost")]
        cells.append(
            f'<td class="remark">{text(", ".join(map(str, row.get("layers") or [])))}</td>'
        )
        body.append(f"<tr>{''.join(cells)}</tr>")
    heads = ["round", "group", "kind", "before", "after", "saved µs", "importance lost", "layers"]
    return table(heads, body, "removed", "What was removed")


def layers(shown: Shown) -> str:
    """The shipped engine's layers, in the order they run, with the noise that INT8 adds in those
    that were looked at."""
    noise = {
        entry.get("node"): entry
        for row in shown.table.rows
        if row.shipped
        for entry in row.put_back
    }
    body = []
    for index, layer in enumerate(shown.table.layers):
        name, time = str(layer.get("name", "")), layer.get("time_ms")
        cells = [plain_cell("order", index + 1)]
        cells.append(f'<th scope="row">{text(name)}</th><td>{text(layer.get("kind", ""))}</td>')
        cells.append(
            f"<td>{text(layer.get('precision') or '')}</td><td>{text(layer.get('executed', ''))}</td>"
        )
        cells.append(plain_cell("time_ms", time, None if time is None else f"{time * 1e3:.1f}"))
        cells.append(plain_cell("macs", layer.get("macs")))
        # OpenVINO names a layer whose bias it took in so.
        snr = (noise.get(name.removesuffix("/WithoutBiases")) or {}).get("snr_db")
        if noise:
            cells.append(plain_cell("snr_db", snr, None if snr is None else f"{snr:.1f}"))
        body.append(f"<tr>{''.join(cells)}</tr>")
    heads = ["order", "layer", "operator", "computed in", "as the runtime says", "µs", "MACs"]
    return table(
        [*heads, *(["signal to INT8's noise, dB"] if noise else [])],
        body,
        "layers",
        "Layers of the shipped engine",
    )


def put_back(shown: Shown) -> str:
    """Layers that went back into float to keep the accuracy budget, in that order."""
    body = []
    for row in shown.table.rows:
        for entry in row.put_back if row.shipped else []:
            cells = [f'<th scope="row">{text(entry.get("node", ""))}</th>']
            cells.append(f"<td>{text(entry.get('what', ''))}</td>")
            cells += [plain_cell(name, entry.get(name)) for name in ("snr_db", "won_us")]
            body.append(f"<tr>{''.join(cells)}</tr>")
    heads = ["layer", "operator", "signal to INT8's noise, dB", "µs that INT8 won"]
    return table(heads, body, "put-back", "Layers put back into float") if body else ""


def classes(shown: Shown) -> str:
    """The change by class on the test split, worst first."""
    body = []
    for entry in (shown.table.final or {}).get("by_class") or []:
        values = entry.get("change_points")
        change = Measurement.model_validate(values) if values else None
        quantity = Quantity("change_points", "change", "points", False, lambda row: None)
        shows = "more than chance" if entry.get("significant") else "cannot be told from none"
        body.append(
            f'<tr><th scope="row">{text(entry.get("class", ""))}</th>'
            f"{plain_cell('n', entry.get('n'))}{measured_cell(change, quantity)}"
            f"<td>{shows}</td></tr>"
        )
    heads = ["class", "n", "change, points (95 %)", "over all classes together"]
    return table(heads, body, "classes", "Change by class on test")


def budget(shown: Shown) -> str:
    """The verdict on each limit."""
    body = []
    for row in shown.table.budget:
        unit = row.get("unit", "")
        cells = [
            f'<th scope="row">{text(str(row.get("part", "")).replace("max_", "").replace("_", " "))}</th>'
        ]
        cells.append(f"<td>{text(row.get('limit', ''))}</td>")
        for name in ("value", "bound"):
            value = row.get(name)
            cells.append(plain_cell(name, value, None if value is None else _limit(value, unit)))
        cells.append(f"<td>{text(row.get('verdict', ''))}</td>")
        over = row.get("over")
        missed = row.get("verdict") == "missed" and over is not None
        cells.append(plain_cell("over", over, f"{over:.1%}") if missed else "<td></td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    heads = ["part", "at most", "value", "one-sided 95 % bound", "verdict", "over by"]
    return table(heads, body, "budget", "The limits")


def _limit(value: float, unit: str) -> str:
    if unit == "of plain INT8":
        return f"{value:.1%} of plain INT8"
    return f"{value:,.0f} bytes" if unit == "bytes" else f"{significant(value)} {unit}"


def plain_cell(field: str, value: Any, written: str | None = None) -> str:
    """A ``<td>`` of a plain number of the JSON; empty where there is none."""
    if not isinstance(value, (int, float)):
        return f'<td class="none" data-field="{field}">{"" if value is None else text(value)}</td>'
    if written is None:
        written = f"{value:,}" if isinstance(value, int) else significant(value)
    return f'<td data-field="{field}" data-value="{json.dumps(value)}">{text(written)}</td>'


def table(heads: Sequence[str], body: Sequence[str], name: str, caption: str) -> str:
    """A table whose heads sort it and whose box above filters it."""
    head = ""
    for title in heads:
        if title in PLAIN_HEADS:
            head += f'<th scope="col">{text(title)}</th>'
            continue
        left = ' class="left"' if title in LEFT else ""
        button = f'<button type="button">{text(title)}</button>'
        head += f'<th scope="col" aria-sort="none"{left}>{button}</th>'
    region = f'class="wide of-{name}" tabindex="0" role="region" aria-label="{text(caption)}"'
    return (
        f'<div {region}><table class="sorts {name}"><caption>{text(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
