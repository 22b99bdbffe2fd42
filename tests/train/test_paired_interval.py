"""Paired intervals agree with published tables, keep their signs and never claim ± 0."""

from __future__ import annotations

import doctest
import math
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from edgeml.artifact.measurement import Measurement
from edgeml.errors import TaskError
from edgeml.train.paired_interval import (
    RULE_OF_THREE,
    bootstrap_scores,
    can_prove,
    fewest_samples,
    mean_interval,
    mean_upper,
    newcombe_interval,
    paired_change,
    samples_needed,
    scores_change,
    t_quantile,
    tango_interval,
    tango_upper,
    unseen_share,
    values_change,
    wilson_interval,
)
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats

# a, b, c, d of a paired table: both right, only the first, only the second, neither.
TABLES = st.tuples(*[st.integers(0, 60)] * 4).filter(lambda table: sum(table) > 0)


def test_docstring_examples():
    assert doctest.testmod(import_module("edgeml.train.paired_interval")).failed == 0


# ── against published numbers ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Newcombe 1998, Stat Med 17:2635, Table III, rows of method 10.
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3292),
        ((18, 14, 0, 18), 0.1441, 0.3963),
        ((2, 98, 0, 0), 0.9178, 0.9945),
        ((54, 0, 0, 0), -0.0664, 0.0664),
        ((53, 0, 0, 1), -0.0729, 0.0729),
        ((27, 0, 0, 27), -0.0351, 0.0351),
        # Cavo 2012 in Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables.
        ((59, 6, 16, 80), -0.1186, -0.0046),
    ],
)
def test_newcombe_method_10_gives_the_published_limits(table, low, high):
    assert newcombe_interval(*table) == pytest.approx((low, high), abs=1.01e-4)


@pytest.mark.parametrize(
    ("losses", "gains", "n", "low", "high"),
    [
        # Bentur 2009 (1, 1, 7, 12) and Cavo 2012 (59, 6, 16, 80), the same book's chapter 8.
        (1, 7, 21, -0.517, -0.026),
        (6, 16, 161, -0.1240, -0.0054),
    ],
)
def test_tango_gives_the_published_limits(losses, gains, n, low, high):
    assert tango_interval(losses, gains, n) == pytest.approx((low, high), abs=5e-4)


def test_tango_without_losses_or_gains_is_the_closed_form():
    # ± z²/(n + z²): on 360 samples ± 1.06 points.
    low, high = tango_interval(0, 0, 360)
    z2 = 1.959964**2
    assert (low, high) == pytest.approx((-z2 / (360 + z2), z2 / (360 + z2)), abs=1e-6)


def test_method_10_moves_with_how_the_unchanged_pairs_split():
    widths = {round(newcombe_interval(right, 3, 2, 355 - right)[1], 4) for right in (180, 295, 350)}
    assert len(widths) == 3


@pytest.mark.parametrize("df", [1, 2, 3, 4, 9, 10, 29, 30, 31, 120, 5000])
@pytest.mark.parametrize("p", [0.025, 0.6, 0.95, 0.975, 0.9995])
def test_t_quantile_is_scipys(p, df):
    assert t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=5e-6)


def test_wilson_is_scipys():
    for hits, n in [(0, 20), (3, 20), (360, 360), (977, 1300)]:
        expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
        assert wilson_interval(hits, n) == pytest.approx(tuple(expected), abs=1e-9)


# ── what every interval must hold ────────────────────────────────────────────────────────────────


@settings(deadline=None)
@given(TABLES)
def test_tango_contains_the_value_and_has_width(table):
    _, losses, gains, _ = table
    n = sum(table)
    low, high = tango_interval(losses, gains, n)
    value = (losses - gains) / n
    assert -1 <= low <= value + 1e-12 and value - 1e-12 <= high <= 1
    assert high - low > 1e-3


@settings(deadline=None)
@given(TABLES)
def test_swapping_reference_and_engine_mirrors_the_interval(table):
    _, losses, gains, _ = table
    low, high = tango_interval(losses, gains, sum(table))
    assert tango_interval(gains, losses, sum(table)) == pytest.approx((-high, -low), abs=1e-9)


@settings(deadline=None)
@given(TABLES, st.sampled_from([0.05, 0.025]))
def test_one_more_loss_never_lowers_the_bound(table, tail):
    both, losses, gains, neither = table
    n = sum(table)
    assume(both + neither > 0)
    assert tango_upper(losses + 1, gains, n, tail) >= tango_upper(losses, gains, n, tail) - 1e-9


@settings(deadline=None)
@given(TABLES)
def test_the_one_sided_bound_is_nearer_than_the_two_sided_end(table):
    _, losses, gains, _ = table
    n = sum(table)
    assert tango_upper(losses, gains, n, 0.05) <= tango_upper(losses, gains, n, 0.025) + 1e-12


@settings(deadline=None)
@given(st.integers(1, 100_000))
def test_no_change_at_all_leaves_three_in_n_possible(n):
    change = values_change(np.ones(n), np.ones(n), lower_is_better=False)
    assert change.change.value == 0
    assert change.change.low < 0 < change.change.high
    assert change.drop.high == pytest.approx(100 * unseen_share(n), rel=1e-6)
    assert change.drop.method == RULE_OF_THREE


def values(low: float, high: float):
    return st.lists(st.floats(low, high, width=32), min_size=1, max_size=40)


@settings(deadline=None)
@given(values(0, 1), st.booleans(), st.data())
def test_signs_worse_is_a_negative_change_and_a_positive_drop(reference, lower_is_better, data):
    shift = data.draw(st.floats(0.01, 0.5))
    reference = np.array(reference)
    worse = reference + (shift if lower_is_better else -shift)
    found = values_change(reference, worse, lower_is_better=lower_is_better)
    assert found.change.value == pytest.approx(-100 * shift)
    assert found.drop.value == pytest.approx(100 * shift)
    assert found.change.low < found.change.value < found.change.high
    assert found.drop.low < found.drop.value < found.drop.high


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.booleans())
def test_right_or_wrong_has_the_same_signs_for_accuracy_and_error_rate(pairs, lower_is_better):
    right = np.array(pairs, dtype=float)
    if lower_is_better:
        right = 1 - right  # the same answers, counted as errors
    found = values_change(right[:, 0], right[:, 1], lower_is_better=lower_is_better)
    losses = sum(a and not b for a, b in pairs)
    gains = sum(b and not a for a, b in pairs)
    assert found.change.value == pytest.approx(100 * (gains - losses) / len(pairs))
    assert found.drop.value == pytest.approx(-found.change.value)
    assert found.change.method == "tango"
    low, high = tango_interval(losses, gains, len(pairs))
    assert (found.change.low, found.change.high) == pytest.approx((-100 * high, -100 * low))


@settings(deadline=None)
@given(values(-50, 50))
@example([0.0])
@example([1.5, 1.5, 1.5])
def test_a_mean_interval_contains_the_mean_and_has_width(sample):
    sample = np.array(sample)
    low, high = mean_interval(sample, reach=1.0)
    assert low < sample.mean() < high


def test_points_per_unit_scales_the_change():
    reference, engine = np.array([30.0, 31.0, 29.5]), np.array([30.5, 31.0, 30.5])
    found = values_change(reference, engine, lower_is_better=True, points_per_unit=1.0)
    assert found.change.value == pytest.approx(-0.5)
    assert found.drop.unit == "points"


def test_a_single_differing_float_does_not_make_the_interval_collapse():
    reference = np.full(1000, 0.8)
    engine = reference.copy()
    engine[7] -= 0.1
    found = values_change(reference, engine, lower_is_better=False)
    # An unseen 3.7/n of the samples may lose as much as the one that was seen.
    assert found.change.low <= -100 * (0.1 / 1000 + 0.1 * unseen_share(1000, 0.025)) + 1e-9


# ── coverage, by simulation with fixed seeds ─────────────────────────────────────────────────────


@pytest.mark.parametrize("n", [360, 1300])
@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.01), (0.03, 0.03), (0.006, 0.0)])
def test_tango_covers_the_truth_about_as_often_as_it_says(n, lost, gained):
    draws = np.random.default_rng(5).multinomial(n, [lost, gained, 1 - lost - gained], 1500)
    truth, cache = lost - gained, {}
    for losses, gains, _ in draws:
        cache[losses, gains] = cache.get((losses, gains), 0) + 1
    held = two_sided = 0
    for (losses, gains), count in cache.items():
        low, high = tango_interval(int(losses), int(gains), n)
        two_sided += count * (low <= truth <= high)
        held += count * (tango_upper(int(losses), int(gains), n, 0.05) >= truth)
    assert two_sided / 1500 > 0.93
    assert held / 1500 > 0.93


def test_the_skewness_correction_pays_where_few_samples_lose_much():
    rng = np.random.default_rng(6)
    corrected = student = 0
    for _ in range(600):
        loss = (rng.random(200) < 0.1) * rng.exponential(0.3, 200)
        corrected += mean_upper(loss, float(loss.max()), 0.05) >= 0.03
        bound = loss.mean() + stats.t.ppf(0.95, 199) * loss.std(ddof=1) / math.sqrt(200)
        student += bound >= 0.03
    assert student / 600 < 0.92 < 0.93 < corrected / 600


@pytest.mark.parametrize(
    ("n", "lost", "gained"), [(100, 0.01, 0.005), (650, 0.01, 0.0), (300, 0.02, 0.02)]
)
def test_a_score_of_few_changed_samples_has_an_honest_bound(n, lost, gained):
    rng, resamples = np.random.default_rng(7), 200
    draws = [np.random.default_rng((0, k)).integers(0, n, n) for k in range(resamples)]
    held = 0
    for _ in range(150):
        changed = rng.choice([1.0, -1.0, 0.0], n, p=[lost, gained, 1 - lost - gained])
        replicates = np.array([changed[drawn].mean() for drawn in draws])
        found = scores_change(
            0.9,
            0.9 - changed.mean(),
            np.full(resamples, 0.9),
            0.9 - replicates,
            n,
            lower_is_better=False,
        )
        held += found.drop.high >= 100 * (lost - gained) - 1e-9
    assert held / 150 > 0.9  # by percentiles alone 0.85 and 0.89 of the first two


def test_one_gain_and_no_loss_do_not_prove_that_nothing_is_lost():
    answers = [0, *REFERENCE[1:]]  # the reference is wrong once, the engine never
    found = paired_change(
        accuracy_task(), as_outputs(answers), as_outputs(REFERENCE), REFERENCE, 0.995, 1.0
    )
    assert found.drop.value == pytest.approx(-0.5)
    assert found.drop.high > 0.5


def test_many_small_changes_have_the_bound_of_t():
    n, rng = 300, np.random.default_rng(8)
    loss = rng.normal(0.002, 0.05, n)
    task = SimpleNamespace(
        primary="m", lower_is_better=True, score=lambda o, t: {"m": float(np.mean(o))}
    )
    found = paired_change(task, [0.0] * n, loss.tolist(), [None] * n, 0.0, loss.mean())
    margin = 100 * stats.t.ppf(0.95, n - 1) * loss.std(ddof=1) / math.sqrt(n)
    assert found.drop.high - found.drop.value == pytest.approx(margin, rel=0.12)


# ── tasks ────────────────────────────────────────────────────────────────────────────────────────


def accuracy_task(**members):
    def score(outputs, targets):
        right = [output["y"] == target for output, target in zip(outputs, targets, strict=True)]
        return {"accuracy": float(np.mean(right))}

    return SimpleNamespace(primary="accuracy", lower_is_better=False, score=score, **members)


def as_outputs(answers):
    return [{"y": np.asarray(a)} for a in answers]


REFERENCE = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 20
ENGINE = [1, 2, 3, 4, 5, 6, 7, 8, 0, 0] * 5 + REFERENCE[50:]


def test_a_task_with_per_sample_gets_tango_and_one_without_a_bootstrap():
    per_sample = accuracy_task(per_sample=lambda output, target: float(output["y"] == target))
    outputs = as_outputs(REFERENCE), as_outputs(ENGINE), REFERENCE
    tango = paired_change(per_sample, *outputs, 1.0, 0.975)
    bootstrap = paired_change(accuracy_task(), *outputs, 1.0, 0.975, resamples=400)
    assert tango.change.method == "tango"
    assert bootstrap.change.method == "paired bootstrap, 400 resamples"
    assert tango.change.value == pytest.approx(-2.5)
    assert bootstrap.change.value == pytest.approx(-2.5)
    assert bootstrap.change.low == pytest.approx(tango.change.low, abs=1.5)


def test_the_bootstrap_of_equal_engines_is_not_zero_wide():
    outputs = as_outputs(REFERENCE)
    found = paired_change(accuracy_task(), outputs, outputs, REFERENCE, 1.0, 1.0, resamples=200)
    assert found.change.value == 0
    assert found.change.low < 0 < found.change.high
    assert found.drop.high == pytest.approx(100 * unseen_share(200))


def test_the_bootstrap_draws_the_same_samples_for_every_engine():
    def score(outputs, targets):
        return float(sum(targets))

    first = bootstrap_scores(score, as_outputs(REFERENCE), REFERENCE, resamples=5)
    second = bootstrap_scores(score, as_outputs(ENGINE), REFERENCE, resamples=5)
    assert first.tolist() == second.tolist()


def test_the_bootstrap_stops_at_its_time_limit_but_not_before_200():
    found = bootstrap_scores(lambda o, t: 0.5, [{}] * 3, [0] * 3, resamples=1000, time_limit_s=0.0)
    assert len(found) == 200


def test_draws_on_which_the_score_fails_are_left_out_and_told_when_most_do():
    def fragile(outputs, targets):
        if len(set(targets)) < 5:
            raise ValueError("constant")
        return {"accuracy": 1.0}

    task = SimpleNamespace(primary="accuracy", lower_is_better=False, score=fragile)
    targets = [0, 1, 2, 3, 4]
    found = paired_change(task, [{}] * 5, [{}] * 5, targets, 1.0, 1.0, resamples=200)
    assert found.change.low is None and found.change.high is None
    assert "failed on" in found.change.note


def test_a_per_sample_whose_mean_is_not_the_metric_is_not_believed():
    task = accuracy_task(per_sample=lambda output, target: 0.5)
    outputs = as_outputs(REFERENCE)
    found = paired_change(task, outputs, outputs, REFERENCE, 1.0, 1.0, resamples=200)
    assert "0.5 is not the metric 1" in found.change.note


@pytest.mark.parametrize("bad", [lambda o, t: math.nan, lambda o, t: 1 / 0, lambda o, t: "much"])
def test_a_per_sample_that_fails_is_the_tasks_fault(bad):
    outputs = as_outputs(REFERENCE)
    with pytest.raises(TaskError, match="per_sample"):
        paired_change(accuracy_task(per_sample=bad), outputs, outputs, REFERENCE, 1.0, 1.0)


# ── how many samples ─────────────────────────────────────────────────────────────────────────────


def test_the_number_needed_does_prove_it():
    lost, gained, n = 21, 15, 1300
    drop = values_of(lost, gained, n)
    assert drop.high > 0.9
    needed = samples_needed(drop, 0.9)
    more = values_of(round(lost * needed / n), round(gained * needed / n), needed)
    assert more.high == pytest.approx(0.9, abs=0.05)


def values_of(lost: int, gained: int, n: int) -> Measurement:
    reference, engine = np.ones(n), np.ones(n)
    engine[:lost] = 0
    reference[lost : lost + gained] = 0
    return values_change(reference, engine, lower_is_better=False).drop


def test_without_one_change_about_three_over_the_drop_are_needed():
    drop = values_of(0, 0, 100)
    assert samples_needed(drop, 1.0) == 300
    assert fewest_samples(1.0) == 300
    assert fewest_samples(0.0) is None


def test_no_number_proves_a_drop_that_is_over_the_budget():
    assert samples_needed(values_of(30, 0, 1000), 1.0) is None
    assert samples_needed(Measurement(value=None, unit="points"), 1.0) is None


@settings(deadline=None)
@given(st.integers(1, 20_000), st.floats(0.01, 100))
def test_can_prove_is_what_the_interval_says(n, max_drop):
    drop = 100 * unseen_share(n)
    assert can_prove(n, max_drop) == (drop <= max_drop)


def test_zero_samples_prove_nothing():
    assert not can_prove(0, 50.0)
