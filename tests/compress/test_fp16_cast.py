"""FP16 outside Q/DQ: what overflows stays in fp32 by name, the rest computes the same, and it builds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgeml.compress.calibration import Calibration
from edgeml.compress.fp16_cast import cast_fp16
from edgeml.compress.quantize_tensorrt_form import QuantizeTensorrtForm
from edgeml.compress.step import apply
from edgeml.errors import BuildError, InputError, MissingPart, ParityError
from edgeml.export.lint_graph import LintGraph
from edgeml.export.qdq_lint import lint
from edgeml.export.tensorrt_plan import build_engine, profiles_from_shapes
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxconverter_common", reason="onnxconverter-common is not installed")
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None
    or importlib.util.find_spec("polygraphy") is None,
    reason="tensorrt-rtx-cu13 or polygraphy is not installed",
)
node = helper.make_node


def save(path: Path, nodes, stored, opset=20) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in stored.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def inputs(n=8, scale=1.0):
    rng = np.random.default_rng(0)
    return [{"x": (scale * rng.standard_normal((1, 16))).astype(np.float32)} for _ in range(n)]


@pytest.fixture
def squares(tmp_path) -> Path:
    """A variance of values near 1,000 by Pow, as a decomposed LayerNormalization computes it: the square
    is beyond FP16 (TensorRT issues 4748, 3893)."""
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="product"),
        node("Pow", ["h", "two"], ["p"], name="square"),
        node("ReduceMean", ["p"], ["v"], name="mean", keepdims=1),
        node("Sqrt", ["v"], ["s"], name="root"),
        node("Div", ["h", "s"], ["d"], name="divide"),
        node("MatMul", ["d", "w2"], ["y"], name="head"),
    ]
    rng = np.random.default_rng(1)
    w = rng.standard_normal((16, 16)) * 100
    stored = {"w": w, "two": 2.0, "w2": rng.standard_normal((16, 16))}
    return save(tmp_path / "squares.onnx", nodes, stored)


@needs_rtx
def test_what_overflows_stays_in_fp32_and_is_named(squares, tmp_path):
    result = cast_fp16(squares, tmp_path / "half.onnx", inputs())
    assert set(result.kept) == {"square", "mean", "root"}
    assert "FP16 ends at 65,504" in result.kept["square"]
    graph = LintGraph.read(result.path)
    types = {n.name: graph.elem_type(n.output[0]) for n in graph.nodes}
    assert types["square"] == TensorProto.FLOAT
    assert types["product"] == types["divide"] == TensorProto.FLOAT16
    # Inputs and outputs keep their types.
    assert graph.elem_type("x") == graph.elem_type("y") == TensorProto.FLOAT
    assert [f.rule for f in lint(result.path, "10.3", shapes=["x"]).findings] == []
    shapes = profiles_from_shapes(result.path, {}, {}, {})
    assert build_engine(result.path, None, "tensorrt_rtx", shapes).layers > 5


def test_a_weight_beyond_fp16_keeps_its_node(tmp_path):
    nodes = [
        node("Mul", ["x", "big"], ["m"], name="times"),
        node("Div", ["m", "big"], ["y"], name="by"),
    ]
    model = save(tmp_path / "m.onnx", nodes, {"big": 1e6})
    result = cast_fp16(model, tmp_path / "half.onnx", inputs())
    assert set(result.kept) == {"times", "by"} and "FP16 ends at 65,504" in result.kept["by"]


def test_a_plain_network_goes_to_fp16_whole(small, tmp_path, draw):
    samples = [{"x": x[None]} for x in draw(8)]
    result = cast_fp16(Path(small["model"]), tmp_path / "half.onnx", samples)
    assert result.kept == {} and result.nodes == 7
    findings = lint(result.path, "10.3", shapes=["x"]).findings
    assert [f.line for f in findings] == []
    assert {f.rule for f in lint(Path(small["model"]), "10.3", shapes=["x"]).findings} == {
        "fp32-layer"
    }
    assert result.path.stat().st_size < Path(small["model"]).stat().st_size * 0.7


@pytest.mark.skipif(sys.version_info < (3, 11), reason="onnxruntime is too old to quantize there")
@needs_rtx
def test_a_quantized_graph_gets_fp16_around_its_pairs(small, tmp_path, draw):
    samples = [{"x": x[None]} for x in draw(8)]
    stream = Calibration(lambda: ({"x": x} for x in draw(8)), 8)
    int8 = apply(QuantizeTensorrtForm(), Path(small["model"]), stream, tmp_path)
    result = cast_fp16(int8.path, tmp_path / "half.onnx", samples)
    graph = LintGraph.read(result.path)
    quantizers = [n for n in graph.nodes if n.op_type == "QuantizeLinear"]
    assert len(quantizers) == int8.quantizers
    assert {graph.elem_type(n.input[1]) for n in quantizers} == {TensorProto.FLOAT16}
    assert lint(result.path, "10.3", shapes=["x"]).findings == ()
    shapes = profiles_from_shapes(result.path, {}, {}, {})
    assert build_engine(result.path, None, "tensorrt_rtx", shapes).layers > 5


def test_a_node_that_is_asked_for_stays(small, tmp_path, draw):
    samples = [{"x": x[None]} for x in draw(2)]
    result = cast_fp16(Path(small["model"]), tmp_path / "half.onnx", samples, keep=["head"])
    assert result.kept == {"head": "asked for"}
    with pytest.raises(InputError, match=r"no node 'haed' to keep in fp32, did you mean head\?"):
        cast_fp16(Path(small["model"]), tmp_path / "half.onnx", samples, keep=["haed"])


def test_where_the_outputs_part_the_layer_is_named_and_kept(tmp_path):
    """(x + 3,000) − 3,000: FP16 has steps of 2 there, and no range tells."""
    nodes = [
        node("Add", ["x", "far"], ["a"], name="out"),
        node("Sub", ["a", "far"], ["b"], name="back"),
        node("MatMul", ["b", "w"], ["y"], name="head"),
    ]
    stored = {"far": 3000.0, "w": np.eye(16)}
    model = save(tmp_path / "m.onnx", nodes, stored)
    result = cast_fp16(model, tmp_path / "half.onnx", inputs())
    assert {"out", "back"} >= set(result.kept) and "the outputs part" in str(result.kept)


def test_what_cannot_be_mended_is_told_and_nothing_is_left(squares, tmp_path, monkeypatch):
    monkeypatch.setattr("edgeml.compress.fp16_cast.overflowing", lambda *args: {})
    monkeypatch.setattr("edgeml.compress.fp16_cast._blamed", lambda *args: None)
    with pytest.raises(ParityError, match="FP16 does not compute what fp32 does"):
        cast_fp16(squares, tmp_path / "half.onnx", inputs())
    assert [p.name for p in tmp_path.iterdir()] == ["squares.onnx"]


def test_bad_input_is_told(squares, tmp_path, monkeypatch):
    with pytest.raises(BuildError, match="needs calibration samples"):
        cast_fp16(squares, tmp_path / "half.onnx", [])
    monkeypatch.setattr("edgeml.compress.fp16_cast.find_spec", lambda name: None)
    with pytest.raises(MissingPart, match="onnxconverter-common is not installed"):
        cast_fp16(squares, tmp_path / "half.onnx", inputs())


def test_pairs_need_an_opset_with_fp16_scales(tmp_path):
    stored = {"s": 0.1}
    nodes = [
        node("QuantizeLinear", ["x", "s"], ["q"], name="q"),
        node("DequantizeLinear", ["q", "s"], ["y"], name="dq"),
    ]
    model = save(tmp_path / "m.onnx", nodes, stored, opset=17)
    with pytest.raises(BuildError, match="opset 17 has no FP16 scales"):
        cast_fp16(model, tmp_path / "half.onnx", inputs())
