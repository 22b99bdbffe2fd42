"""Blocks interleave, ratios are true, and nothing is claimed that the rounds do not show.

A clock of our own makes every test exact: each inference takes as long as its engine says.
"""

from __future__ import annotations

import gc

import numpy as np
import pytest
from edgeml.artifact.tensor_spec import TensorSpec
from edgeml.errors import InputError
from edgeml.runtime import latency
from edgeml.runtime.latency import (
    DROPPED_CALLS,
    bench,
    compare,
    order_interval,
    percentile_intervals,
)
from edgeml.runtime.null_engine import NullEngine
from scipy import stats

X = {"x": np.zeros((2, 3), np.float32)}


class Clock:
    """Nanoseconds that pass only when an engine runs."""

    def __init__(self):
        self.now = 0
        self.ran: list[str] = []

    def __call__(self):
        return self.now

    def engine(self, name, ms, noise=0.0, seed=0):
        return TimedEngine(self, name, ms, noise, seed)


class TimedEngine(NullEngine):
    """Takes `ms` of the clock, give or take `noise` of it; `ms` may depend on the time."""

    def __init__(self, clock, name, ms, noise, seed):
        super().__init__(
            [TensorSpec("x", (None, 3), "float32")], [TensorSpec("y", (None,), "float32")]
        )
        self.clock, self.name, self.noise = clock, name, noise
        self.ms = ms if callable(ms) else lambda now_s: ms
        self.rng = np.random.default_rng(seed)

    def run(self, inputs):
        ms = self.ms(self.clock.now / 1e9) * (1 + self.noise * abs(self.rng.standard_normal()))
        self.clock.now += round(ms * 1e6)
        self.clock.ran.append(self.name)
        return super().run(inputs)

    def throughput(self, inputs, duration_s):
        return 7, duration_s


@pytest.fixture
def clock():
    return Clock()


def blocks_of(ran):
    """The order in which engines took turns."""
    return [name for k, name in enumerate(ran) if k == 0 or ran[k - 1] != name]


# ── what is timed ────────────────────────────────────────────────────────────────────────────────


def test_constant_times_are_read_exactly(clock):
    result = bench({"a": clock.engine("a", 2.0)}, X, duration_s=1, clock=clock)
    for measurement in (result["a"].p50_ms, result["a"].p90_ms, result["a"].p99_ms):
        assert measurement.value == measurement.low == measurement.high == pytest.approx(2.0)
        assert measurement.unit == "ms" and measurement.how == "measured"
    assert result["a"].speedup is None
    assert result["a"].p50_ms.n == len(result["a"].samples_ms)
    assert sum(result["a"].samples_ms) == pytest.approx(1000, rel=0.1)


def test_engines_take_turns_in_short_blocks(clock):
    engines = {name: clock.engine(name, 1.0) for name in "abc"}
    result = bench(engines, X, duration_s=1, warmup=0, clock=clock)
    assert {len(result[name].blocks_ms) for name in "abc"} == {17}  # 1 s in blocks of 60 ms
    assert {len(b) for name in "abc" for b in result[name].blocks_ms} == {60}
    turns = len(blocks_of(clock.ran))
    assert (
        30 <= turns <= 51
    )  # where a round ends and the next begins with the same engine, one less
    # Each round has each engine once: no engine is ever two blocks ahead.
    calls = np.array([[r == name for r in clock.ran] for name in "abc"]).cumsum(1)
    assert np.ptp(calls, axis=0).max() <= 60 + DROPPED_CALLS


def test_the_order_within_a_round_is_drawn_anew(clock):
    engines = {name: clock.engine(name, 1.0) for name in "ab"}
    bench(engines, X, duration_s=1, warmup=0, clock=clock)
    rounds = {tuple(pair) for pair in zip(clock.ran[::126], clock.ran[63::126], strict=False)}
    assert rounds == {("a", "b"), ("b", "a")}


def test_the_first_calls_of_a_block_are_not_timed(clock):
    # An engine that is slow whenever another one ran before it.
    def cold(now_s):
        return 9.0 if clock.ran[-1:] != ["a"] else 1.0

    engines = {"a": clock.engine("a", cold), "b": clock.engine("b", 1.0)}
    result = bench(engines, X, duration_s=1, clock=clock)
    assert result["a"].samples_ms.max() == pytest.approx(1.0)


@pytest.mark.parametrize("iterations", [1, 2, 7, 100, 1003])
def test_iterations_and_warm_up_are_exact(clock, iterations):
    engines = {name: clock.engine(name, ms) for name, ms in (("a", 0.1), ("b", 40.0))}
    result = bench(engines, X, iterations=iterations, warmup=5, clock=clock)
    for name in "ab":
        assert result[name].p50_ms.n == len(result[name].samples_ms) == iterations
        assert result[name].warmup_calls == 5
        untimed = 5 + DROPPED_CALLS * len(result[name].blocks_ms)
        assert clock.ran.count(name) == iterations + untimed


def test_without_warm_up_there_is_none(clock):
    bench({"a": clock.engine("a", 1.0)}, X, iterations=3, warmup=0, clock=clock)
    assert len(clock.ran) == 3 + DROPPED_CALLS


def test_warm_up_goes_on_until_steady(clock):
    steady = bench({"a": clock.engine("a", 1.0)}, X, iterations=1, clock=clock)
    assert steady["a"].warmup_calls == 20  # two windows of ten that agree
    clock = Clock()
    falling = clock.engine("a", lambda now_s: 1.0 + 10 * max(0.0, 0.3 - now_s))
    result = bench({"a": falling}, X, iterations=50, clock=clock)
    assert result["a"].warmup_calls > 20
    assert result["a"].samples_ms.max() < 1.1
    clock = Clock()
    never = clock.engine("a", lambda now_s: 1.0 + now_s * 20)
    assert bench({"a": never}, X, iterations=1, clock=clock)["a"].warmup_calls < 200


def test_a_slow_engine_is_not_timed_as_long_as_a_fast_ones_blocks_take(clock):
    engines = {"fast": clock.engine("fast", 0.1), "slow": clock.engine("slow", 500.0)}
    result = bench(engines, X, duration_s=2, warmup=0, clock=clock)
    assert len(result["slow"].blocks_ms) == latency.MIN_ROUNDS
    assert sum(result["fast"].samples_ms) == pytest.approx(2000, rel=0.05)
    assert result.timings["slow"].p50_ms.low is not None


def test_the_garbage_collector_waits_and_comes_back(clock):
    seen = []

    class Watching(TimedEngine):
        def run(self, inputs):
            seen.append(gc.isenabled())
            return super().run(inputs)

    bench({"a": Watching(clock, "a", 1.0, 0, 0)}, X, iterations=2, clock=clock)
    assert gc.isenabled() and not any(seen)


def test_inputs_are_one_set_for_all_or_one_each(clock):
    engines = {name: clock.engine(name, 1.0) for name in "ab"}
    bench(engines, {"a": X, "b": X}, iterations=1, clock=clock)
    with pytest.raises(InputError, match="input 'x' is missing"):
        bench(engines, {"a": X, "b": {"z": X["x"]}}, iterations=1, clock=clock)
    assert gc.isenabled()


def test_bad_calls_are_told(clock):
    with pytest.raises(InputError, match="nothing to time"):
        bench({}, X)
    with pytest.raises(InputError, match=r"no engine 'torhc' to .*mean torch\?"):
        bench({"torch": clock.engine("torch", 1)}, X, reference="torhc", clock=clock)


# ── intervals ────────────────────────────────────────────────────────────────────────────────────


def test_percentiles_lie_in_their_intervals_and_rare_spikes_do_not_move_p99(clock):
    spikes = iter(range(10**9))
    spiky = clock.engine("a", lambda now_s: 50.0 if next(spikes) % 500 == 0 else 1.0, noise=0.02)
    timing = bench({"a": spiky}, X, duration_s=4, clock=clock)["a"]
    assert timing.samples_ms.max() > 49
    for measurement in (timing.p50_ms, timing.p90_ms, timing.p99_ms):
        assert measurement.low <= measurement.value <= measurement.high < 1.2
    assert timing.p50_ms.value < timing.p90_ms.value < timing.p99_ms.value


@pytest.mark.parametrize("iterations", [1, 3, 15])
def test_fewer_than_six_rounds_have_no_interval(clock, iterations):
    timing = bench({"a": clock.engine("a", 1.0, noise=0.5)}, X, iterations=iterations, clock=clock)
    for measurement in (timing["a"].p50_ms, timing["a"].p99_ms):
        assert measurement.low is measurement.high is None
        assert "too few for an interval" in measurement.note


def test_few_calls_do_not_bound_a_high_percentile(clock):
    engines = {"a": clock.engine("a", 500.0, noise=0.1)}
    timing = bench(engines, X, duration_s=2, clock=clock)["a"]
    assert timing.p99_ms.n == 18
    assert timing.p99_ms.low is not None and timing.p99_ms.high is None
    assert timing.p99_ms.note == "18 calls do not bound it from above"
    assert timing.p50_ms.high is not None


@pytest.mark.parametrize("n", [6, 7, 20, 101, 367, 368, 1000, 30_000])
@pytest.mark.parametrize("p", [50, 90, 99])
def test_order_statistics_bound_a_percentile_as_the_binomial_says(n, p):
    low, high = order_interval(np.arange(n), p)
    # The value of rank r (from 1) is over the percentile when at most r − 1 values lie below it.
    share = p / 100
    assert (high is None) == (share**n > 0.025)
    if high is not None:
        assert stats.binom.sf(high, n, share) <= 0.025 < stats.binom.sf(high - 1, n, share)
    if low is not None:
        assert stats.binom.cdf(low, n, share) <= 0.025 < stats.binom.cdf(low + 1, n, share)


@pytest.mark.parametrize(("blocks", "calls"), [(6, 3), (10, 10)])
def test_intervals_hold_the_truth_when_blocks_are_few(blocks, calls, monkeypatch):
    monkeypatch.setattr(latency, "RESAMPLES", 200)
    rng = np.random.default_rng(1)

    def rounds(n):
        speed = np.exp(rng.normal(0, 0.03, (n, 1)))
        return list(speed * np.exp(rng.normal(0, 0.05, (n, calls))))

    truth = np.percentile(np.concatenate(rounds(20_000)), (50, 99))
    held = np.zeros(2)
    for _ in range(100):
        for k, m in enumerate(percentile_intervals(rounds(blocks), (50, 99), rng)):
            held[k] += m.low <= truth[k] and (m.high is None or truth[k] <= m.high)
    assert held.min() / 100 >= 0.9


@pytest.mark.parametrize("rounds", [6, 7, 8, 20])
def test_few_rounds_make_no_more_false_verdicts_than_many(rounds):
    rng, false = np.random.default_rng(2), 0
    for _ in range(400):
        a, b = np.exp(rng.normal(0, 0.05, (2, rounds, 1)))
        ratio = latency._ratio(list(a), list(b), rng)
        false += ratio.low > 1 or ratio.high < 1
    assert false / 400 < 0.07  # by the bootstrap alone 0.14 of seven rounds


def test_more_samples_make_the_interval_narrower():
    widths = []
    for seconds in (1, 20):
        clock = Clock()
        p50 = bench({"a": clock.engine("a", 1.0, noise=0.3)}, X, duration_s=seconds, clock=clock)
        widths.append(p50["a"].p50_ms.high - p50["a"].p50_ms.low)
    assert widths[1] < widths[0] / 2


# ── comparison ───────────────────────────────────────────────────────────────────────────────────


def two(clock, ms_a, ms_b, noise=0.1, **how):
    engines = {"a": clock.engine("a", ms_a, noise, 1), "b": clock.engine("b", ms_b, noise, 2)}
    return bench(engines, X, reference="a", clock=clock, **(how or {"duration_s": 2}))


def test_an_engine_that_is_twice_as_slow_is_told_so(clock):
    result = two(clock, 1.0, 2.0)
    slower = compare(result, "b", "a")
    assert slower.verdict == "slower" and slower.text.startswith("b is slower than a: 0.50 × (0.")
    assert slower.ratio.low <= 0.5 <= slower.ratio.high
    faster = compare(result, "a", "b")
    assert faster.verdict == "faster" and faster.text.startswith("a is faster than b: 2.00 × (")
    assert faster.ratio.low <= 2 <= faster.ratio.high
    assert faster.ratio.high - faster.ratio.low < 0.1
    speedup = result["b"].speedup
    assert (speedup.value, speedup.unit) == (pytest.approx(0.5, rel=0.02), "ratio")
    assert result["a"].speedup.value == result["a"].speedup.low == 1.0


def test_the_same_engine_twice_shows_no_difference(clock):
    found = compare(two(clock, 1.0, 1.0), "a", "b")
    assert found.verdict == "no difference shown"
    assert found.text.startswith("no difference shown between a and b: 1.00 × (")
    assert found.ratio.low < 1 < found.ratio.high


def test_a_machine_that_drifts_hurts_both_alike():
    clock = Clock()

    def drifting(now_s):
        return 1.0 + now_s  # five times slower at the end than in the beginning

    assert compare(two(clock, drifting, drifting), "a", "b").verdict == "no difference shown"
    clock = Clock()
    twice = two(clock, drifting, lambda now_s: 2 * drifting(now_s))
    assert compare(twice, "a", "b").ratio.value == pytest.approx(2, rel=0.1)


def test_false_verdicts_are_as_rare_as_the_interval_says():
    verdicts = []
    for seed in range(30):
        clock = Clock()
        engines = {
            name: clock.engine(name, 5.0, noise=0.2, seed=2 * seed + k)
            for k, name in enumerate("ab")
        }
        result = bench(engines, X, iterations=60, warmup=0, clock=clock, seed=seed)
        verdicts.append(compare(result, "a", "b").verdict)
    assert verdicts.count("no difference shown") >= 25  # 95 % of 30 are 28.5


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_few_rounds_show_no_difference_whatever_they_say(clock, iterations):
    result = two(clock, 1.0, 9.0, iterations=iterations, warmup=0)
    found = compare(result, "a", "b")
    assert found.verdict == "no difference shown"
    assert "too few for an interval" in found.text
    assert found.ratio.value > 2 and found.ratio.low is None is found.ratio.high
    assert result["b"].speedup.low is None


def test_a_hundred_iterations_are_enough_for_a_verdict(clock):
    assert compare(two(clock, 1.0, 2.0, iterations=100), "a", "b").verdict == "faster"


# ── throughput ───────────────────────────────────────────────────────────────────────────────────


def test_throughput_counts_samples_and_not_inferences(clock):
    found = latency.throughputs({"a": clock.engine("a", 1)}, {"a": X}, 1.0)["a"]
    assert found.value == found.low == found.high == pytest.approx(7 * 2 * 5)
    assert (found.unit, found.n) == ("1/s", 5)


def test_an_engine_without_parallel_requests_says_so():
    found = latency.throughputs({"a": NullEngine([], [])}, {"a": X}, 1.0)["a"]
    assert found.how == "not measured" and found.note == "null has no parallel requests here"


def test_windows_of_throughput_take_turns():
    clock = Clock()
    asked = []

    class Counting(TimedEngine):
        def throughput(self, inputs, duration_s):
            asked.append(self.name)
            return 10, duration_s

    engines = {name: Counting(clock, name, 1, 0, 0) for name in "ab"}
    engines["none"] = NullEngine([], [])
    found = latency.throughputs(engines, dict.fromkeys(engines, X), 1.0)
    assert [sorted(asked[k : k + 2]) for k in range(0, 10, 2)] == [["a", "b"]] * 5
    assert found["a"].value == pytest.approx(100) and found["a"].n == 5
    assert found["none"].how == "not measured" and "no parallel requests" in found["none"].note
