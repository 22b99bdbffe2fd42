"""What changed between two results, as lines, Markdown and a part of the page."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..artifact.measurement import Measurement
from ..artifact.row_text import decimals, significant
from .compare import Change, comparisons, settings_changed
from .page_data import Shown
from .page_table import table, text
from .table import SUFFIX, clean, metric_text

HEADS = ["quantity", "first", "other", "difference (95 %)", "says", "by what"]
SIGNS = {"better": "▲ better", "worse": "▼ worse", "no difference shown": "no difference shown"}


def cells(change: Change, points_per_unit: float) -> list[str]:
    """A change as the texts of its row."""

    def figure(m: Measurement | None, sign: bool = False) -> str:
        if m is None or m.value is None:
            return "not measured"
        return _figure(change.key, m.value, m.unit, points_per_unit, sign) + SUFFIX.get(m.how, "")

    told = "not compared"
    if (d := change.difference) is not None:
        told = figure(d, sign=d.unit != "ratio")
        if d.unit == "ratio":
            told += " ×"
        if d.low is not None and d.high is not None:
            ends = [
                _figure(change.key, v, d.unit, points_per_unit, d.unit != "ratio")
                for v in (d.low, d.high)
            ]
            told += f" ({ends[0]} … {ends[1]})"
    says = "" if change.says == "not comparable" else SIGNS.get(change.says, change.says)
    return [
        clean(change.quantity),
        figure(change.a),
        figure(change.b),
        told,
        says,
        clean(change.why),
    ]


def _figure(key: str, value: float, unit: str, scale: float, sign: bool) -> str:
    if key.startswith(("final.engine", "metrics.")) and not sign:
        return metric_text(value, scale)
    if unit == "points":
        return decimals(value, 2, sign=True)
    if unit == "bytes":
        return ("+" if sign and value > 0 else "") + f"{value:,.0f}".replace("-", "−")
    return ("+" if sign and value > 0 else "") + significant(value)


def comparison_lines(results: Sequence[Shown]) -> list[str]:
    """For the terminal: each later result against the first."""
    found = []
    for other, changes in comparisons(results):
        found.append(clean(f"{other.name} against {results[0].name}"))
        rows = [cells(change, other.table.points_per_unit) for change in changes]
        for quantity, first, second, told, says, why in rows:
            end = f": {says.removeprefix('▲ ').removeprefix('▼ ')}" if says else ""
            found.append(f"  {quantity}: {first} → {second}; {told}{end} ({why})")
    return found


def comparison_json(results: Sequence[Shown]) -> list[dict]:
    """Plain values: ``first``, ``other``, ``changes`` and what differs in how they were made."""
    return [
        {
            "first": results[0].name,
            "other": other.name,
            "changes": [change.as_json() for change in changes],
            "made_differently": [
                {"what": name, "first": one, "other": two}
                for name, one, two in settings_changed(results[0], other)
            ],
        }
        for other, changes in comparisons(results)
    ]


def comparison_sections(results: Sequence[Shown]) -> str:
    """For the page: a table of figures and one of what was made differently, a result each."""
    parts = []
    for other, changes in comparisons(results):
        body = [_row(change, other.table.points_per_unit) for change in changes]
        title = f"{text(other.name)} against {text(results[0].name)}"
        note = (
            "First is the one named last here. A difference is better or worse only where its interval shows it; "
            "the intervals of both are joined as of independent samples, which is cautious for engines scored on the "
            "same ones."
        )
        parts.append(f'<section><h2>What changed: {title}</h2><p class="note">{note}</p>')
        parts.append(table(HEADS, body, "changes", "The engines that ship, figure by figure"))
        if differs := settings_changed(results[0], other):
            rows = [
                f'<tr><th scope="row">{text(name)}</th><td class="remark">{text(one)}</td>'
                f'<td class="remark">{text(two)}</td></tr>'
                for name, one, two in differs
            ]
            parts.append(
                f"<details><summary>made differently in {len(differs)} ways</summary>"
                + table(["what", "first", "other"], rows, "differs", "How they were made")
                + "</details>"
            )
        parts.append("</section>")
    return "".join(parts)


def _row(change: Change, scale: float) -> str:
    quantity, first, second, told, says, why = cells(change, scale)
    tone = change.says if change.says in ("better", "worse") else "none"
    return (
        f'<tr data-key="{text(change.key)}"><th scope="row">{text(quantity)}</th>'
        f"{_cell('a', change.a, first)}{_cell('b', change.b, second)}"
        f"{_cell('difference', change.difference, told)}"
        f'<td><span class="says {tone}">{text(says)}</span></td><td class="remark">{text(why)}</td></tr>'
    )


def _cell(field: str, m: Measurement | None, said: str) -> str:
    if m is None or m.value is None:
        return f'<td class="none" data-field="{field}">{text(said)}</td>'
    data = [f'data-value="{json.dumps(m.value)}"']
    if m.low is not None and m.high is not None:
        data += [f'data-low="{json.dumps(m.low)}"', f'data-high="{json.dumps(m.high)}"']
    return f'<td data-field="{field}" {" ".join(data)}>{text(said)}</td>'
