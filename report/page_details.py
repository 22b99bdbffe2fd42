"""The parts of the page that one result has of its own: limits, steps, what was removed, classes."""

from __future__ import annotations

from . import page_scores as scores
from . import page_table as tables
from .page_data import Shown
from .page_devices import devices, energy
from .page_table import text
from .table import end_to_end

STEPS_NOTE = (
    "The metric of a round is the float network's (validation); engines' are their own. Falls and rises are "
    "differences of two rows of the table; blue is better, orange worse."
)


def details(index: int, shown: Shown, of: str, charts: bool) -> str:
    """Every part that the result has, as one section; empty where it has none.

    Args:
        index: of the charts' data.
        of: put behind each head where there are several results.
        charts: Plotly is there to draw.
    """
    table = shown.table
    parts = []
    if table.budget:
        parts.append(f"<h2>Limits{of}</h2>{tables.budget(shown)}")
    if table.steps:
        chart = _chart(index, "steps", "Waterfall of the steps", charts)
        note = f'<p class="note">{STEPS_NOTE}</p>'
        parts.append(f"<h2>Steps{of}</h2>{note}{chart}{tables.steps(shown)}")
    if table.removed:
        parts.append(f"<h2>Removed{of}</h2>{tables.removed(shown)}")
    if table.layers:
        chart = _chart(index, "layers", "Time of each layer", charts)
        note = f'<p class="note">{text(_layers_note(shown))}</p>'
        parts.append(f"<h2>Layers{of}</h2>{note}{chart}{tables.layers(shown)}")
    if sensitive := tables.put_back(shown):
        parts.append(f"<h2>Put back into float{of}</h2>{sensitive}")
    chart = _chart(index, "groups", "Drop by group", charts)
    if judged := scores.groups(shown, chart):
        parts.append(f"<h2>Groups{of}, on test, worst first</h2>{judged}")
    # By class the groups above say the same, judged together.
    by_class = ((table.final or {}).get("fairness") or {}).get("by") == "class"
    if (table.final or {}).get("by_class") and not by_class:
        chart = _chart(index, "classes", "Change by class", charts)
        parts.append(f"<h2>Classes{of}, on test, worst first</h2>{chart}{tables.classes(shown)}")
    if changed := scores.flipped(shown):
        parts.append(f"<h2>Answers that changed{of}, on test</h2>{changed}")
    chart = _chart(index, "reliability", "Confidence against accuracy", charts)
    if calibrated := scores.confidences(shown, chart):
        parts.append(f"<h2>Confidences{of}, on test</h2>{calibrated}")
    if drifted := scores.drift(shown):
        parts.append(f"<h2>Explanations{of}</h2>{drifted}")
    if labels := energy(shown):
        parts.append(f"<h2>Energy{of}</h2>{labels}")
    if deployed := devices(shown):
        parts.append(f"<h2>Devices{of}</h2>{deployed}")
    if stages := end_to_end(table):
        told = "".join(f"<p>{text(line)}</p>" for line in stages)
        parts.append(f"<h2>End to end{of}</h2>{told}")
    return f"<section>{''.join(parts)}</section>" if parts else ""


def _layers_note(shown: Shown) -> str:
    """What the layers add up to, by type; a profiled run is slower than an unprofiled one."""
    times: dict[str, float] = {}
    for layer in shown.table.layers:
        kind = layer.get("precision") or "no arithmetic"
        times[kind] = times.get(kind, 0.0) + (layer.get("time_ms") or 0.0)
    total = sum(times.values())
    shares = ", ".join(
        f"{kind} {time / total:.0%}" for kind, time in sorted(times.items(), key=lambda t: -t[1])
    )
    said = f" ({shares})" if total else ""
    return (
        f"The shipped engine's own profile of one inference, median of three: {total * 1e3:,.0f} µs in all{said}. "
        "Profiled runs are slower than timed ones, and OpenVINO gives whole µs: read the shares."
    )


def _chart(index: int, name: str, label: str, charts: bool) -> str:
    """A place for a chart; its figures stand in the table that follows."""
    if not charts:
        return ""
    label = f"{label}; its figures are in the table below"
    return (
        f'<div class="chart" id="{name}-{index}" data-chart="{name}" data-detail="{index}" '
        f'role="group" aria-label="{label}"></div>'
    )
