"""INT8 in TensorRT's form: symmetric, inputs only, clean for lint, legal for NVIDIA's builder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgeml.compress import quantize
from edgeml.compress.calibration import Calibration
from edgeml.compress.quantize_tensorrt_form import QuantizeTensorrtForm
from edgeml.compress.step import apply
from edgeml.export.lint_graph import LintGraph
from edgeml.export.qdq_lint import lint
from edgeml.export.tensorrt_plan import build_engine, profiles_from_shapes
from onnx import TensorProto, helper

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="onnxruntime is too old there")
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None
    or importlib.util.find_spec("polygraphy") is None,
    reason="tensorrt-rtx-cu13 or polygraphy is not installed",
)


@pytest.fixture(scope="module")
def quantized(small, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("form")
    quantize(small["model"], out, data=small["data"], route="tensorrt-form", samples=20)
    return out / "model.int8.onnx"


@pytest.mark.parametrize("version", ["10.3", "10.16", "11.4", "rtx"])
def test_lint_finds_nothing(quantized, version):
    findings = lint(quantized, version, shapes=["x"]).findings
    assert [f.line for f in findings] == []


def test_it_is_symmetric_int8_on_the_inputs_of_every_heavy_layer(quantized):
    graph = LintGraph.read(quantized)
    heavy = [n for n in graph.nodes if n.op_type in ("Conv", "MatMul", "Gemm")]
    assert len(heavy) == 3
    for node in heavy:
        assert all(graph.dequantizer(name) is not None for name in node.input[:2])
        # Nothing between a layer and its activation.
        readers = {reader.op_type for reader in graph.consumers(node.output[0])}
        assert "QuantizeLinear" not in readers
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = graph.constant(node.input[2])
            assert zero.dtype == np.int8 and not zero.any()


@needs_rtx
def test_tensorrt_rtx_builds_it(quantized):
    built = build_engine(
        quantized, None, "tensorrt_rtx", profiles_from_shapes(quantized, {}, {}, {})
    )
    assert built.size_bytes > 0 and built.layers > 5


@pytest.fixture(scope="module")
def block(tmp_path_factory) -> Path:
    """conv-relu, then a residual block: what is added is what the block's convolution reads."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="stem", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv", pads=[1] * 4),
        helper.make_node("Add", ["c2", "r1"], ["s"], name="add"),
        helper.make_node("Relu", ["s"], ["y"], name="relu2"),
    ]
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, 8, 8])],
        [
            onnx.numpy_helper.from_array(
                (rng.standard_normal(shape) * 0.2).astype(np.float32), name
            )
            for name, shape in (("w1", (8, 3, 3, 3)), ("w2", (8, 8, 3, 3)))
        ],
    )
    path = tmp_path_factory.mktemp("block") / "model.onnx"
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def test_the_shortcut_of_a_residual_block_is_added_dequantized(block, tmp_path):
    rng = np.random.default_rng(1)
    stream = [{"x": rng.standard_normal((3, 8, 8)).astype(np.float32)} for _ in range(8)]
    step = QuantizeTensorrtForm()
    result = apply(step, block, Calibration(lambda: iter(stream), 8), tmp_path)
    graph = LintGraph.read(result.path)
    [add] = [n for n in graph.nodes if n.op_type == "Add"]
    assert any(graph.dequantizer(name) is not None for name in add.input)
    assert lint(result.path, "10.3", shapes=["x"]).findings == ()
    assert step.settings()["route"] == step.route == "tensorrt-form minmax"
