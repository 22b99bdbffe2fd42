"""What fine-tuning left behind is in the graph that TensorRT reads: 2:4 zeros, weights trained with fake quantizers."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from edgeml.compress.calibration import Calibration
from edgeml.compress.fp16_cast import cast_fp16
from edgeml.compress.quantize_tensorrt_form import QuantizeTensorrtForm
from edgeml.compress.step import apply
from edgeml.errors import BuildError
from edgeml.export import to_onnx
from edgeml.export.qdq_lint import lint
from edgeml.export.tensorrt_plan import build_engine, profiles_from_shapes

torch = pytest.importorskip("torch")
if not find_spec("modelopt") or not find_spec("onnxscript"):
    pytest.skip("nvidia-modelopt is not installed", allow_module_level=True)

from edgeml.compress.modelopt_export import export_quantized  # noqa: E402  torch is needed
from edgeml.compress.quantize_modelopt import quantize_module  # noqa: E402
from edgeml.compress.sparsity_2to4 import (  # noqa: E402
    finish_2to4,
    sparse_layers_of,
    sparsify_2to4,
)
from edgeml.train.batches import ArrayBatches  # noqa: E402
from edgeml.train.settings import TrainSettings  # noqa: E402
from edgeml.train.training_loop import fit  # noqa: E402

RTX = find_spec("tensorrt_rtx") and find_spec("polygraphy")
INT8 = onnx.TensorProto.INT8
ONE_EPOCH = TrainSettings(epochs=1, lr=0.05, threads=1, precision="fp32", channels_last=False)
# Wide enough that torch's exporter does not fold a masked weight itself.
WIDE = 48
# Weights of `Net` by their shape in the graph: is each 2:4? The first convolution's three channels cannot be.
MASKED = {(WIDE, 3, 3, 3): False, (WIDE, WIDE, 3, 3): True, (8, WIDE): True}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, WIDE, 3, padding=1)
        self.conv = torch.nn.Conv2d(WIDE, WIDE, 3, padding=1, bias=False)
        self.bn = torch.nn.BatchNorm2d(WIDE)
        self.fc = torch.nn.Linear(WIDE, 8)

    def forward(self, x):
        first = torch.relu(self.first(x))
        x = torch.relu(self.bn(self.conv(first)) + first)
        return self.fc(x.mean((2, 3)))


RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 3, 8, 8)).astype(np.float32)
SAMPLES = [{"x": x[None]} for x in X[:16]]


@pytest.fixture
def data():
    return ArrayBatches({"x": X}, RNG.integers(0, 8, 32), batch=16)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def typed(tmp_path):
    """Q/DQ graph → the typed graph around it (FP16), clean and, where TensorRT-RTX is installed, legal."""

    def make(path):
        half = cast_fp16(path, tmp_path / "typed.onnx", SAMPLES[:8]).path
        for version in ("10.3", "10.16", "11.4", "rtx"):
            assert [f.line for f in lint(half, version, shapes=["x"]).findings] == []
        if RTX:
            profiles = profiles_from_shapes(half, {}, {"x": (1, 3, 8, 8)}, {})
            assert build_engine(half, None, "tensorrt_rtx", profiles).size_bytes > 0
        return half

    return make


def by_shape(path):
    """Linear's matrix as torch has it: the graph may hold it transposed."""
    shapes = {s.shape: s.is_2to4 for s in sparse_layers_of(path)}
    return {(8, WIDE) if shape == (WIDE, 8) else shape: zeros for shape, zeros in shapes.items()}


@pytest.fixture
def sparse(net, data):
    """Fine-tuned under its masks, then a plain network."""
    masked = sparsify_2to4(net)
    fit(masked, data, ONE_EPOCH)
    return finish_2to4(masked)


@pytest.mark.parametrize("method", ["max", "smoothquant", "fp8"])
def test_zeros_of_2to4_are_zeros_of_the_typed_graph_by_modelopt(sparse, typed, method, tmp_path):
    quantized, _ = quantize_module(sparse, SAMPLES, method)
    done = export_quantized(quantized, {"x": X[:8]}, tmp_path / "q.onnx")
    assert done.quantizers == 6
    assert by_shape(typed(done.path)) == MASKED


def test_zeros_of_2to4_are_zeros_of_the_typed_graph_without_an_nvidia_package(
    sparse, typed, tmp_path
):
    to_onnx(sparse.eval(), {"x": X[:2]}, tmp_path / "model.onnx")
    calibration = Calibration(lambda: ({"x": x} for x in X[:16]), 16)
    done = apply(QuantizeTensorrtForm("minmax"), tmp_path / "model.onnx", calibration, tmp_path)
    assert by_shape(typed(done.path)) == MASKED


def test_zeros_of_2to4_stay_where_masks_and_fake_quantizers_are_trained_together(
    net, data, typed, tmp_path
):
    masked = sparsify_2to4(net)
    quantized, _ = quantize_module(masked, SAMPLES, "max")
    state = {name: value.clone() for name, value in quantized.state_dict().items()}
    before = export_quantized(quantized, {"x": X[:8]}, tmp_path / "ptq.onnx").path
    assert all(torch.equal(v, state[name]) for name, v in quantized.state_dict().items())
    fit(quantized, data, ONE_EPOCH)
    after = export_quantized(quantized, {"x": X[:8]}, tmp_path / "qat.onnx").path
    assert by_shape(before) == by_shape(typed(after)) == MASKED
    assert {t.data_type for t in onnx.load(after).graph.initializer if len(t.dims) > 1} == {INT8}
    with pytest.raises(BuildError, match=r"its weight is computed .*finish_2to4"):
        quantize_module(masked, SAMPLES, "smoothquant")


def stored_weights(path):
    tensors = onnx.load(path).graph.initializer
    return [onnx.numpy_helper.to_array(t).astype(np.float32) for t in tensors if len(t.dims) > 1]


@pytest.mark.parametrize("method", ["max", "fp8"])
def test_weights_trained_with_fake_quantizers_are_those_of_the_typed_graph(
    net, data, typed, method, tmp_path
):
    fit(net, data, ONE_EPOCH)
    quantized, _ = quantize_module(net, SAMPLES, method)
    before = export_quantized(quantized, {"x": X[:8]}, tmp_path / "ptq.onnx").path
    result = fit(quantized, data, ONE_EPOCH)
    assert np.isfinite(result.epochs[-1].loss)
    after = export_quantized(quantized, {"x": X[:8]}, tmp_path / "qat.onnx")
    assert after.quantizers == 6 and after.layer_rel < 5e-3  # the trained module's, layer by layer
    moved = [
        float((a != b).mean())
        for a, b in zip(stored_weights(before), stored_weights(after.path), strict=True)
    ]
    assert len(moved) == 3 and min(moved) > 0.05  # in every layer
    typed(after.path)
