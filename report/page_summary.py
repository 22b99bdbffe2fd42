"""The top of the page: what was asked, what is recommended, and why, in three lines a result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..artifact.result_row import EngineRow, ResultTable
from ..artifact.row_text import decimals, points, significant
from .compare import shipped
from .page_data import Shown
from .page_table import text
from .table import final_lines, metric_text, row_label, size_text


def summary(shown: Shown, several: bool) -> str:
    """The section of one result."""
    table = shown.table
    ships = shipped(table)
    if table.command == "sweep":
        recommended, found = _front(table)
    elif ships is not None:
        recommended, found = [_told(table, ships)], True
    else:
        recommended, found = ["<strong>nothing: no engine ships</strong>"], False
    why = " · ".join(
        [*([table.verdict_line] if table.verdict_line else []), *final_lines(table)[:1]]
    )
    lines = [
        ("Asked", text(asked(shown))),
        ("Recommended", "<br>".join(recommended)),
        ("Why", text(why) or "no verdict was given"),
    ]
    body = "".join(f"<dt>{name}</dt><dd>{line}</dd>" for name, line in lines)
    advice = "".join(f'<p class="note">{text(line)}</p>' for line in table.advice)
    head = f"<h2>{text(shown.name)}</h2>" if several else ""
    state = "summary" if found else "summary missed"
    return f'<section class="{state}">{head}<dl>{body}</dl>{advice}</section>'


def _told(table: ResultTable, row: EngineRow) -> str:
    told = []
    if (p50 := row.latency_p50_ms) is not None and p50.value is not None:
        told.append(f"p50 {significant(p50.value)} ms ({p50.how})")
    if (speedup := row.speedup) is not None and speedup.value is not None:
        told.append(f"{significant(speedup.value)} × the reference's speed")
    if row.size_bytes is not None:
        told.append(size_text(row.size_bytes))
    return f"<strong>{text(row_label(table, row))}</strong> {text(', '.join(told))}"


def _front(table: ResultTable) -> tuple[list[str], bool]:
    """The ends of a sweep's front, and how to take a point of it."""
    front = [row for row in table.rows if row.front == "yes"]
    unsure = sum(row.front == "cannot tell" for row in table.rows)
    if not front:
        return ["<strong>nothing: no engine is on the front</strong>"], False

    def metric(row: EngineRow) -> float | None:
        found = row.metrics.get(table.primary or "")
        return found.value if found else None

    lines = [f"{len(front)} engine{'s' * (len(front) > 1)} on the front"]
    if unsure:
        lines[0] += f"; {unsure} more cannot be told from it by their intervals"
    ends = []
    timed = [row for row in front if row.speedup and row.speedup.value is not None]
    if timed:
        ends.append(("fastest", max(timed, key=lambda row: row.speedup.value)))
    scored = [row for row in front if metric(row) is not None]
    if scored:
        sign = -1 if table.lower_is_better else 1
        ends.append(("most accurate", max(scored, key=lambda row: sign * metric(row))))
    for word, row in ends:
        value = metric(row)
        said = "" if value is None else f", {metric_text(value, table.points_per_unit)}"
        drop = row.drop_points
        if drop is not None and drop.value is not None:
            said += f" (drop {decimals(drop.value)} points)"
        lines.append(f"{word}: {_told(table, row)}{text(said)}")
    lines.append(
        "to take one: <code>edgeml report SWEEP --pick 'drop_points &lt; 1' -o NEW</code>, the most "
        "accurate that fits"
    )
    return lines, True


def asked(shown: Shown) -> str:
    """The command, its network and data, and what had to hold."""
    table, recipe = shown.table, shown.recipe
    settings = table.settings
    told = [f"edgeml {table.command}"]
    if model := settings.get("model") or recipe.get("model"):
        told.append(f"of {model}")
    if data := settings.get("data") or recipe.get("data"):
        told.append(f"on {data}")
    limits = []
    if (drop := settings.get("max_drop_points")) is not None:
        limits.append(f"a drop of at most {points(drop)} points of {table.primary or 'the metric'}")
    for row in table.budget:
        part = str(row.get("part", "")).replace("max_", "").replace("_", " ")
        limits.append(f"{part} at most {row.get('limit')}")
    line = " ".join(told)
    if table.command == "sweep":
        line += f"; {', '.join(_search(settings))}"
    if precisions := recipe.get("precisions"):
        line += f"; precision {', '.join(map(str, precisions))}"
    if target := recipe.get("target"):
        line += f"; target {target}"
    return f"{line}; {', '.join(limits)}" if limits else line


def _search(settings: Mapping[str, Any]) -> list[str]:
    """A sweep's objectives, and how long it went."""
    told = [f"objectives {', '.join(map(str, settings.get('objectives') or ['?']))}"]
    if settings.get("trials"):
        told.append(f"{settings['trials']} trials asked for")
    if settings.get("time_s"):
        told.append(f"{duration(settings['time_s'])} asked for")
    if counts := settings.get("counts"):
        told.append(", ".join(f"{n} {state}" for state, n in counts.items() if n))
    if settings.get("seconds"):
        told.append(f"{duration(settings['seconds'])} spent")
    if settings.get("measure_on"):
        told.append(f"timed on {settings['measure_on']}")
    return told


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(42), duration(600), duration(7260)
    ('42 s', '10 min', '2 h 1 min')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return (
        f"{hours} h {minutes} min"
        if hours and minutes
        else f"{hours} h"
        if hours
        else f"{minutes} min"
    )
