"""What a sweep says of a row in words: the recipe that made it, and where it stands to the front."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..artifact.result_row import EngineRow, ResultTable


def params_text(params: Mapping[str, Any]) -> str:
    """What the search chose, in the words of the command line.

    >>> params_text({"latency": 0.6, "kinds": "block", "precision": "int8", "distil": True, "epochs": 2})
    'pruned to 60 % of plain INT8 (block), int8, distilled, 2 epochs'
    >>> params_text({"latency": None, "kinds": None, "precision": "int8", "route": "nncf", "threads": 2})
    'not pruned, int8, route nncf, threads 2'
    """
    left = dict(params)
    told = []
    if "latency" in left:
        share, kinds = left.pop("latency"), left.pop("kinds", None)
        if isinstance(share, (int, float)):
            told.append(f"pruned to {share:.0%} of plain INT8".replace("%", " %"))
            told[-1] += f" ({kinds})" if kinds else ""
        else:
            told.append("not pruned")
    for name in ("precision", "runtime"):
        if value := left.pop(name, None):
            told.append(str(value))
    if (distil := left.pop("distil", None)) is not None and left.get("epochs"):
        told.append("distilled" if distil else "not distilled")
    if epochs := left.pop("epochs", None):
        told.append(f"{epochs:g} epochs" if isinstance(epochs, (int, float)) else str(epochs))
    told += [f"{name} {value}" for name, value in left.items() if value is not None]
    return ", ".join(told)


def front_lines(table: ResultTable, row: EngineRow) -> list[str]:
    """Why a row is on the front, or what beats it or may do so; by the names that the table has."""
    if row.front is None:
        return []
    names = {other.id: other for other in table.rows}

    def named(ids: list[str]) -> str:
        shown = [_short(names[i]) if i in names else i for i in ids[:3]]
        more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
        return ", ".join(shown) + more

    if row.front == "yes":
        return ["on the front"]
    if row.front == "no":
        return [f"dominated by {named(row.front_against)}"]
    return [f"cannot be told from {named(row.front_against)}"]


def _short(row: EngineRow) -> str:
    if row.trial is not None:
        return f"trial {row.trial} ({row.runtime} {row.precision})"
    return row.baseline or row.id
