"""How rows and numbers read."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest
from edgeml.artifact.result_row import EngineRow
from edgeml.artifact.row_text import decimals, engine_label, engine_name, significant


def test_docstring_examples():
    assert doctest.testmod(import_module("edgeml.artifact.row_text")).failed == 0


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"precision": "int8", "route": "nncf performance"}, "openvino int8 (nncf performance)"),
        ({"precision": "int8", "execution": "bf16"}, "openvino int8+bf16"),
        ({"precision": "bf16", "execution": "bf16"}, "openvino bf16"),
        ({"precision": "fp16", "execution": "fp32"}, "openvino fp16 weights"),
        ({"precision": "fp16", "execution": "fp16"}, "openvino fp16"),
    ],
)
def test_an_engine_is_named_by_what_runs(fields, label):
    assert engine_label(EngineRow(id="x", runtime="openvino", **fields)) == label


def test_a_route_that_never_came_to_a_runtime_is_named_without_one():
    row = EngineRow(id="x", runtime="-", precision="int8", route="nncf percentile")
    assert engine_name(row) == "int8"


def test_numbers_have_a_real_minus_sign():
    assert decimals(-1.5, 1) == "−1.5"
    assert significant(-0.012345) == "−0.0123"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9999, "1.00"), (99.96, "100"), (0, "0"), (1e-7, "1e−07"), (38.84, "38.8")],
)
def test_significant_digits_at_the_edges(value, text):
    assert significant(value) == text
