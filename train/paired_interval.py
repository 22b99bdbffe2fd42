"""How far an engine's metric may lie from its reference's, both scored on the same samples.

Three kinds of task, three intervals:

* right/wrong a sample (`per_sample` gives 0 and 1): Tango's score interval of the difference of
  paired proportions (Tango 1998, Stat Med 17:891). It is the default over Newcombe's method 10
  (Newcombe 1998b, Stat Med 17:2635), because it inverts the very test that a budget asks for
  (non-inferiority of a paired proportion): its one-sided bound is ≤ D exactly when that test
  rejects "the drop is above D"; and it depends on the changed pairs alone, where method 10 moves
  with how the unchanged ones split. Both are here, both are checked against published tables.
* a float a sample: of Student's paired t and Hall's skewness-corrected t (Hall 1992, JRSS B 54:221)
  each end takes the wider one. Losses of quantization are skewed (few samples lose much), where
  plain t is too short on the side that matters. Closed form, so the same numbers every run.
* only a score of the whole set: the paired bootstrap, samples drawn together for both. Each end
  takes the widest of its percentiles, expanded (Hesterberg 2015, Am Stat 69:371) so that small
  sets get no shorter one, of Hall's correction for the skewness of the replicates, and of the rule
  of three. Percentiles alone are too short where few samples changed: of 100 with one better and
  none worse they claimed that no drop is possible.

No interval has width zero: that n samples show no change at all still allows 1 − α^(1/n) of them
to change, about 3.0/n at one-sided 95 % (the rule of three, Hanley and Lippman-Hand 1983,
JAMA 249:1743).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from ..artifact.measurement import Measurement
from ..errors import TaskError, one_line

CONFIDENCE = 0.95
RESAMPLES = 1000
LEAST_RESAMPLES = 200
# Two floats that should be the same mean may differ by the order of summation, in float32 too.
SAME_MEAN = 1e-5
RULE_OF_THREE = "rule of three"

_NORMAL = NormalDist()


@dataclass(frozen=True)
class PairedChange:
    """What an engine's metric does against its reference's.

    Attributes:
        change: in points, negative is worse, with its two-sided 95 % interval.
        drop: in points, positive is worse; `high` and `low` are its one-sided 95 % bounds.
    """

    change: Measurement
    drop: Measurement


def normal_quantile(p: float) -> float:
    """The standard normal's quantile.

    >>> round(normal_quantile(0.975), 4)
    1.96
    """
    return _NORMAL.inv_cdf(p)


def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t, for whole degrees of freedom ≥ 1.

    Up to 30 the exact finite series (Abramowitz and Stegun 26.7.3, 26.7.4) is inverted by
    bisection, above it their expansion 26.7.5 is good to 1e-5.

    >>> round(t_quantile(0.975, 9), 3)
    2.262
    """
    if p < 0.5:
        return -t_quantile(1 - p, df)
    if df > 30:
        x = normal_quantile(p)
        g1 = (x**3 + x) / 4
        g2 = (5 * x**5 + 16 * x**3 + 3 * x) / 96
        g3 = (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384
        g4 = (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160
        return x + g1 / df + g2 / df**2 + g3 / df**3 + g4 / df**4
    low, high = 0.0, math.pi / 2  # of the angle atan(t/√df)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, df) < 2 * p - 1 else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def _t_within(angle: float, df: int) -> float:
    """P(|T| ≤ √df·tan(angle)), Abramowitz and Stegun 26.7.3 (odd df) and 26.7.4 (even df)."""
    cos2 = math.cos(angle) ** 2
    term = total = 0.0
    if df % 2:
        if df > 1:
            term = total = math.cos(angle)
            for k in range(3, df - 1, 2):
                term *= cos2 * (k - 1) / k
                total += term
        return 2 / math.pi * (angle + math.sin(angle) * total)
    term = total = 1.0
    for k in range(2, df - 1, 2):
        term *= cos2 * (k - 1) / k
        total += term
    return math.sin(angle) * total


def unseen_share(n: int, tail: float = 1 - CONFIDENCE) -> float:
    """The largest share that `n` samples without one case leave possible: 1 − tail^(1/n).

    >>> round(unseen_share(1000) * 1000, 2)
    2.99
    """
    return -math.expm1(math.log(tail) / n)


def wilson_interval(hits: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), two-sided.

    >>> [round(end, 4) for end in wilson_interval(81, 263)]
    [0.2553, 0.3662]
    """
    z = normal_quantile(1 - (1 - confidence) / 2)
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))


def tango_upper(losses: int, gains: int, n: int, tail: float) -> float:
    """Tango's upper bound of (losses − gains)/n at one-sided confidence 1 − `tail`.

    The bound is the difference δ at which the score test's statistic, with the discordant share
    estimated under δ, reaches −z (Tango 1998, eq. 20). Where no pair differs its z²/(n + z²) lies
    under the exact bound at small tails, and the exact one is taken.

    Args:
        losses: pairs that the reference has right and the engine wrong.
        gains: the reverse.
    """
    z = normal_quantile(1 - tail)
    low, high = (losses - gains) / n, 1.0
    for _ in range(60):
        delta = (low + high) / 2
        b = (2 * n - losses + gains) * delta - losses - gains
        c = -gains * delta * (1 - delta)
        p_gain = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        spread = math.sqrt(max(n * (2 * p_gain + delta * (1 - delta)), 0.0))
        beyond = n * delta - (losses - gains) >= z * spread
        low, high = (low, delta) if beyond else (delta, high)
    return max(high, unseen_share(n, tail)) if losses == gains == 0 else high


def tango_interval(
    losses: int, gains: int, n: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Tango's two-sided score interval of (losses − gains)/n for paired right/wrong.

    >>> [round(end, 3) for end in tango_interval(losses=1, gains=7, n=21)]  # Bentur 2009
    [-0.517, -0.026]
    """
    tail = (1 - confidence) / 2
    return -tango_upper(gains, losses, n, tail), tango_upper(losses, gains, n, tail)


def newcombe_interval(
    both_right: int, losses: int, gains: int, both_wrong: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Newcombe's method 10 for (losses − gains)/n: Wilson limits squared and added.

    The correlation φ of the pairs is corrected for continuity where it is positive (Newcombe 1998b,
    section 5), so that pairs that all agree do not give an interval of width zero.

    >>> [round(end, 4) for end in newcombe_interval(36, 12, 2, 0)]
    [0.0569, 0.3404]
    """
    n = both_right + losses + gains + both_wrong
    first, second = both_right + losses, both_right + gains
    product = both_right * both_wrong - losses * gains
    if product > 0:
        product = max(product - n / 2, 0.0)
    margins = first * (n - first) * second * (n - second)
    phi = product / math.sqrt(margins) if margins else 0.0
    p1, p2 = first / n, second / n
    low1, high1 = wilson_interval(first, n, confidence)
    low2, high2 = wilson_interval(second, n, confidence)

    def joined(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    return p1 - p2 - joined(p1 - low1, high2 - p2), p1 - p2 + joined(high1 - p1, p2 - low2)


def mean_upper(values: np.ndarray, reach: float, tail: float) -> float:
    """Upper bound of the mean of `values` at one-sided confidence 1 − `tail`.

    The widest of Student's t, of Hall's transformation that takes the skewness out of t (Hall 1992,
    section 2, the cubic one), and of the rule of three: a share of samples too small to be seen may
    lie `reach` higher.

    Args:
        values: [n] floats, one a sample.
        reach: how far one unseen sample may lie from the mean.
    """
    n, mean = len(values), float(np.mean(values))
    bounds = [mean + unseen_share(n, tail) * reach]
    deviation = float(np.std(values, ddof=1)) if n > 1 else 0.0
    if deviation > 0:
        error = deviation / math.sqrt(n)
        bounds.append(mean + t_quantile(1 - tail, n - 1) * error)
        bounds.append(_hall_upper(mean, error, _skewness(values) / math.sqrt(n), tail))
    return max(bounds)


def _skewness(values: np.ndarray) -> float:
    """The third moment over the cubed standard deviation; 0 where there is no spread."""
    deviation = float(np.std(values, ddof=1))
    return float(np.mean(((values - values.mean()) / deviation) ** 3)) if deviation > 0 else 0.0


def _hall_upper(value: float, error: float, skewness: float, tail: float) -> float:
    """Hall's bound of an estimate from its standard error and its own skewness."""
    u = skewness / 3
    if abs(u) <= 1e-9:
        return value
    y = normal_quantile(tail)
    return value - error * (float(np.cbrt(1 + 3 * u * (y - u / 2))) - 1) / u


def mean_interval(
    values: np.ndarray, reach: float, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Two-sided interval of the mean of `values` [n], each end by `mean_upper`."""
    tail = (1 - confidence) / 2
    return -mean_upper(-values, reach, tail), mean_upper(values, reach, tail)


def sample_values(task: Any, outputs: Sequence[Any], targets: Sequence[Any]) -> np.ndarray | None:
    """The primary metric a sample, [n] float64, or None where the task has no `per_sample`.

    Raises:
        TaskError: `per_sample` raises, or gives something that is no finite number.
    """
    per_sample = getattr(task, "per_sample", None)
    if per_sample is None:
        return None
    values = np.empty(len(outputs))
    for index, (output, target) in enumerate(zip(outputs, targets, strict=True)):
        try:
            values[index] = per_sample(output, target)
        except Exception as e:
            reason = f"{type(e).__name__}: {one_line(e)}"
            raise TaskError(f"the task's per_sample fails on sample {index}: {reason}") from e
        if not math.isfinite(values[index]):
            raise TaskError(
                f"the task's per_sample gives {values[index]} on sample {index}; it must be finite"
            )
    return values


def is_right_or_wrong(values: np.ndarray) -> bool:
    """Whether every value is 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def bootstrap_scores(
    score: Callable[[Sequence[Any], Sequence[Any]], float],
    outputs: Sequence[Any],
    targets: Sequence[Any],
    *,
    resamples: int = RESAMPLES,
    time_limit_s: float = 20.0,
    seed: int = 0,
) -> np.ndarray:
    """The score of `resamples` sets drawn with replacement, [B] float64.

    Draw k depends on `seed`, k and the number of samples alone, so two engines of the same samples
    get the same draws and their replicates are paired. A draw on which the score fails (as a rank
    correlation of a constant does) is NaN. After `time_limit_s` seconds it stops, not before 200.
    """
    n = len(outputs)
    start = time.monotonic()
    scores: list[float] = []
    for k in range(resamples):
        if k >= LEAST_RESAMPLES and time.monotonic() - start > time_limit_s:
            break
        drawn = _drawn(seed, k, n)
        try:
            scores.append(float(score([outputs[i] for i in drawn], [targets[i] for i in drawn])))
        except Exception:  # the full set was scored, so the fault lies in what was drawn
            scores.append(math.nan)
    return np.array(scores)


def _drawn(seed: int, k: int, n: int) -> np.ndarray:
    """The samples of draw `k`, [n] indices."""
    return np.random.default_rng((seed, k)).integers(0, n, n)


def largest_influence(losses: np.ndarray, n: int, seed: int) -> float:
    """How far one sample's loss lies from the set's, at most, seen from the replicates: the score
    follows how often a sample is drawn by 1/n of that (Efron 2014, JASA 109:991, eq. 3.6)."""
    there = np.flatnonzero(np.isfinite(losses))
    centered = losses[there] - losses[there].mean()
    follows = np.zeros(n)
    for k, loss in zip(there.tolist(), centered.tolist(), strict=True):
        if loss:
            follows += loss * np.bincount(_drawn(seed, k, n), minlength=n)
    return n * float(np.abs(follows).max()) / len(there)


def values_change(
    reference: np.ndarray,
    engine: np.ndarray,
    *,
    lower_is_better: bool,
    points_per_unit: float = 100.0,
) -> PairedChange:
    """The change of a metric that is the mean of one value a sample.

    Args:
        reference, engine: [n] floats, the same samples in the same order.
    """
    n = len(reference)
    loss = (engine - reference) if lower_is_better else (reference - engine)
    tails = ((1 - CONFIDENCE) / 2, 1 - CONFIDENCE)
    if is_right_or_wrong(reference) and is_right_or_wrong(engine):
        worse, better = int((loss > 0).sum()), int((loss < 0).sum())
        highs = [tango_upper(worse, better, n, tail) for tail in tails]
        lows = [-tango_upper(better, worse, n, tail) for tail in tails]
        method = "tango"
    else:
        largest = float(np.abs(loss).max())
        # No difference seen tells nothing of how large one would be: then all that is possible.
        reach = largest or plausible_reach(np.concatenate([reference, engine]), points_per_unit)
        highs = [mean_upper(loss, reach, tail) for tail in tails]
        lows = [-mean_upper(-loss, reach, tail) for tail in tails]
        method = "paired t, skewness-corrected"
    bound = RULE_OF_THREE if not loss.any() else method
    return _paired(float(loss.mean()), lows, highs, n, points_per_unit, method, bound)


def scores_change(
    reference: float,
    engine: float,
    reference_scores: np.ndarray,
    engine_scores: np.ndarray,
    n: int,
    *,
    lower_is_better: bool,
    points_per_unit: float = 100.0,
    note: str | None = None,
    seed: int = 0,
) -> PairedChange:
    """The change of a metric of the whole set, from paired replicates of `bootstrap_scores`.

    Args:
        reference, engine: the metric on all `n` samples.
        reference_scores, engine_scores: [B] replicates of the same draws; the shorter one counts.
        seed: of the draws.
    """
    k = min(len(reference_scores), len(engine_scores))
    sign = 1.0 if lower_is_better else -1.0
    drawn = sign * (engine_scores[:k] - reference_scores[:k])
    losses = drawn[np.isfinite(drawn)]
    value = sign * (engine - reference)
    if len(losses) < max(k // 2, 2):
        why = f"the score failed on {k - len(losses)} of {k} resampled sets: no interval"
        points = value * points_per_unit
        bare = Measurement(value=points, unit="points", n=n, note=why)
        return PairedChange(bare.model_copy(update={"value": 0.0 - points}), bare)
    if not losses.any() and value == 0:
        spread = plausible_reach(np.array([reference]), points_per_unit)
        highs = [unseen_share(n, tail) * spread for tail in (0.025, 0.05)]
        lows, method = [-end for end in highs], RULE_OF_THREE
    else:
        reach = largest_influence(drawn, n, seed)
        highs = [score_upper(value, losses, n, reach, tail) for tail in (0.025, 0.05)]
        lows = [-score_upper(-value, -losses, n, reach, tail) for tail in (0.025, 0.05)]
        method = f"paired bootstrap, {len(losses)} resamples"
    return _paired(value, lows, highs, n, points_per_unit, method, method, note)


def score_upper(value: float, losses: np.ndarray, n: int, reach: float, tail: float) -> float:
    """Upper bound of a score's loss from its [B] replicates; `reach` as in `mean_upper`."""
    error = float(np.std(losses, ddof=1))
    return max(
        float(np.quantile(losses, 1 - _expanded(tail, n))),
        _hall_upper(value, error, _skewness(losses), tail),
        value + unseen_share(n, tail) * reach,
    )


def paired_change(
    task: Any,
    ref_outputs: Sequence[Any],
    eng_outputs: Sequence[Any],
    targets: Sequence[Any],
    ref_metric: float,
    eng_metric: float,
    *,
    resamples: int = RESAMPLES,
    time_limit_s: float = 20.0,
    seed: int = 0,
) -> PairedChange:
    """What the engine's primary metric does against the reference's, on the same samples.

    Args:
        task: its `per_sample`, where it has one, else its `score` is resampled.
        ref_outputs, eng_outputs: a mapping of arrays without batch axis a sample, in one order.
        ref_metric, eng_metric: the primary metric over all of them.
        time_limit_s: bound of each of the two bootstraps.

    Raises:
        TaskError: `per_sample` raises or gives no finite number.
    """
    lower, scale = task.lower_is_better, getattr(task, "points_per_unit", 100.0)
    ref_values = sample_values(task, ref_outputs, targets)
    note = None
    if ref_values is not None:
        eng_values = sample_values(task, eng_outputs, targets)
        note = mean_mismatch(ref_values, ref_metric) or mean_mismatch(eng_values, eng_metric)
        if note is None:
            return values_change(
                ref_values, eng_values, lower_is_better=lower, points_per_unit=scale
            )

    def score(outputs: Sequence[Any], drawn: Sequence[Any]) -> float:
        return task.score(outputs, drawn)[task.primary]

    limits = {"resamples": resamples, "time_limit_s": time_limit_s, "seed": seed}
    reference = bootstrap_scores(score, ref_outputs, targets, **limits)
    engine = bootstrap_scores(score, eng_outputs, targets, **limits)
    return scores_change(
        ref_metric,
        eng_metric,
        reference,
        engine,
        len(targets),
        lower_is_better=lower,
        points_per_unit=scale,
        note=note,
        seed=seed,
    )


def mean_mismatch(values: np.ndarray, metric: float) -> str | None:
    """Why `per_sample` cannot stand for the metric, or None when its mean is the metric."""
    mean = float(values.mean())
    if abs(mean - metric) <= SAME_MEAN * max(1.0, abs(metric)):
        return None
    return f"per_sample's mean {mean:.6g} is not the metric {metric:.6g}: score was resampled"


def samples_needed(drop: Measurement, max_drop_points: float) -> int | None:
    """How many samples would prove the budget, if the drop seen here is the true one.

    A bound's distance from its value shrinks with 1/√n, and with 1/n where no sample changed.

    Returns:
        The number rounded up to two digits, or None when no number would (the value itself is over
        the budget), none below a billion would, or nothing is known of the spread.

    >>> drop = Measurement(value=0.46, unit="points", n=1300, high=1.24)
    >>> samples_needed(drop, 1.0)
    2800
    """
    if drop.value is None or drop.high is None or drop.n == 0 or drop.value >= max_drop_points:
        return None
    ratio = (drop.high - drop.value) / (max_drop_points - drop.value)
    needed = drop.n * ratio * (1.0 if drop.method == RULE_OF_THREE else ratio)
    return two_digits_up(needed) if needed < 1e9 else None


def can_prove(n: int, max_drop_points: float, points_per_unit: float = 100.0) -> bool:
    """Whether `n` right/wrong samples without one change prove the budget: n ≥ about 3.0/drop.

    >>> can_prove(298, 1.0), can_prove(299, 1.0)
    (False, True)
    """
    return n > 0 and unseen_share(n) * points_per_unit <= max_drop_points


def fewest_samples(max_drop_points: float, points_per_unit: float = 100.0) -> int | None:
    """The fewest right/wrong samples that can prove the budget; None where a billion cannot.

    >>> fewest_samples(1.0)
    300
    """
    share = max_drop_points / points_per_unit
    if share < 3e-9:
        return None
    return 1 if share >= 1 else two_digits_up(math.log(1 - CONFIDENCE) / math.log1p(-share))


def two_digits_up(number: float) -> int:
    """Rounded up to two digits: a count that is said with "about"."""
    step = 10 ** max(0, len(str(math.ceil(number))) - 2)
    return math.ceil(number / step) * step


def plausible_reach(values: np.ndarray, points_per_unit: float) -> float:
    """How far a sample's metric may plausibly move: the whole range of a fraction, else as seen."""
    if points_per_unit == 100:
        return 1.0
    return float(np.ptp(values)) or float(np.abs(values).max()) or 1.0 / points_per_unit


def _expanded(tail: float, n: int) -> float:
    """The percentile that makes a bootstrap of `n` samples as wide as t would (Hesterberg 2015)."""
    if n < 2:
        return 0.0
    return _NORMAL.cdf(-math.sqrt(n / (n - 1)) * t_quantile(1 - tail, n - 1))


def _paired(
    loss: float,
    lows: Sequence[float],
    highs: Sequence[float],
    n: int,
    scale: float,
    method: str,
    bound_method: str,
    note: str | None = None,
) -> PairedChange:
    """Both measurements in points, from a loss in units with its two-sided and one-sided ends."""
    # A bootstrap's percentiles may leave out the value itself, which would mislead.
    low2, low1 = (min(end, loss) * scale for end in lows)
    high2, high1 = (max(end, loss) * scale for end in highs)
    value = loss * scale
    shared: dict[str, Any] = {"unit": "points", "n": n, "confidence": CONFIDENCE, "note": note}
    # 0.0 - x, because -0.0 would be printed as −0.00.
    change = Measurement(
        value=0.0 - value, low=0.0 - high2, high=0.0 - low2, method=method, **shared
    )
    one_sided = RULE_OF_THREE if bound_method == RULE_OF_THREE else f"{bound_method}, one-sided"
    drop = Measurement(value=value, low=low1, high=high1, method=one_sided, **shared)
    return PairedChange(change, drop)
