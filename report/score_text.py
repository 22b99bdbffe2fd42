"""Groups, flipped samples, confidences and drift of the shipped engine on test, a line each."""

from __future__ import annotations

from typing import Any

from ..artifact.measurement import Measurement
from ..artifact.result_row import ResultTable
from ..artifact.row_text import decimals, points, significant

# Groups that are named in a line; all stand in the JSON and on the page.
NAMED = 3


def score_lines(table: ResultTable) -> list[str]:
    """Only what the result has; nothing where nothing of it was asked for."""
    final = table.final or {}
    found = []
    if fairness := final.get("fairness"):
        found.append(_groups(fairness))
    if flipped := final.get("flipped"):
        lost, won = len(flipped.get("lost") or []), len(flipped.get("won") or [])
        if lost or won:
            found.append(f"answers that changed on test: {lost} lost, {won} won")
    if confidences := final.get("confidences"):
        found.append(_confidences(confidences))
    if drift := final.get("drift"):
        found.append(drift_line(drift))
    return found


def _groups(fairness: dict[str, Any]) -> str:
    rows = [row for row in fairness.get("rows") or [] if not row.get("reason")]
    line = f"groups by {fairness.get('by')}, drop on test, worst first: "
    line += "; ".join(group_text(row) for row in rows[:NAMED]) or "none is large enough to judge"
    if (limit := fairness.get("limit_points")) is not None:
        line += f"; {fairness.get('verdict')} of at most {points(limit)} points each"
    if left := len(fairness.get("rows") or []) - len(rows):
        line += f"; {left} not judged (fewer than {fairness.get('least_n')} samples)"
    if unmatched := fairness.get("unmatched"):
        line += f"; {unmatched} samples without a group"
    return line


def group_text(row: dict[str, Any]) -> str:
    """A group with its drop and the interval at its corrected level."""
    drop = Measurement.model_validate(row["drop_points"])
    told = f"{row.get('group')}: {decimals(drop.value or 0, 2, sign=True)}"
    if drop.low is not None and drop.high is not None:
        told += f" ({decimals(drop.low, 2, sign=True)} … {decimals(drop.high, 2, sign=True)})"
    return f"{told}, n = {row.get('n', 0):,}"


def _confidences(values: dict[str, Any]) -> str:
    told = []
    for who in ("reference", "engine"):
        ece = Measurement.model_validate(values[who]["ece"])
        text = "not measured" if ece.value is None else f"{decimals(ece.value * 100)} %"
        if ece.low is not None and ece.high is not None:
            text += f" ({decimals(ece.low * 100)} … {decimals(ece.high * 100)})"
        told.append(f"{who} {text}")
    return f"calibration error (ECE, {values.get('bins')} bins of {values.get('binning')}): {', '.join(told)}"


def drift_line(drift: dict[str, Any]) -> str:
    """What explanations of the engine have to do with those of the reference, beside the floor."""
    if reason := drift.get("reason"):
        return f"drift of explanations: not measured: {reason}"
    told = []
    for name, word in (("correlation", "engine"), ("floor", "the reference on a second runtime")):
        m = Measurement.model_validate(drift[name]) if drift.get(name) else None
        if m is None or m.value is None:
            told.append(f"{word} not measured")
            continue
        text = f"{word} {significant(m.value, 4)}"
        if m.low is not None and m.high is not None:
            text += f" ({significant(m.low, 4)} … {significant(m.high, 4)})"
        told.append(text)
    return (
        f"drift of explanations ({drift.get('method')}, {drift.get('samples')} samples): rank correlation to the "
        f"reference's {', '.join(told)}"
    )
