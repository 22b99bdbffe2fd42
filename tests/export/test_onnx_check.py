"""Checking an ONNX file before any other library reads it."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from edgeml.artifact.tensor_spec import TensorSpec
from edgeml.errors import ModelError
from edgeml.export.onnx_check import inspect_onnx
from onnx import TensorProto, helper, numpy_helper


def write(path, nodes, x=("batch", 3), y=("batch", 3), weights=(), domains=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        list(weights),
    )
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(d, 1) for d in domains)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.fixture
def model(tmp_path):
    weight = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    shape = numpy_helper.from_array(np.array([-1, 3]), "shape")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Reshape", ["h", "shape"], ["r"]),
        helper.make_node("Relu", ["r"], ["y"]),
    ]
    return write(tmp_path / "m.onnx", nodes, weights=[weight, shape])


def relu(path, **changes):
    return write(path, [helper.make_node("Relu", ["x"], ["y"])], **changes)


def test_it_tells_inputs_outputs_opset_operators_and_parameters(model):
    info = inspect_onnx(model)
    assert info.inputs == (TensorSpec("x", (None, 3), "float32"),)
    assert info.outputs == (TensorSpec("y", (None, 3), "float32"),)
    assert (info.opset, info.parameters, info.has_external) == (20, 9, False)
    assert info.op_counts == {"MatMul": 1, "Relu": 1, "Reshape": 1}


def test_an_unknown_operator_is_named(tmp_path):
    path = write(tmp_path / "m.onnx", [helper.make_node("Relo", ["x"], ["y"])])
    with pytest.raises(ModelError, match="Relo"):
        inspect_onnx(path)


def test_operators_outside_the_standard_are_named_with_their_domain(tmp_path):
    fused = helper.make_node("FusedConv", ["x"], ["y"], domain="com.microsoft")
    path = write(tmp_path / "m.onnx", [fused], domains=["com.microsoft"])
    with pytest.raises(ModelError, match=r"com\.microsoft:FusedConv \(1×\)"):
        inspect_onnx(path)


def test_a_nan_weight_is_named_and_an_infinite_one_is_allowed(tmp_path):
    nodes = [helper.make_node("Add", ["x", "mask"], ["y"])]
    infinite = numpy_helper.from_array(np.float32([0, -np.inf, 0]), "mask")
    inspect_onnx(write(tmp_path / "m.onnx", nodes, weights=[infinite]))
    nan = numpy_helper.from_array(np.float32([0, np.nan, 0]), "mask")
    with pytest.raises(ModelError, match=r"NaN weights: mask \(1 of 3\)"):
        inspect_onnx(write(tmp_path / "m.onnx", nodes, weights=[nan]))


def test_contradicting_shapes_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"contradict each other: .*\(3\) vs \(4\)"):
        inspect_onnx(relu(tmp_path / "m.onnx", y=("batch", 4)))


def test_open_axes_are_named_unless_a_shape_closes_them(tmp_path):
    path = relu(tmp_path / "m.onnx", x=("b", 3, "h", None), y=("b", 3, "h", None))
    assert inspect_onnx(path).inputs[0].shape == (None, 3, None, None)
    with pytest.raises(ModelError, match=r"x \?×3×\?×\? .*\(axis 2, 3\)"):
        inspect_onnx(path, open_axes=False)
    info = inspect_onnx(path, {"x": (None, 3, 48, 320)}, open_axes=False)
    assert info.inputs[0].shape == (None, 3, 48, 320)
    with pytest.raises(ModelError, match="cannot take the shape 1×4×48×320"):
        inspect_onnx(path, {"x": (1, 4, 48, 320)})


def test_an_input_without_a_shape_is_refused(tmp_path):
    with pytest.raises(ModelError, match="input 'x' has no shape, not even a rank"):
        inspect_onnx(relu(tmp_path / "m.onnx", x=None, y=None))


@pytest.mark.parametrize("keep", [0, 20, -5])
def test_an_empty_or_truncated_file_is_one_line(model, keep):
    model.write_bytes(model.read_bytes()[:keep])
    with pytest.raises(ModelError) as caught:
        inspect_onnx(model)
    assert "\n" not in str(caught.value)


def test_a_truncated_weight_is_refused(tmp_path):
    short = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], raw_data=b"abcd")
    with pytest.raises(ModelError, match="w"):
        inspect_onnx(relu(tmp_path / "m.onnx", weights=[short]))


def test_it_needs_no_torch(model):
    code = (
        "import sys; from edgeml.export.onnx_check import inspect_onnx; "
        "from edgeml.train.model_source import open_model; from pathlib import Path; "
        f"inspect_onnx(Path({str(model)!r})); open_model({str(model)!r}, None); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
