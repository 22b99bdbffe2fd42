"""ModelOpt's ONNX route: from a file alone, in TensorRT's form, and without a trace in this process."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgeml.compress.calibration import Calibration
from edgeml.compress.quantize_modelopt_onnx import QuantizeModeloptOnnx, attention_products
from edgeml.compress.step import apply
from edgeml.errors import BuildError
from edgeml.export.lint_graph import LintGraph
from edgeml.export.qdq_lint import lint
from onnx import TensorProto, helper, numpy_helper

if not find_spec("modelopt") or not find_spec("onnx_graphsurgeon"):
    pytest.skip("nvidia-modelopt and its ONNX part are not installed", allow_module_level=True)


def test_a_file_becomes_tensorrts_form_and_this_process_stays_as_it_was(small, draw, tmp_path):
    from onnxruntime.quantization.registry import QDQRegistry

    before = dict(QDQRegistry)
    x = draw(12)
    calibration = Calibration(lambda: ({"x": a} for a in x), 12)
    result = apply(QuantizeModeloptOnnx(), Path(small["model"]), calibration, tmp_path)
    assert dict(QDQRegistry) == before
    graph = LintGraph.read(result.path)
    convolutions = [n for n in graph.nodes if n.op_type == "Conv"]
    assert len(convolutions) == 2
    assert all(graph.dequantizer(name) is not None for n in convolutions for name in n.input[:2])
    stored = [t for t in graph.model.graph.initializer if t.data_type == TensorProto.INT8]
    assert any(len(t.dims) == 4 for t in stored)
    assert [f.line for f in lint(result.path, "10.3", shapes=["x"]).findings] == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.int8.onnx"]


def test_attentions_products_are_left_out(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"], name="linear"),
        helper.make_node("Transpose", ["q"], ["t"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "t"], ["y"], name="scores"),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 4])],
        [numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")],
    )
    path = tmp_path / "attention.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    assert attention_products(path) == ["scores"]


def test_a_network_that_it_does_not_know_is_told(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["y"], name="abs")],
        "nothing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    path = tmp_path / "nothing.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    calibration = Calibration(lambda: iter([{"x": np.ones(4, np.float32)}]), 1)
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(BuildError, match="inserted no quantizer"):
        apply(QuantizeModeloptOnnx(), path, calibration, folder)
