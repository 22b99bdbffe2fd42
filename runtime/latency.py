"""Honest latency: warm-up until steady, interleaved blocks in one process, block-bootstrap intervals.

In blocks, each with its own few warm-up calls: alternating single inferences evicts each other's
weights from the cache and made ResNet-50 INT8 look twice as slow as it is. A machine that drifts
hurts all engines of a round alike, so ratios are taken round by round.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from ..artifact.machine import cpu_times, noise_warning
from ..artifact.measurement import Measurement, not_measured
from ..errors import InputError, nearest
from .engine import Engine

BLOCK_S = 0.06
DROPPED_CALLS = 3
# Below six rounds even "every round was faster" has a chance of more than 5 % (sign test: 2 · 2⁻ⁿ).
MIN_ROUNDS = 6
# Of a given number of iterations.
ITERATION_ROUNDS = 20
WARMUP_MIN_CALLS = 10
WARMUP_MAX_S = 1.0
STEADY = 0.03
RESAMPLES = 1000
TAIL = 0.025

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Timing:
    """One engine's latency.

    Attributes:
        p50_ms, p90_ms, p99_ms: with 95 % intervals; an end that so few calls do not show is None.
        speedup: reference p50 / this p50, the median over rounds; None without a reference.
        samples_ms: every timed inference.
        blocks_ms: the same, a list a round.
        warmup_calls: inferences before the first block (each block drops its first three as well).
    """

    p50_ms: Measurement
    p90_ms: Measurement
    p99_ms: Measurement
    speedup: Measurement | None
    samples_ms: np.ndarray
    blocks_ms: list[np.ndarray]
    warmup_calls: int


@dataclass(frozen=True)
class BenchResult:
    """Timings by engine id; `warnings` says how noisy the machine was."""

    timings: dict[str, Timing]
    warnings: list[str]

    def __getitem__(self, engine_id: str) -> Timing:
        return self.timings[engine_id]


@dataclass(frozen=True)
class Comparison:
    """One engine against another.

    Attributes:
        ratio: other's p50 / this one's, above 1 is faster, with its 95 % interval.
        verdict: what the interval shows.
        text: the same as a line.
    """

    ratio: Measurement
    verdict: Literal["faster", "slower", "no difference shown"]
    text: str


def bench(
    engines: Mapping[str, Engine],
    inputs: Mapping[str, Inputs] | Inputs,
    *,
    duration_s: float = 2.0,
    iterations: int | None = None,
    warmup: int | None = None,
    reference: str | None = None,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> BenchResult:
    """Time engines in interleaved blocks.

    Args:
        engines: by id.
        inputs: one set of arrays for all, or a set an engine id.
        duration_s: timed seconds an engine; at least six blocks.
        iterations: exactly so many timed inferences an engine instead.
        warmup: exactly so many inferences before the first block; None runs until steady.
        reference: the engine that `speedup` is against.
        seed: of the order of engines in a round and of the bootstrap.
        clock: nanoseconds.

    Raises:
        InputError: there is no engine, none named `reference`, or the inputs do not fit one.
    """
    if not engines:
        raise InputError("nothing to time: no engine")
    if reference is not None and reference not in engines:
        raise InputError(f"no engine {reference!r} to compare with, {nearest(reference, engines)}")
    feeds = {
        name: (inputs[name] if name in inputs and isinstance(inputs[name], Mapping) else inputs)
        for name in engines
    }
    rng = np.random.default_rng(seed)
    before = cpu_times()
    collecting = gc.isenabled()
    gc.disable()
    try:
        warm = {
            name: _warm_up(engine, feeds[name], warmup, clock) for name, engine in engines.items()
        }
        blocks = _blocks(engines, feeds, duration_s, iterations, rng, clock)
    finally:
        if collecting:
            gc.enable()
    warning = noise_warning(before, cpu_times())
    timings = timings_of(blocks, warm, reference, rng)
    return BenchResult(timings, [warning] if warning else [])


def timings_of(
    blocks: Mapping[str, list[np.ndarray]],
    warm: Mapping[str, int],
    reference: str | None,
    rng: np.random.Generator,
) -> dict[str, Timing]:
    """Timings from rounds of blocks, wherever they were taken.

    Args:
        blocks: by engine, its milliseconds a round; round k of every engine belongs together.
        warm: by engine, inferences before the first block.
    """
    base = blocks.get(reference) if reference else None
    timings = {}
    for name, rounds in blocks.items():
        samples = np.concatenate(rounds)
        p50, p90, p99 = percentile_intervals(rounds, (50, 90, 99), rng)
        speedup = _ratio(base, rounds, rng) if base is not None else None
        timings[name] = Timing(p50, p90, p99, speedup, samples, rounds, warm[name])
    return timings


def compare(result: BenchResult, engine_id: str, other_id: str, seed: int = 0) -> Comparison:
    """Whether one engine is faster than another, by the interval of the ratio of their medians."""
    rng = np.random.default_rng(seed)
    ratio = _ratio(result[other_id].blocks_ms, result[engine_id].blocks_ms, rng)
    if ratio.low is None:
        text = f"no difference shown between {engine_id} and {other_id}: {ratio.value:.2f} ×, {ratio.note}"
        return Comparison(ratio, "no difference shown", text)
    span = f"{ratio.value:.2f} × ({ratio.low:.2f} {ratio.high:.2f})"
    if ratio.low > 1:
        return Comparison(ratio, "faster", f"{engine_id} is faster than {other_id}: {span}")
    if ratio.high < 1:
        return Comparison(ratio, "slower", f"{engine_id} is slower than {other_id}: {span}")
    text = f"no difference shown between {engine_id} and {other_id}: {span}"
    return Comparison(ratio, "no difference shown", text)


def throughputs(
    engines: Mapping[str, Engine],
    inputs: Mapping[str, Inputs],
    duration_s: float,
    windows: int = 5,
    seed: int = 0,
) -> dict[str, Measurement]:
    """Samples a second with parallel requests, by engine: the median of several windows, and their range.

    Windows take turns, in an order drawn anew each round: a machine that drifts hurts all alike.

    Args:
        inputs: a set an engine id.
        duration_s: of all windows of one engine together.
    """
    rng, names = np.random.default_rng(seed), list(engines)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(windows):
        for name in (names[i] for i in rng.permutation(len(names))):
            try:
                count, seconds = engines[name].throughput(inputs[name], duration_s / windows)
            except NotImplementedError:
                continue
            rates[name].append(count * batch_of(inputs[name]) / seconds)
    return {
        name: Measurement(
            value=float(np.median(found)),
            unit="1/s",
            n=len(found),
            low=min(found),
            high=max(found),
            method=f"median of {len(found)} windows, their range",
        )
        if found
        else not_measured("1/s", f"{engines[name].runtime} has no parallel requests here")
        for name, found in rates.items()
    }


def batch_of(inputs: Inputs) -> int:
    """Samples in one inference: axis 0 of the first input that has one."""
    return next((array.shape[0] for array in inputs.values() if array.ndim), 1)


def _warm_up(engine: Engine, feed: Inputs, calls: int | None, clock: Callable[[], int]) -> int:
    """Run until the medians of two windows in a row agree within 3 %, a second at most."""
    if calls is not None:
        for _ in range(calls):
            engine.run(feed)
        return calls
    done, previous, begin = 0, None, clock()
    while True:
        window = []
        for _ in range(WARMUP_MIN_CALLS):
            start = clock()
            engine.run(feed)
            window.append(clock() - start)
        done += WARMUP_MIN_CALLS
        median = float(np.median(window))
        steady = previous is not None and abs(median - previous) <= STEADY * previous
        if steady or (clock() - begin) / 1e9 > WARMUP_MAX_S:
            return done
        previous = median


def _blocks(
    engines: Mapping[str, Engine],
    feeds: Mapping[str, Inputs],
    duration_s: float,
    iterations: int | None,
    rng: np.random.Generator,
    clock: Callable[[], int],
) -> dict[str, list[np.ndarray]]:
    """Rounds of one block an engine, in an order drawn anew each round; times in ms.

    An engine that has had its time drops out, so that a slow one is not timed for as long as the
    short blocks of a fast one take.
    """
    names = list(engines)
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in names}
    left_ns = dict.fromkeys(names, duration_s * 1000000000.0)
    left_calls = dict.fromkeys(names, iterations)
    most = None if iterations is None else max(3, -(-iterations // ITERATION_ROUNDS))

    def unfinished(name: str) -> bool:
        if iterations is not None:
            return left_calls[name] > 0
        return left_ns[name] > 0 or len(blocks[name]) < MIN_ROUNDS

    while any(unfinished(name) for name in names):
        for index in rng.permutation(len(names)):
            name = names[index]
            if not unfinished(name):
                continue
            calls = None if most is None else min(most, left_calls[name])
            block = _block(engines[name], feeds[name], calls, clock)
            blocks[name].append(block / 1e6)
            left_ns[name] -= float(block.sum())
            if iterations is not None:
                left_calls[name] -= len(block)
    return blocks


def _block(engine: Engine, feed: Inputs, calls: int | None, clock: Callable[[], int]) -> np.ndarray:
    """One block's times in ns, its first calls dropped: so many calls, or about 60 ms, at least three."""
    run = engine.run
    for _ in range(DROPPED_CALLS):
        run(feed)
    times, end = [], clock() + BLOCK_S * 1e9
    while len(times) < calls if calls is not None else len(times) < 3 or clock() < end:
        start = clock()
        run(feed)
        times.append(clock() - start)
    return np.array(times, dtype=np.float64)


def percentile_intervals(
    rounds: list[np.ndarray], percentiles: Sequence[float], rng: np.random.Generator
) -> list[Measurement]:
    """Percentiles of all calls, in ms, with their 95 % intervals.

    Each end is the wider of two: whole blocks drawn with replacement, which sees how blocks differ,
    and the order statistics of all calls, which see how few calls lie beyond a high percentile.
    (Blocks alone held the p99 of 18 calls in 18 % of simulated runs, of 400 in 89 %.)

    Args:
        rounds: the calls of each block.
    """
    samples, found = np.concatenate(rounds), []
    for p, (low, high) in zip(percentiles, _bootstrap(rounds, percentiles, rng), strict=True):
        value, note = float(np.percentile(samples, p)), None
        first, last = order_interval(samples, p)
        ends = {
            "low": None if first is None else float(min(low, value, first)),
            "high": None if last is None else float(max(high, value, last)),
        }
        if len(rounds) < MIN_ROUNDS:
            ends, note = {}, _too_few(len(rounds))
        elif last is None:
            note = f"{len(samples)} calls do not bound it from above"
        method = "block bootstrap, order statistics" if ends else None
        found.append(
            Measurement(value=value, unit="ms", n=len(samples), method=method, note=note, **ends)
        )
    return found


def order_interval(values: np.ndarray, p: float) -> tuple[float | None, float | None]:
    """The 95 % interval of a percentile whatever the law of `values` is, between two of them.

    Of n values the number above the percentile is binomial; an end that even the outermost value
    does not bound is None.

    >>> order_interval(np.arange(6), 50), order_interval(np.arange(300), 99)
    ((0.0, 5.0), (292.0, None))
    """
    n, share = len(values), 1 - p / 100
    if not 0 < share < 1:  # the smallest or largest time there could ever be
        return None, None
    k = np.arange(n)
    steps = np.log((n - k) / (k + 1) * share / (1 - share))
    below = np.cumsum(np.exp(n * np.log(1 - share) + np.concatenate([[0.0], np.cumsum(steps)])))
    last = int(np.searchsorted(below, TAIL, side="right")) - 1
    first = int(np.searchsorted(below, 1 - TAIL))
    falling = np.sort(values)[::-1]
    return (
        float(falling[first]) if first < n else None,
        float(falling[last]) if last >= 0 else None,
    )


def _too_few(rounds: int) -> str:
    return f"{rounds} round{'s' * (rounds > 1)} of blocks are too few for an interval"


def _tail(n: int) -> float:
    """The percentile that makes a bootstrap of `n` blocks as wide as Student's t (Hesterberg 2015)."""
    if n < 2:
        return 0.0
    normal, df = NormalDist(), n - 1
    z = -normal.inv_cdf(TAIL)
    t = z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
    return normal.cdf(-t * (n / df) ** 0.5)


def _bootstrap(
    rounds: list[np.ndarray], percentiles: Sequence[float], rng: np.random.Generator
) -> list[tuple[float, float]]:
    """95 % intervals of percentiles, whole blocks drawn with replacement (Künsch 1989).

    Each block is thinned to 256 of its ordered samples first, taken at the middles of equal shares:
    that keeps its distribution to the 99th percentile and makes an engine's thousand resamples take
    milliseconds. (With its two ends among 64 points, the slowest call of a block counted as 1.6 %.)
    """
    middles = (np.arange(256) + 0.5) / 256
    thin = np.array([np.quantile(b, middles, method="inverted_cdf") for b in rounds])
    # Weights by block length, so that a block of three slow calls does not count as one of 500.
    weights = np.array([len(b) for b in rounds], dtype=np.float64)
    resamples = 400 if len(rounds) > 50 else RESAMPLES
    draws = rng.integers(0, len(rounds), (resamples, len(rounds)))
    found = np.empty((len(draws), len(percentiles)))
    flat_order = np.argsort(thin, axis=None)
    owner = (flat_order // thin.shape[1]).astype(np.int64)
    values = thin.ravel()[flat_order]
    for i, draw in enumerate(draws):
        counts = np.bincount(draw, minlength=len(rounds)) * weights
        cumulative = np.cumsum(counts[owner])
        targets = np.array(percentiles) / 100 * cumulative[-1]
        found[i] = values[np.minimum(np.searchsorted(cumulative, targets), len(values) - 1)]
    tail = _tail(len(rounds))
    return [tuple(np.quantile(found[:, k], (tail, 1 - tail))) for k in range(len(percentiles))]


def _ratio(
    base: list[np.ndarray], rounds: list[np.ndarray], rng: np.random.Generator
) -> Measurement:
    """base / engine by the medians of paired rounds; rounds are resampled.

    The interval is no narrower than that of the order statistics (the sign test turned round): by
    the bootstrap alone an engine differed from itself in 14 % of simulated runs of seven rounds.
    """
    n = min(len(base), len(rounds))
    ratios = np.array([np.median(base[i]) / np.median(rounds[i]) for i in range(n)])
    if n < MIN_ROUNDS:
        return Measurement(value=float(np.median(ratios)), unit="ratio", n=n, note=_too_few(n))
    draws = rng.integers(0, n, (RESAMPLES, n))
    low, high = np.quantile(np.median(ratios[draws], axis=1), (TAIL, 1 - TAIL))
    first, last = order_interval(ratios, 50)
    return Measurement(
        value=float(np.median(ratios)),
        unit="ratio",
        n=n,
        low=float(min(low, first)),
        high=float(max(high, last)),
        method="bootstrap of rounds, sign test",
    )
