"""Times engines on the device: interleaved blocks in one process, once the board is as warm as it gets.

The method is that of `runtime.latency` (blocks, each with its first calls dropped, in a new order every
round); the host computes percentiles and intervals from the rounds. A board with a small heat sink slows
down for minutes: rounds are run and thrown away until its temperature is steady, or said to be still warming.
"""

from __future__ import annotations

import gc
import random
import time
from typing import Any, Callable

from . import board_state
from .preprocess_image import decode, preprocess
from .tensor_file import Tensor, read_tensors, samples

DROPPED_CALLS = 3
WARMUP_MIN_CALLS = 10
# Steady: within a degree for so long. Jetson's heat sinks settle with a time constant of tens of seconds.
STEADY_C = 1.0
STEADY_S = 20.0

Clock = Callable[[], float]


def bench_engines(
    runners: dict[str, Any],
    reference: str,
    *,
    duration_s: float = 2.0,
    warmup_s: float = 1.0,
    block_s: float = 0.06,
    steady: bool = True,
    max_s: float | None = None,
    rate_hz: float | None = None,
    end_to_end: tuple[list[str], dict[str, Any]] | None = None,
    meter: Any = None,
    log: Callable[[str], None] = lambda line: None,
    root: str = "/",
    clock: Clock = time.perf_counter,
) -> dict[str, Any]:
    """Time every engine on the first reference input.

    Args:
        runners: by engine's id.
        reference: a tensor file with inputs.
        duration_s: timed seconds an engine.
        warmup_s: seconds an engine before anything is timed.
        steady: wait for the temperature, at most `max_s` seconds.
        rate_hz: also run each engine at this rate for `duration_s`.
        end_to_end: paths of encoded images and the declared preprocessing.
        meter: gives the watts at `rate_hz`; see `runtime.energy`.

    Returns:
        The protocol's answer to ``bench``.
    """
    feed = next(iter(samples(read_tensors(reference), "input").values()))
    begin = clock()
    throttle = board_state.throttle_counts(root)
    start_c = board_state.temperatures_c(root)
    rows = {name: _row(name, runner) for name, runner in runners.items()}
    calls: dict[str, Callable[[], Any]] = {}
    for name, runner in runners.items():
        try:
            if runner.how == "trtexec":
                log(f"{name}: timing by trtexec")
                # Its process ends after the figures: one round.
                rows[name]["rounds_ms"] = [runner.times_ms(feed, duration_s, warmup_s)]
                continue
            call = runner.bound(feed)
            rows[name]["first_inference_ms"] = _timed(call, clock)
            rows[name]["warmup_calls"] = 1 + _warm_up(call, warmup_s, clock)
            calls[name] = call
        except Exception as e:  # one engine's failure is its row's
            rows[name].update(status="failed", reason=" ".join(str(e).split())[:300])
    is_steady = None
    if calls:
        if steady:
            is_steady = _until_steady(calls, block_s, max_s, clock, root, log)
        log("timing {} in blocks, {:g} s each".format(", ".join(calls), duration_s))
        for name, rounds in timed_rounds(calls, duration_s, block_s, clock).items():
            rows[name]["rounds_ms"] = rounds
        for name in calls:
            extras: dict[str, Callable[[], Any]] = {}
            if rate_hz:
                log(f"{name}: {rate_hz:g} inferences a second")
                extras["rate"] = lambda name=name: at_rate(
                    calls[name], rate_hz, duration_s, meter, clock
                )
            if end_to_end is not None:
                log(f"{name}: end to end")
                extras["end_to_end_ms"] = lambda name=name: _end_to_end(
                    runners[name], feed, end_to_end, duration_s, clock
                )
            for key, measure in extras.items():
                try:
                    rows[name][key] = measure()
                except Exception as e:  # one that fails costs its own figure, not the latencies
                    log("{}: {} not measured: {}".format(name, key, " ".join(str(e).split())[:200]))
    if len(calls) == 1:  # of several in one process it would be the sum
        rows[next(iter(calls))]["peak_memory_bytes"] = peak_memory_bytes()
    return {
        "engines": list(rows.values()),
        "seconds": clock() - begin,
        "temperatures_c": {"start": start_c, "end": board_state.temperatures_c(root)},
        "steady": is_steady,
        "throttle": board_state.throttled(throttle, board_state.throttle_counts(root)),
        "fan": board_state.fan(root),
        "clocks": board_state.clocks(root),
        "mode": board_state.active_mode(root),
    }


def timed_rounds(
    calls: dict[str, Callable[[], Any]], duration_s: float, block_s: float, clock: Clock
) -> dict[str, list[list[float]]]:
    """ms of every timed call, by engine and round; at least six rounds, which the sign test needs."""
    order, rng = list(calls), random.Random(0)
    rounds: dict[str, list[list[float]]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        while len(rounds[order[0]]) < 6 or min(spent.values()) < duration_s:
            rng.shuffle(order)
            for name in order:
                times = _block(calls[name], block_s, clock)
                rounds[name].append(times)
                spent[name] += sum(times) / 1e3
    finally:
        if collecting:
            gc.enable()
    return rounds


def at_rate(
    call: Callable[[], Any],
    rate_hz: float,
    duration_s: float,
    meter: Any,
    clock: Clock,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Start one inference every 1 / rate seconds; one that begins more than a period late is late."""
    period, late, done = 1.0 / rate_hz, 0, 0
    measuring = meter is not None and meter.reason is None
    if measuring:
        meter.start()
    begin = clock()
    while clock() - begin < duration_s or done == 0:
        due = begin + done * period
        wait = due - clock()
        if wait > 0:
            sleep(wait)
        elif wait < -period:
            late += 1
        call()
        done += 1
    seconds = max(clock() - begin, done * period)
    mean_w = None
    if measuring:
        try:
            mean_w = meter.stop().mean_w
        except Exception:  # a lost window costs the watts, not the times
            mean_w = None
    return {"wanted_hz": rate_hz, "held_hz": done / seconds, "late": late, "mean_w": mean_w}


def peak_memory_bytes() -> int | None:
    """The most memory this process has held, by the kernel's ``VmHWM``."""
    text = board_state.read_text("/proc/self/status") or ""
    for line in text.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def _row(name: str, runner: Any) -> dict[str, Any]:
    return {
        "id": name,
        "status": "timed",
        "how": runner.how,
        "rounds_ms": [],
        "warmup_calls": None,
        "load_ms": runner.load_ms,
        "first_inference_ms": None,
        "peak_memory_bytes": None,
        "end_to_end_ms": None,
        "rate": None,
        "reason": None,
    }


def _timed(call: Callable[[], Any], clock: Clock) -> float:
    begin = clock()
    call()
    return (clock() - begin) * 1e3


def _warm_up(call: Callable[[], Any], seconds: float, clock: Clock) -> int:
    n, end = 0, clock() + seconds
    while n < WARMUP_MIN_CALLS or clock() < end:
        call()
        n += 1
    return n


def _block(call: Callable[[], Any], block_s: float, clock: Clock) -> list[float]:
    for _ in range(DROPPED_CALLS):
        call()
    times: list[float] = []
    end = clock() + block_s
    while not times or clock() < end:
        times.append(_timed(call, clock))
    return times


def _until_steady(
    calls: dict[str, Callable[[], Any]],
    block_s: float,
    limit_s: float | None,
    clock: Clock,
    root: str,
    log: Callable[[str], None],
) -> bool | None:
    """Run rounds until the hottest zone stays within a degree; None where no zone can be read."""
    if board_state.hottest_c(root) is None:
        return None
    seen: list[tuple[float, float]] = []
    begin = clock()
    while True:
        for call in calls.values():
            _block(call, block_s, clock)
        now = clock()
        seen.append((now, board_state.hottest_c(root) or 0.0))
        recent = [c for t, c in seen if t >= now - STEADY_S]
        if now - begin >= STEADY_S and max(recent) - min(recent) <= STEADY_C:
            return True
        if limit_s is not None and now - begin >= limit_s:
            log(f"still warming: {min(recent):.1f} to {max(recent):.1f} °C")
            return False


def _end_to_end(
    runner: Any,
    feed: dict[str, Tensor],
    end_to_end: tuple[list[str], dict[str, Any]],
    duration_s: float,
    clock: Clock,
) -> dict[str, list[float]] | None:
    """ms a frame and stage; None where Pillow or numpy is not there."""
    paths, declared = end_to_end
    images = []
    for path in paths:
        with open(path, "rb") as file:
            images.append(file.read())
    found: dict[str, list[float]] = {
        name: [] for name in ("decode", "preprocess", "infer", "postprocess")
    }
    (name,) = feed  # photos are one input
    try:
        begin, k = clock(), 0
        while k < 4 or clock() - begin < duration_s:
            marks = [clock()]
            image = decode(images[k % len(images)])
            marks.append(clock())
            x = preprocess(image, declared)[None]
            marks.append(clock())
            outputs = runner.infer_arrays({name: x})
            marks.append(clock())
            first = outputs[0] if isinstance(outputs, list) else next(iter(outputs.values()))
            first.argmax()
            marks.append(clock())
            if k >= 3:  # the first frames load code
                for stage, a, b in zip(found, marks, marks[1:]):
                    found[stage].append((b - a) * 1e3)
            k += 1
    except ImportError:
        return None
    return found
