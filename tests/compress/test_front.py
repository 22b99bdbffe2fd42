"""The front with uncertainty: what dominates, what cannot be told, who goes on."""

from __future__ import annotations

import numpy as np
import pytest
from edgeml.artifact.measurement import Measurement
from edgeml.compress.front import Scale, Versus, hypervolume, judge_front, promoted, ranks


def interval(value, low, high, unit="ratio"):
    return Measurement(value=value, unit=unit, n=10, low=low, high=high)


def versus(speed, change, size=None):
    return Versus(interval(*speed), interval(*change, unit="points"), size)


FASTER, SAME = (1.5, 1.4, 1.6), (1.02, 0.97, 1.06)


@pytest.mark.parametrize(
    ("pair", "dominates", "might"),
    [
        (versus(FASTER, (0.0, -0.3, 0.3)), True, True),
        (versus(FASTER, (0.0, -0.6, 0.6)), False, True),  # too few samples
        (versus(SAME, (2.0, 1.0, 3.0)), False, True),  # more accurate, no faster shown
        (versus(FASTER, (-1.0, -1.4, -0.6)), False, False),
        (versus(FASTER, (0.0, -0.3, 0.3), size=1.01), False, False),
        (Versus(interval(1.5, None, None)), False, True),
        (
            Versus(interval(*FASTER), energy=(interval(1, 0.9, 1.1), interval(2, 1.9, 2.1))),
            True,
            True,
        ),
        (
            Versus(interval(*FASTER), energy=(interval(1, 0.9, 2), interval(2, 1.9, 2.1))),
            False,
            True,
        ),
    ],
)
def test_domination_takes_every_interval(pair, dominates, might):
    assert (pair.dominates(), pair.might_dominate()) == (dominates, might)


def test_what_cannot_be_told_says_from_what():
    pairs = {
        ("a", "b"): versus(FASTER, (0.0, -0.3, 0.3)),
        ("b", "a"): versus((0.7, 0.6, 0.8), (0.0, -0.3, 0.3)),
        ("a", "c"): versus(SAME, (0.0, -0.3, 0.3)),
        ("c", "a"): versus((0.98, 0.94, 1.03), (0.0, -0.3, 0.3)),
        ("b", "c"): versus((0.7, 0.6, 0.8), (0.0, -0.3, 0.3)),
        ("c", "b"): versus(FASTER, (0.0, -0.6, 0.3)),
    }
    found = judge_front("abc", lambda one, other: pairs[one, other])
    assert found == {"a": ("yes", []), "b": ("no", ["a"]), "c": ("cannot tell", ["a"])}


def test_hypervolume_is_exact_against_counted_volume():
    rng = np.random.default_rng(0)
    points = rng.random((12, 3))
    samples = rng.random((200_000, 3))
    inside = (samples[:, None] >= points[None]).all(2).any(1).mean()
    assert hypervolume(points, (1, 1, 1)) == pytest.approx(inside, abs=0.005)
    assert hypervolume(np.array([[2.0, 0.1, 0.1]]), (1, 1, 1)) == 0


def test_ranks_peel_front_by_front():
    assert ranks(np.array([[0, 3], [1, 1], [3, 0], [2, 2], [4, 4]])).tolist() == [0, 0, 0, 1, 2]


def test_those_that_go_on_are_of_the_best_rank_and_lie_apart():
    values = np.array([[0.1, 0.9], [0.12, 0.89], [0.9, 0.1], [0.5, 0.5], [0.6, 0.6]])
    scale = Scale((0, 0), (1, 1))
    order = list(promoted(values, scale))
    assert len(set(order[:3]) & {0, 1}) == 1 and {2, 3} <= set(order[:3])
    assert order[-1] == 4
    assert list(promoted(np.empty((0, 2)), scale)) == []
