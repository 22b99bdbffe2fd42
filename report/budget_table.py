"""What a run that prunes removed, what each step gave, and the verdict on each limit, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..artifact.result_row import ResultTable
from ..artifact.row_text import significant

# Groups with the largest share of the time stand in the terminal; all of them in the JSON.
MOST_ROWS = 24


def budget_lines(table: ResultTable) -> list[str]:
    """Lines to print above the table, whose last line is the verdict; none for a run that pruned
    nothing and had no limit."""
    lines: list[str] = []
    if table.removed:
        lines += ["removed", *_aligned(_removed(table.removed))]
        more = len(_by_group(table.removed)) - MOST_ROWS
        lines += [f"and {more} more groups in results.json"] if more > 0 else []
    if table.steps:
        lines += ["", "steps", *_aligned(_steps(table))]
    if table.budget:
        lines += ["", "budget", *_aligned(_budget(table.budget))]
    return [*lines, ""] if lines else []


def _removed(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    shown = sorted(_by_group(rows), key=lambda row: -row["saved_us"])[:MOST_ROWS]
    head = ["round", "group", "kind", "before", "after", "µs by the table", "importance lost"]
    return [head] + [
        [
            row["round"],
            row["group"],
            row["kind"],
            str(row["before"]),
            str(row["after"]),
            f"{row['saved_us']:.1f}",
            significant(row["importance_lost"], 2) if row["importance_lost"] else "0",
        ]
        for row in shown
    ]


def _by_group(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a group: from before the first round that cut it to after the last."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = row["group"], row["kind"]
        if key not in found:
            found[key] = {**row, "round": str(row["round"])}
            continue
        whole = found[key]
        whole["round"] += f", {row['round']}"
        whole["after"] = row["after"]
        for sum_of in ("saved_us", "importance_lost"):
            whole[sum_of] += row[sum_of]
    return list(found.values())


def _steps(table: ResultTable) -> list[list[str]]:
    metric = table.primary or "metric"
    head = ["step", metric, "p50", "table off by", "epochs", "seconds"]
    rows = [head]
    for step in table.steps:
        p50, ratio = step.get("latency_p50_ms"), step.get("ratio")
        time = f"{significant(p50)} ms" if p50 is not None else ""
        time = f"{ratio:.1%} of plain INT8" if ratio is not None else time
        if step.get("over") is not None:  # no more is pruned than the budget needs
            time += f" ({step['over']:.1%} with the cheapest removal put back)"
        value = step.get("metric")
        rows.append(
            [
                step["step"],
                "" if value is None else significant(value, 4),
                time,
                table_told(step),
                str(step.get("epochs", "")),
                "" if step.get("seconds") is None else f"{step['seconds']:.0f}",
            ]
        )
    return rows


def table_told(step: Mapping[str, Any]) -> str:
    """How far off the latency table was at each engine of a round, and how much of it was measured, if not all.

    >>> table_told({"table_errors": [0.003, -0.01], "table_shapes": [96, 210]})
    '+0.3%, -1.0%; 96 of 210 shapes measured'
    """
    told = ", ".join(f"{error:+.1%}" for error in step.get("table_errors") or [])
    measured, wanted = step.get("table_shapes") or (0, 0)
    return f"{told}; {measured} of {wanted} shapes measured" if measured < wanted else told


def _budget(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    def number(value: float, unit: str) -> str:
        if unit == "of plain INT8":
            return f"{value:.1%}"
        return f"{value:,.0f} bytes" if unit == "bytes" else f"{significant(value)} {unit}"

    head = ["part", "at most", "value", "95 % bound", "verdict", "over by"]
    return [head] + [
        [
            row["part"].replace("max_", "").replace("_", " "),
            row["limit"],
            number(row["value"], row["unit"]),
            number(row["bound"], row["unit"]),
            row["verdict"],
            f"{row['over']:.1%}" if row["verdict"] == "missed" else "",
        ]
        for row in rows
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
