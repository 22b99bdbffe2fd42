"""A quantization that did nothing is found by what really ran."""

from __future__ import annotations

import doctest
from importlib import import_module

import numpy as np
import pytest
from edgeml.runtime.engine import EngineOptions, LayerProfile, load_file
from edgeml.runtime.int8_share import float_layers, int8_share
from onnx import helper


def layer(name, macs, precision):
    return LayerProfile(name, "Conv", "-", precision, 0.1, macs)


def test_docstring_examples_of_the_counts():
    tested = doctest.testmod(import_module("edgeml.runtime.layer_macs"))
    assert tested.attempted == 3 and tested.failed == 0


def test_the_share_is_of_work_and_not_of_layers():
    profile = [layer("a", 90, "int8"), layer("b", 10, "fp32"), layer("relu", 0, None)]
    assert int8_share(profile) == 0.9
    assert int8_share([]) == int8_share([layer("relu", 0, None)]) == 0.0


def test_layers_left_in_float_are_named_the_largest_first():
    profile = [
        layer("a", 1, "fp32"),
        layer("b", 9, "int8"),
        layer("c", 5, "bf16"),
        layer("d", 0, None),
    ]
    assert float_layers(profile) == ["c", "a"]


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_real_engines_tell_what_they_ran(conv_onnx, int8_onnx, images, runtime):
    shares = []
    for path in (conv_onnx, int8_onnx):
        with load_file(path, runtime, EngineOptions()) as engine:
            shares.append(int8_share(engine.profile({"x": images[:1]})))
    assert shares == [0.0, 1.0]


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_transposed_convolutions_are_work_too(tmp_path, save_graph, runtime, groups):
    weights = np.ones((8, 16 // groups, 4, 4), np.float32)
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], name="up", strides=[2, 2], group=groups
    )
    path = save_graph(
        tmp_path / "up.onnx",
        [node],
        [("x", (1, 8, 6, 6))],
        [("y", (1, 16, 14, 14))],
        [("w", weights)],
    )
    with load_file(path, runtime, EngineOptions()) as engine:
        profile = engine.profile({"x": np.ones((1, 8, 6, 6), np.float32)})
    # Every one of the 8·6·6 inputs goes into 4·4 places of the 16 outputs of its group.
    assert [layer.macs for layer in profile if layer.macs] == [8 * 6 * 6 * 4 * 4 * 16 // groups]
    assert int8_share(profile) == 0.0
