"""What a sweep expects of configurations that it has not tried."""

from __future__ import annotations

import numpy as np
import pytest
from edgeml.compress.front import Scale
from edgeml.compress.sweep_model import draw, gains, parts, values_of
from edgeml.compress.sweep_space import Choice

OBJECTIVES = ("accuracy", "latency", "size", "energy")
ORIGINALS = {("a", 1): [0.2, 0.4, 1000.0, 8.0], ("b", 1): [0.0, 0.8, 4000.0, 20.0]}


def choice(share, engine="a", rung=0, kinds="block"):
    return Choice(share, kinds, engine, True, 1, rung)


def test_parts_and_values_are_inverse_to_each_other():
    values = np.array([3.0, 0.3, 700.0, 6.0])
    found = parts(OBJECTIVES, 0.6, values, np.array(ORIGINALS["a", 1]))
    again = values_of(OBJECTIVES, np.array([0.6]), found[None], np.array([ORIGINALS["a", 1]]))
    assert again[0] == pytest.approx(values)


def mean_of(tried, wanted):
    rng = np.random.default_rng(0)
    draws = [draw(OBJECTIVES, tried, ORIGINALS, [wanted], rng)[0] for _ in range(200)]
    return np.median(draws, axis=0), np.std(draws, axis=0)


def test_a_network_that_was_measured_with_one_engine_is_known_with_another():
    tried = [(choice(0.6), [5.2, 0.24, 700.0, 5.0])]
    mean, _ = mean_of(tried, choice(0.6, "b"))
    assert mean == pytest.approx([5.0, 0.48, 2800.0, 12.5], rel=0.12)


def test_what_is_far_from_all_that_was_tried_is_not_known_well():
    tried = [(choice(0.9), [0.4, 0.36, 900.0, 7.2])]
    near, far = mean_of(tried, choice(0.85)), mean_of(tried, choice(0.4, kinds="channels"))
    assert far[1][0] > 2 * near[1][0]


def test_nothing_cut_is_the_original():
    mean, _ = mean_of([], choice(0.99))
    assert mean == pytest.approx([0.2, 0.4, 1000.0, 8.0], rel=0.1, abs=0.1)


def test_gains_are_the_volume_that_a_point_adds():
    scale = Scale((0, 0), (10, 2))
    front = np.array([[5.0, 1.0]])  # a quarter of the volume
    values = np.array([[5.0, 1.0], [5.0, 0.5], [0.0, 0.0], [11.0, 0.1], [-5.0, 1.0]])
    found = gains(scale, front, values, np.random.default_rng(0))
    assert found == pytest.approx([0, 0.125, 0.75, 0, 0.25], abs=0.03)
