"""Which engine ships on a device: the fastest that keeps the budget."""

from __future__ import annotations

from collections.abc import Sequence

from ..artifact.measurement import Measurement
from ..artifact.result_row import EngineRow, Verdict
from ..artifact.row_text import engine_name, points, significant
from .record import DeviceRow

# As in compress: 18 of 360 is 5 points, and 5.000000000000004 in floats.
ROUNDING = 1e-9


def judge(row: DeviceRow, max_drop_points: float | None) -> Verdict | None:
    """A row's drop against the budget: proven by its one-sided bound, plausible by its value."""
    drop = row.engine.drop_points
    if max_drop_points is None or drop is None or drop.value is None:
        return None
    if drop.high is not None and drop.high <= max_drop_points + ROUNDING:
        return "proven"
    return "plausible" if drop.value <= max_drop_points + ROUNDING else "missed"


def choose(
    rows: Sequence[DeviceRow], max_drop_points: float | None, latency_ms: float | None
) -> tuple[DeviceRow | None, bool, str]:
    """The row that ships, whether the budget holds, and the line that says why.

    The fastest proven row, else the fastest plausible one, else the fastest that was not scored. An
    INT8 engine outside its check's tolerance ships only where its score holds a budget. Of rows whose
    p50 intervals overlap: those within `latency_ms`, then the more accurate, then the smaller. Nothing is
    chosen by an emulated time; there the first row that keeps the accuracy budget stands.
    """
    timed = [row for row in rows if row.engine.status != "failed" and row.engine.latency_p50_ms]
    if not timed:
        return None, False, "nothing ships: no engine was built, checked and timed"
    for row in timed:
        row.engine.verdict = judge(row, max_drop_points)
    eligible = [
        row
        for row in timed
        if row.engine.verdict in ("proven", "plausible")
        or (row.engine.verdict is None and row.check == "passed")
    ]
    if not eligible:
        scored = [row for row in timed if row.engine.verdict]
        if not scored:
            far = ", ".join(engine_name(row.engine) for row in timed)
            return (
                None,
                False,
                f"nothing ships: outside its check's tolerance, and no score within a --max-drop: {far}",
            )
        nearest = min(scored, key=_drop)
        return (
            None,
            False,
            (
                f"nothing ships: no engine keeps --max-drop {points(max_drop_points or 0.0)}; the nearest, "
                f"{engine_name(nearest.engine)}, loses {points(round(_drop(nearest), 2))} points"
            ),
        )
    groups = [
        [row for row in eligible if row.engine.verdict == word] for word in ("proven", "plausible")
    ]
    group = next((group for group in groups if group), eligible)
    best = _fastest(group, latency_ms)
    p50 = best.engine.latency_p50_ms
    assert p50 is not None and p50.value is not None
    emulated = p50.how == "emulated"
    speed = (
        "times are emulated and mean nothing" if emulated else f"p50 {significant(p50.value)} ms"
    )
    line = f"ships {engine_name(best.engine)}: {speed}, {_accuracy(best.engine, max_drop_points)}"
    if latency_ms is not None and not emulated and p50.value > latency_ms:
        over = p50.value - latency_ms
        return best, False, f"{line}; --latency {latency_ms:g} ms missed by {significant(over)} ms"
    if latency_ms is not None and not emulated:
        # Builds differ, and this is one: compress --target ssh:// proves by several.
        line += f"; --latency {latency_ms:g} ms: plausible (one build)"
    return best, True, line


def _fastest(rows: Sequence[DeviceRow], latency_ms: float | None) -> DeviceRow:
    if any(row.engine.latency_p50_ms.how == "emulated" for row in rows):
        return rows[0]
    if latency_ms is not None:
        rows = [row for row in rows if _p50(row) <= latency_ms] or rows
    first = min(rows, key=_p50)
    equal = [
        row for row in rows if _overlap(row.engine.latency_p50_ms, first.engine.latency_p50_ms)
    ]
    return min(equal, key=lambda row: (_drop(row), row.engine.size_bytes or 0))


def _overlap(one: Measurement, other: Measurement) -> bool:
    if one is other:
        return True
    if None in (one.low, one.high, other.low, other.high):
        return False
    return one.low <= other.high and other.low <= one.high


def _drop(row: DeviceRow) -> float:
    drop = row.engine.drop_points
    return drop.value if drop is not None and drop.value is not None else 0.0


def _p50(row: DeviceRow) -> float:
    p50 = row.engine.latency_p50_ms
    return p50.value if p50 is not None and p50.value is not None else float("inf")


def _accuracy(row: EngineRow, max_drop_points: float | None) -> str:
    drop = row.drop_points
    if drop is None or drop.value is None:
        return "accuracy not measured on the device"
    text = f"loses {points(round(drop.value, 2))} points on the device (n = {drop.n})"
    if row.verdict is None or max_drop_points is None:
        return text
    return f"{text}: {row.verdict}" + ("" if row.verdict == "proven" else ", not proven")
