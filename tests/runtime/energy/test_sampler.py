"""The integral of a power curve that is known in closed form."""

from __future__ import annotations

import doctest
import math
from importlib import import_module

import pytest
from edgeml.runtime.energy.sampler import Sampler, SamplerDied, integrate, rate
from hypothesis import given
from hypothesis import strategies as st


def test_a_sine_at_fifty_hertz_to_one_percent():
    def watts(t):
        return 10 + 5 * math.sin(2 * math.pi * t)

    def joules(t):
        return 10 * t - 5 / (2 * math.pi) * math.cos(2 * math.pi * t)

    samples = [(k / 50, watts(k / 50)) for k in range(-5, 505)]
    assert integrate(samples, 0.123, 9.57) == pytest.approx(joules(9.57) - joules(0.123), rel=1e-3)


def test_a_square_wave_at_fifty_hertz_to_one_percent():
    samples = [(t, 12.0 if int(t / 0.3717) % 2 else 2.0) for t in (k / 50 for k in range(600))]
    edges = [k * 0.3717 for k in range(30)]
    spans = [
        (max(a, 0.5), min(a + 0.3717, 10.5), 12.0 if k % 2 else 2.0) for k, a in enumerate(edges)
    ]
    truth = sum(max(0.0, b - a) * w for a, b, w in spans)
    assert integrate(samples, 0.5, 10.5) == pytest.approx(truth, rel=0.01)


@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(-5, 60)), min_size=1, max_size=30),
    st.floats(0, 10),
    st.floats(0, 10),
    st.floats(0, 10),
)
def test_windows_add_up(samples, a, b, c):
    samples = sorted(dict(samples).items())
    a, b, c = sorted((a, b, c))
    whole = integrate(samples, a, c)
    assert whole == pytest.approx(integrate(samples, a, b) + integrate(samples, b, c), abs=1e-6)


def test_nothing_is_nothing():
    assert integrate([], 0, 1) == 0.0 and integrate([(0, 1)], 1, 1) == 0.0 and rate([], 0, 1) == 0.0


def test_a_rail_that_cannot_be_opened_is_told():
    with pytest.raises(SamplerDied, match=r"No such file.*gone"):
        Sampler({"VDD_IN": ["/gone"]}, ["VDD_IN"])


@pytest.mark.parametrize("name", ["sampler", "tegrastats", "nvml"])
def test_examples_are_true(name):
    module = import_module(f"edgeml.runtime.energy.{name}")
    assert doctest.testmod(module).failed == 0
