"""Drift of explanations on made engines, whose attributions are known."""

from __future__ import annotations

import numpy as np
import pytest
from edgeml.artifact.tensor_spec import TensorSpec
from edgeml.compress.drift import drift, rank_correlation
from edgeml.errors import EdgemlError


class Linear:
    """Two classes; the first one's output is a weighted sum of the first input."""

    runtime = "made"

    def __init__(self, weight, batch=1, name="x"):
        self.weight, self.name = weight, name
        self.input_specs = [TensorSpec(name, (batch, *weight.shape), "float32")]

    def run(self, inputs):
        x = inputs[self.name].astype(np.float64)
        assert len(x) == self.input_specs[0].shape[0]
        first = 100 + (x * self.weight).reshape(len(x), -1).sum(1)
        return {"y": np.stack([first, np.zeros(len(x))], 1)}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(3, 16, 16), (16, 20, 3), (1, 10, 10)])
def test_an_image_is_explained_by_cells(rng, shape):
    weight = rng.standard_normal(shape)
    other = rng.standard_normal(shape)
    samples = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(6)]
    same = drift([Linear(weight), Linear(weight * 2), Linear(weight)], samples, None)
    assert same["correlation"]["value"] == pytest.approx(1) == same["floor"]["value"]
    assert same["samples"] == 6 and 25 <= same["features"] <= 64 and "Occlusion" in same["method"]
    told = drift([Linear(weight), Linear(other), Linear(weight)], samples, None)
    assert abs(told["correlation"]["value"]) < 0.4
    assert told["correlation"]["low"] < told["correlation"]["value"] < told["correlation"]["high"]


def test_a_fixed_batch_is_filled_up(rng):
    weight = rng.standard_normal((3, 8, 8))
    samples = [{"x": rng.standard_normal((3, 8, 8)).astype(np.float32)}]
    told = drift([Linear(weight), Linear(weight, batch=4), Linear(weight)], samples, None)
    assert told["rows"][0]["correlation"] == pytest.approx(1)


def test_tokens_are_explained_without_their_padding(rng):
    weight = rng.standard_normal(12)
    mask = np.array([1] * 7 + [0] * 5)
    samples = [
        {"input_ids": rng.integers(1, 50, 12) * mask, "attention_mask": mask} for _ in range(3)
    ]
    engine = Linear(weight, name="input_ids")
    told = drift([engine, engine, engine], samples, None)
    assert told["features"] == 7 and "token" in told["method"]
    assert told["correlation"]["value"] == pytest.approx(1)


def test_a_series_is_explained_by_its_values(rng):
    weight = rng.standard_normal((40, 9))
    samples = [{"x": rng.standard_normal((40, 9)).astype(np.float32)} for _ in range(2)]
    told = drift([Linear(weight)] * 3, samples, None)
    assert told["features"] == 180 and told["correlation"]["value"] == pytest.approx(1)


def test_maps_without_an_order_are_left_out(rng):
    assert rank_correlation(np.zeros(5), np.arange(5)) is None
    weight = rng.standard_normal((3, 8, 8))
    samples = [{"x": rng.standard_normal((3, 8, 8)).astype(np.float32)} for _ in range(3)]
    told = drift([Linear(weight), Linear(weight * 0), Linear(weight)], samples, None)
    assert told["correlation"]["value"] is None and told["correlation"]["how"] == "not measured"
    assert told["floor"]["n"] == 3


def test_outputs_that_name_no_class_are_said(rng):
    engine = Linear(rng.standard_normal((3, 8, 8)))
    engine.run = lambda inputs: {"y": np.zeros((1, 1))}
    sample = {"x": np.zeros((3, 8, 8), np.float32)}
    with pytest.raises(EdgemlError, match="names none"):
        drift([engine] * 3, [sample], None)
