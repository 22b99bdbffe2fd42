"""ONNX to OpenVINO IR."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from edgeml.errors import BuildError, ModelError
from edgeml.export import to_openvino
from edgeml.export.openvino_ir import import_openvino
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def linear(tmp_path):
    weights = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 256])],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = [helper.make_opsetid("", 20)]
    path = tmp_path / "m.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def test_the_ir_computes_what_the_onnx_file_does_with_its_names(linear, tmp_path):
    xml = to_openvino(linear, tmp_path / "out", "net")
    assert xml == tmp_path / "out" / "net.xml"
    assert sorted(p.name for p in xml.parent.iterdir()) == ["net.bin", "net.xml"]
    model = (
        import_openvino().Core().compile_model(str(xml), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    )
    x = np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)
    (weights,) = onnx.load_model(linear).graph.initializer
    expected = x @ numpy_helper.to_array(weights)
    np.testing.assert_allclose(model({"x": x})["y"], expected, rtol=1e-5, atol=1e-6)
    assert str(tmp_path).encode() not in xml.read_bytes()


def test_weights_in_16_bits_halve_the_file(linear, tmp_path):
    whole = to_openvino(linear, tmp_path / "a").with_suffix(".bin").stat().st_size
    half = to_openvino(linear, tmp_path / "b", compress_to_fp16=True)
    assert half.with_suffix(".bin").stat().st_size < 0.6 * whole


def test_an_operator_that_openvino_lacks_is_named(tmp_path):
    node = helper.make_node(
        "TfIdfVectorizer", ["x"], ["y"], max_gram_length=1, max_skip_count=0, min_gram_length=1,
        mode="TF", ngram_counts=[0], ngram_indexes=[0], pool_int64s=[1],
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 1])],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save_model(
        helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "m.onnx"
    )
    with pytest.raises(BuildError, match=r"m\.onnx: No conversion rule .*TfIdfVectorizer"):
        to_openvino(tmp_path / "m.onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_file_is_the_users_to_mend(linear, tmp_path):
    linear.write_bytes(linear.read_bytes()[:-9])
    with pytest.raises(ModelError, match="cut short"):
        to_openvino(linear, tmp_path / "out")


def test_telemetry_is_off():
    code = (
        "from edgeml.export.openvino_ir import import_openvino; import_openvino(); "
        "import sys; sys.exit(sys.modules['openvino_telemetry'] is not None)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
