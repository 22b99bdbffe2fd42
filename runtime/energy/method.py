"""How energy is measured: idle, warm-up, five windows of ten seconds, and what the sampling itself costs.

MLPerf Tiny takes the median of five energy runs (its benchmark rules, "Energy"), NVML's counter wants
windows of ten seconds. Gross joules are all that was drawn; net subtracts what the idle machine draws in
the same time, and is never told alone.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import Any, Callable

from .meter import CounterReset, EnergyReading, Meter, MeterError, Window

IDLE_S = 10.0
WARMUP_S = 3.0
WINDOW_S = 10.0
REPEATS = 5
# p50 with the sampler on and off: so many blocks of each, in turns.
SHIFT_BLOCKS = 10
SHIFT_BLOCK_S = 0.3
SHIFT_WARNING = 0.02
# Fewer samples than promised: the figure stays, with a warning.
LEAST_HZ = 50.0
# Windows that a counter's reset spoiled are tried again, so often in all.
MOST_RESETS = 3


def measure_energy(
    run: Callable[[], Any],
    meter: Meter,
    *,
    idle_s: float | None = None,
    warmup_s: float | None = None,
    window_s: float | None = None,
    repeats: int | None = None,
    samples_per_run: int = 1,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    log: Callable[[str], None] = lambda line: None,
) -> EnergyReading:
    """Joules of one inference on this machine.

    Args:
        run: one inference, finished when it returns.
        meter: see `find_meter`; its absence becomes a reading that says why.
        idle_s, warmup_s, window_s, repeats: None takes this file's constants; a window is no shorter than
            the meter allows.
        samples_per_run: the batch: energy is told for one sample.

    Raises:
        MeterError: the meter was there and failed.
    """
    reading = EnergyReading(
        meter=meter.name,
        how=meter.how,
        scope=meter.scope,
        where=meter.where,
        rails=list(meter.rails),
        total_rails=list(meter.total_rails),
        reason=meter.reason,
    )
    if meter.reason is not None:
        return reading
    idle_s, warmup_s = _given(idle_s, IDLE_S), _given(warmup_s, WARMUP_S)
    window_s = max(_given(window_s, WINDOW_S), meter.shortest_window_s)
    repeats = _given(repeats, REPEATS)
    idle_s = max(idle_s, meter.shortest_window_s)

    log(f"energy: idle, {idle_s:g} s")
    idle = _window(meter, lambda: sleep(idle_s))[0]
    reading.idle_w = idle.mean_w
    log(f"energy: warm-up, {warmup_s:g} s")
    _run_for(run, warmup_s, clock)
    reading.conditions_before = meter.conditions()
    windows, counts = [], []
    for k in range(repeats):
        log(f"energy: window {k + 1} of {repeats}, {window_s:g} s")
        window, count = _window(meter, lambda: _run_for(run, window_s, clock))
        windows.append(window)
        counts.append(count * samples_per_run)
    reading.conditions_after = meter.conditions()
    _fill(reading, windows, counts, window_s)
    if reading.achieved_hz:
        log("energy: what the sampling costs")
        reading.p50_shift = sampling_shift(run, meter, clock=clock)
    reading.warnings += _warnings(reading)
    return reading


def sampling_shift(
    run: Callable[[], Any],
    meter: Meter,
    blocks: int | None = None,
    block_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> float:
    """p50 with the meter running over p50 without, less one: the median over pairs of blocks in turns.

    Which of a pair comes first alternates, so that a machine that drifts hurts both alike.
    """
    shifts = []
    for k in range(_given(blocks, SHIFT_BLOCKS)):
        medians = {}
        for sampling in (True, False) if k % 2 else (False, True):
            if sampling:
                meter.start()
            try:
                medians[sampling] = _p50(run, _given(block_s, SHIFT_BLOCK_S), clock)
            finally:
                if sampling:
                    meter.stop()
        shifts.append(medians[True] / medians[False] - 1)
    return statistics.median(shifts)


def _window(meter: Meter, work: Callable[[], Any]) -> tuple[Window, Any]:
    """One window around the work; a counter's reset spoils it, and it is done again."""
    for tries_left in range(MOST_RESETS - 1, -1, -1):
        meter.start()
        try:
            result = work()
        except BaseException:
            _stop_quietly(meter)
            raise
        try:
            return meter.stop(), result
        except CounterReset:
            if not tries_left:
                raise
    raise AssertionError("unreachable")


def _stop_quietly(meter: Meter) -> None:
    """The work's own error is the one to tell."""
    with contextlib.suppress(MeterError):
        meter.stop()


def _run_for(run: Callable[[], Any], seconds: float, clock: Callable[[], float]) -> int:
    count, end = 0, clock() + seconds
    while count == 0 or clock() < end:
        run()
        count += 1
    return count


def _p50(run: Callable[[], Any], seconds: float, clock: Callable[[], float]) -> float:
    times: list[float] = []
    for _ in range(3):  # the first calls of a block are not timed
        run()
    end = clock() + seconds
    while len(times) < 3 or clock() < end:
        begin = clock()
        run()
        times.append(clock() - begin)
    return statistics.median(times)


def _fill(
    reading: EnergyReading, windows: list[Window], counts: list[int], window_s: float
) -> None:
    idle_mw = (reading.idle_w or 0.0) * 1e3
    gross = [w.total_mj / n for w, n in zip(windows, counts)]
    net = [(w.total_mj - idle_mw * w.seconds) / n for w, n in zip(windows, counts)]
    reading.gross_mj, reading.net_mj = statistics.median(gross), statistics.median(net)
    reading.gross_mj_low, reading.gross_mj_high = min(gross), max(gross)
    reading.net_mj_low, reading.net_mj_high = min(net), max(net)
    reading.mean_w = statistics.median(w.mean_w for w in windows)
    reading.rail_mj = {
        rail: statistics.median(w.rail_mj[rail] / n for w, n in zip(windows, counts))
        for rail in windows[0].rail_mj
        if all(rail in w.rail_mj for w in windows)
    }
    seconds = sum(w.seconds for w in windows)
    reading.inferences, reading.inferences_per_s = sum(counts), sum(counts) / seconds
    reading.windows, reading.window_s = len(windows), window_s
    reading.achieved_hz = {
        rail: statistics.median(w.achieved_hz.get(rail, 0.0) for w in windows)
        for rail in windows[0].achieved_hz
    }
    shares = [w.sampler_cpu_share for w in windows if w.sampler_cpu_share is not None]
    reading.sampler_cpu_share = statistics.median(shares) if shares else None


def _warnings(reading: EnergyReading) -> list[str]:
    found = []
    slowest = min((reading.achieved_hz.get(r, 0.0) for r in reading.total_rails), default=0.0)
    if reading.achieved_hz and slowest < LEAST_HZ:
        found.append(f"the total was sampled at {slowest:.0f} Hz, below {LEAST_HZ:.0f}")
    if reading.p50_shift is not None and abs(reading.p50_shift) > SHIFT_WARNING:
        found.append(f"sampling moves the p50 by {reading.p50_shift:+.1%}")
    if reading.net_mj is not None and reading.net_mj < 0:
        found.append("it drew less than when idle: the idle figure is no floor here")
    hot = reading.conditions_after.get("throttling") or []
    reasons = [reason for reason in hot if reason not in ("gpu idle", "application clocks")]
    if reasons:
        found.append(f"clocks were held down: {', '.join(reasons)}")
    return found


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value
