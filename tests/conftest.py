"""Small real models that several folders' tests run."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgeml.artifact.bundle import write_manifest
from edgeml.artifact.manifest import EngineEntry, Manifest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture(scope="module", autouse=True)
def _settled_objects() -> None:
    """What the libraries hold stays to the end: a full collection that walks over it each time was 6 % of all."""
    gc.collect()
    gc.freeze()


def _save_graph(path: Path, nodes, inputs, outputs, weights=(), opset: int = 20) -> Path:
    """Write an ONNX file of float tensors; `inputs` and `outputs` are (name, shape) pairs."""

    def infos(pairs):
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in pairs]

    graph = helper.make_graph(
        nodes,
        "g",
        infos(inputs),
        infos(outputs),
        [numpy_helper.from_array(w, n) for n, w in weights],
    )
    opsets = [helper.make_opsetid("", opset)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.fixture(scope="session")
def save_graph():
    """`_save_graph`, for tests that draw their own."""
    return _save_graph


@pytest.fixture(scope="session")
def conv_weights() -> dict[str, np.ndarray]:
    """A convolution of 3 to 16 channels and a classifier of 4 classes."""
    rng = np.random.default_rng(0)
    return {
        "conv.weight": rng.standard_normal((16, 3, 3, 3)).astype(np.float32),
        "fc.weight": rng.standard_normal((16, 4)).astype(np.float32),
    }


@pytest.fixture(scope="session")
def conv_onnx(tmp_path_factory, conv_weights) -> Path:
    """``x batch×3×16×16 -> y batch×4``: convolution, ReLU, mean over the image, product."""
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "fc.weight"], ["y"], name="fc"),
    ]
    return _save_graph(
        tmp_path_factory.mktemp("conv") / "model.onnx",
        nodes,
        [("x", ["batch", 3, 16, 16])],
        [("y", ["batch", 4])],
        conv_weights.items(),
    )


@pytest.fixture(scope="session")
def conv_xml(tmp_path_factory, conv_onnx) -> Path:
    """The same as an OpenVINO IR."""
    from edgeml.export import to_openvino

    return to_openvino(conv_onnx, tmp_path_factory.mktemp("conv-ir"))


@pytest.fixture(scope="session")
def int8_onnx(tmp_path_factory, conv_onnx, images) -> Path:
    """`conv_onnx` with Q/DQ around its convolution and its product, by ONNX Runtime."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = [{"x": image[None]} for image in images]

        def get_next(self):
            return self.left.pop() if self.left else None

    path = tmp_path_factory.mktemp("int8") / "model.int8.onnx"
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(conv_onnx, path, Reader(), per_channel=True, **types)
    return path


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """Five inputs of `conv_onnx`."""
    return np.random.default_rng(1).standard_normal((5, 3, 16, 16)).astype(np.float32)


@pytest.fixture
def make_bundle(conv_onnx):
    """A function that writes a small bundle, `conv_onnx` as its only engine unless told otherwise."""

    def make(root: Path, engines=None, shipped="onnxruntime-fp32", files=None, **fields) -> Path:
        root.mkdir(parents=True)
        (root / "model.onnx").write_bytes(conv_onnx.read_bytes())
        (root / "notes.txt").write_text("plain\n")
        for name, data in (files or {}).items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(data)
        entry = EngineEntry(
            id="onnxruntime-fp32",
            runtime="onnxruntime",
            precision="fp32",
            files=["model.onnx"],
            threads=1,
            input_shapes={"x": [1, 3, 16, 16]},
        )
        values = {
            "edgeml_version": "0",
            "created": "2026-01-01T00:00:00Z",
            "name": "small",
            "model": {"kind": "onnx", "user_code": None},
            "recipe": {},
            "data": {},
            "seed": 0,
            "tools": {},
            "machine": {},
            "inputs": [],
            "outputs": [],
            "engines": [entry] if engines is None else engines,
            "shipped": shipped,
        }
        write_manifest(root, Manifest(**{**values, **fields}))
        return root

    return make


@pytest.fixture
def edit_manifest():
    """A function that changes a bundle's manifest by hand, as one who doctors it would."""

    def edit(root: Path, change) -> None:
        file = root / "manifest.json"
        values = json.loads(file.read_text())
        change(values)
        file.write_text(json.dumps(values))

    return edit
