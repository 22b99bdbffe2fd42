"""The numbers that the charts of groups and confidences are drawn from, taken from the result as they are."""

from __future__ import annotations

from typing import Any

from .table import clean


def group_chart(final: dict[str, Any] | None) -> dict[str, Any]:
    """Plain data for the page's script: a group a row, worst first."""
    fairness = (final or {}).get("fairness") or {}
    rows = []
    for row in fairness.get("rows") or []:
        drop = row.get("drop_points") or {}
        if drop.get("value") is None or row.get("reason"):
            continue
        state = row.get("verdict") or (
            "loses more than the whole" if row.get("stands_out") else "judged"
        )
        rows.append(
            {
                "label": clean(str(row.get("group", ""))),
                "n": row.get("n"),
                "value": drop["value"],
                "low": drop.get("low"),
                "high": drop.get("high"),
                "state": clean(str(state)),
            }
        )
    return {
        "rows": rows,
        "states": ["met", "violated", "cannot tell", "judged", "loses more than the whole"],
        "limit": fairness.get("limit_points"),
        "title": "drop, points (intervals for all groups together; dotted: the limit)",
    }


def reliability_chart(final: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Plain data for the page's script: a line of bins of the reference and of the engine."""
    found = (final or {}).get("confidences") or {}
    return [
        {
            "label": who,
            "bins": [
                {name: entry.get(name) for name in ("n", "confidence", "accuracy", "low", "high")}
                for entry in found[who].get("bins") or []
                if entry.get("n")
            ],
        }
        for who in ("reference", "engine")
        if found.get(who)
    ]
