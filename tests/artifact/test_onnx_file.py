"""Reading ONNX files: nothing outside the model's folder is ever opened."""

import numpy as np
import onnx
import pytest
from edgeml.artifact.onnx_file import (
    external_files,
    nodes,
    read_onnx,
    stored_precision,
    tensors,
)
from edgeml.errors import ModelError
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def external(tmp_path):
    """A model whose one weight lies in weights.bin, 64 bytes."""
    weight = numpy_helper.from_array(np.arange(16, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16])],
        [weight],
    )
    path = tmp_path / "model.onnx"
    onnx.save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return path


def point_at(path, location):
    model = onnx.load_model(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_beside_the_model_is_listed(external):
    assert external_files(read_onnx(external), external) == [external.parent / "weights.bin"]


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../weights.bin", "a/../../w", "", "C:\\w", "..\\w", "\\\\host\\w"]
)
def test_external_data_outside_the_folder_is_refused(external, location):
    point_at(external, location)
    with pytest.raises(ModelError, match=r"tensor 'w' has its external data at .* refused"):
        external_files(read_onnx(external), external)


def test_a_link_is_refused_even_inside_the_folder(external):
    (external.parent / "link.bin").symlink_to(external.parent / "weights.bin")
    point_at(external, "link.bin")
    with pytest.raises(ModelError, match=r"'link.bin' is a link"):
        external_files(read_onnx(external), external)


def test_missing_and_truncated_external_data_are_named(external):
    data = external.parent / "weights.bin"
    data.write_bytes(data.read_bytes()[:10])
    with pytest.raises(ModelError, match="cut short: 10 of 64 bytes"):
        external_files(read_onnx(external), external)
    data.unlink()
    with pytest.raises(ModelError, match=r"'weights.bin' is missing"):
        external_files(read_onnx(external), external)


def test_files_that_are_no_onnx_are_refused_in_one_line(external, tmp_path):
    whole = external.read_bytes()
    bad = tmp_path / "bad.onnx"
    for content, line in [
        (b"", "is empty"),
        (whole[:30], "cut short"),
        (b"PK\x03\x04 a zip", "no ONNX model"),
        (b"", "is empty"),
    ]:
        bad.write_bytes(content)
        with pytest.raises(ModelError, match=line) as caught:
            read_onnx(bad)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="no ONNX file at"):
        read_onnx(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is no file"):
        read_onnx(tmp_path)


def test_tensors_and_nodes_are_found_in_subgraphs(tmp_path):
    def branch(name, value):
        constant = helper.make_node(
            "Constant", [], [name], value=numpy_helper.from_array(np.float32([value]), name)
        )
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
        return helper.make_graph([constant], name, [], [out])

    graph = helper.make_graph(
        [
            helper.make_node(
                "If", ["c"], ["y"], then_branch=branch("a", 1), else_branch=branch("b", 2)
            )
        ],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph)
    assert {t.name for t in tensors(model)} == {"a", "b"}
    assert sorted(n.op_type for n in nodes(model)) == ["Constant", "Constant", "If"]


@pytest.mark.parametrize(
    ("weight", "quantized", "word"),
    [
        (TensorProto.FLOAT, False, "fp32"),
        (TensorProto.FLOAT16, False, "fp16"),
        (TensorProto.BFLOAT16, False, "bf16"),
        (TensorProto.INT8, True, "int8"),
        (TensorProto.FLOAT8E4M3FN, True, "fp8"),
        (TensorProto.INT4, True, "int4"),
    ],
)
def test_a_graph_tells_its_precision(weight, quantized, word):
    stored = [TensorProto(name="w", data_type=weight, dims=[64])]
    op, inputs = ("DequantizeLinear", ["w", "s"]) if quantized else ("Identity", ["w"])
    stored += [numpy_helper.from_array(np.ones(1, np.float32), "s")]
    graph = helper.make_graph([helper.make_node(op, inputs, ["y"])], "g", [], [], stored)
    assert stored_precision(helper.make_model(graph)) == word
