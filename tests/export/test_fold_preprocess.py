"""Preprocessing inside the graph: uint8 NHWC in, the same outputs."""

import numpy as np
import onnx
import onnxruntime
import pytest
from edgeml.artifact.preprocess import ImagePreprocess
from edgeml.artifact.tensor_spec import TensorSpec
from edgeml.errors import ModelError
from edgeml.export.fold_preprocess import fold_preprocess
from edgeml.export.onnx_check import inspect_onnx
from onnx import TensorProto, helper, numpy_helper

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(path, axes, element=TensorProto.FLOAT, channel_axis=1):
    """Channels are weighed differently, so that their order shows; then the mean over pixels."""
    channels = axes[channel_axis]
    shape = [1, 1, 1, 1]
    shape[channel_axis] = channels
    dtype = helper.tensor_dtype_to_np_dtype(element)
    weights = np.arange(1, channels + 1).reshape(shape).astype(dtype)
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["image", "w"], ["h"]),
            helper.make_node("GlobalAveragePool", ["h"], ["pooled"]),
            helper.make_node("Add", ["pooled", "h"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("image", element, axes)],
        [helper.make_tensor_value_info("y", element, axes)],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save_model(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def run(path, array):
    return onnxruntime.InferenceSession(path).run(None, {"image": array})[0]


def declared(**changes):
    values = {"scale": 1 / 255, "mean": MEAN, "std": STD, "layout": "NCHW", "color": "RGB"}
    return ImagePreprocess(**{**values, **changes})


@pytest.mark.parametrize(
    ("preprocess", "axes", "channel_axis"),
    [
        (declared(), ["n", 3, 8, 6], 1),
        (
            declared(color="BGR", mean=(103.9, 116.8, 123.7), std=(1, 1, 1), scale=1),
            [1, 3, 8, 6],
            1,
        ),
        (declared(scale=1, mean=(127,) * 3, std=(128,) * 3, layout="NHWC"), ["n", 8, 6, 3], 3),
        (declared(color="L", mean=(0.13,), std=(0.31,)), ["n", 1, 8, 6], 1),
    ],
    ids=["imagenet", "caffe", "nhwc", "gray"],
)
def test_outputs_stay_the_same_to_1e_4(tmp_path, preprocess, axes, channel_axis):
    original = network(tmp_path / "m.onnx", axes, channel_axis=channel_axis)
    folded = fold_preprocess(original, preprocess, tmp_path / "folded.onnx")
    assert folded == preprocess.model_copy(update={"folded": True})

    batch = 1 if axes[0] == 1 else 3
    channels = axes[channel_axis]
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 8, 6, channels), np.uint8)
    mean, std = np.float32(preprocess.mean), np.float32(preprocess.std)
    ready = ((pixels * np.float32(preprocess.scale) - mean) / std).astype(np.float32)
    if preprocess.layout == "NCHW":
        ready = ready.transpose(0, 3, 1, 2)
    expected = run(original, np.ascontiguousarray(ready))
    got = run(tmp_path / "folded.onnx", pixels)
    np.testing.assert_allclose(got, expected, atol=1e-4 * max(1, np.abs(expected).max()))

    spec = inspect_onnx(tmp_path / "folded.onnx").inputs[0]
    first = 1 if axes[0] == 1 else None
    assert spec == TensorSpec("image", (first, 8, 6, channels), "uint8")


def test_a_half_precision_network_gets_its_type(tmp_path):
    original = network(tmp_path / "m.onnx", ["n", 3, 8, 6], TensorProto.FLOAT16)
    fold_preprocess(original, declared(), tmp_path / "folded.onnx")
    assert run(tmp_path / "folded.onnx", np.zeros((2, 8, 6, 3), np.uint8)).dtype == np.float16


def test_open_axes_are_closed_by_the_shape_that_is_given(tmp_path):
    original = network(tmp_path / "m.onnx", ["n", 3, "h", "w"])
    with pytest.raises(ModelError, match="open axes besides the batch"):
        fold_preprocess(original, declared(), tmp_path / "folded.onnx")
    fold_preprocess(original, declared(), tmp_path / "folded.onnx", {"image": (None, 3, 8, 6)})
    assert inspect_onnx(tmp_path / "folded.onnx").inputs[0].shape == (None, 8, 6, 3)


def test_what_cannot_be_folded_is_refused_and_nothing_written(tmp_path):
    original = network(tmp_path / "m.onnx", ["n", 3, 8, 6])
    target = tmp_path / "folded.onnx"
    with pytest.raises(ModelError, match="in the graph already"):
        fold_preprocess(original, declared(folded=True), target)
    with pytest.raises(ModelError, match="6 channels in layout NHWC, RGB images have 3"):
        fold_preprocess(original, declared(layout="NHWC"), target)
    with pytest.raises(ModelError, match="3 channels in layout NCHW, L images have 1"):
        fold_preprocess(original, declared(color="L", mean=(0.5,), std=(0.5,)), target)
    flat = network(tmp_path / "flat.onnx", ["n", 3, 8, 6], TensorProto.FLOAT)
    fold_preprocess(flat, declared(), target)
    with pytest.raises(ModelError, match="one float image input"):
        fold_preprocess(target, declared(), tmp_path / "twice.onnx")
    assert not (tmp_path / "twice.onnx").exists()
