"""Architectures in TensorRT's two forms: INT8 with FP16 around it, legal; fp32 at opset 17, equal."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from edgeml.artifact.tensorrt_versions import VERSIONS
from edgeml.compress.calibration import Calibration
from edgeml.compress.fp16_cast import cast_fp16
from edgeml.compress.quantize_tensorrt_form import QuantizeTensorrtForm
from edgeml.compress.step import apply
from edgeml.export import to_onnx
from edgeml.export.lint_fixes import mend
from edgeml.export.lint_graph import HEAVY, LintGraph
from edgeml.export.onnx_graph import forward_inputs
from edgeml.export.qdq_lint import lint
from edgeml.export.tensorrt_plan import build_engine, profiles_from_shapes

torch = pytest.importorskip("torch")
pytest.importorskip("onnxconverter_common", reason="onnxconverter-common is not installed")
pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="onnxruntime is too old there")
RTX = importlib.util.find_spec("tensorrt_rtx") and importlib.util.find_spec("polygraphy")


class ViT(torch.nn.Module):
    """A patch embedding and two pre-norm encoder blocks."""

    def __init__(self):
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 32, 8, 8)
        self.position = torch.nn.Parameter(torch.randn(1, 16, 32) * 0.02)
        options = {"activation": "gelu", "batch_first": True, "norm_first": True, "dropout": 0.0}
        blocks = [torch.nn.TransformerEncoderLayer(32, 4, 64, **options) for _ in range(2)]
        self.blocks, self.norm = torch.nn.ModuleList(blocks), torch.nn.LayerNorm(32)
        self.head = torch.nn.Linear(32, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def network(name: str):
    """The module in eval mode, and eight inputs; BatchNormalization has seen some (FACTS §8: random weights
    collapse)."""
    from edgeml.train.zoo.catalogue import build_zoo

    torch.manual_seed(0)
    images = torch.randn(8, 3, 32, 32)
    if name == "vit":
        return ViT().eval(), images
    if name == "transformer":
        return build_zoo(name).eval(), torch.randint(1, 9999, (8, 32))
    options = {"cnn": {"channels": 3, "size": 32}, "mobilenetv2": {"size": 32, "width": 0.5}}
    module = build_zoo(name, options.get(name, {})).train()
    with torch.no_grad():
        for _ in range(5):
            module(images)
    return module.eval(), images


SLOW = [pytest.param(n, marks=pytest.mark.slow) for n in ("cnn", "resnet20", "mobilenetv2")]


@pytest.fixture(scope="module", params=["vit", "transformer", *SLOW])
def exported(request, tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    module, x = network(request.param)
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    [name] = forward_inputs(module)
    to_onnx(module, {name: x[:2].numpy()}, path)
    return path, {name: x.numpy()}


def run(path: Path, feed):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(path, options, providers=providers).run(None, feed)[0]


def test_int8_with_fp16_around_it_is_clean_and_legal(exported, tmp_path):
    path, feed = exported
    samples = [{name: array[i] for name, array in feed.items()} for i in range(8)]
    int8 = apply(QuantizeTensorrtForm(), path, Calibration(lambda: iter(samples), 8), tmp_path)
    graph = LintGraph.read(int8.path)
    macs = {id(n): graph.macs(n) for n in graph.nodes if n.op_type in HEAVY}
    covered = sum(
        macs[id(n)]
        for n in graph.nodes
        if id(n) in macs and all(graph.dequantizer(name) is not None for name in n.input[:2])
    )
    assert covered >= 0.95 * sum(macs.values())
    batches = [{name: array[None] for name, array in sample.items()} for sample in samples]
    half = cast_fp16(int8.path, tmp_path / "half.onnx", batches)
    assert len(half.kept) <= 0.05 * half.nodes, half.kept
    for version in ("10.3", "10.16", "11.4", "rtx"):
        findings = lint(half.path, version, shapes=feed).findings
        assert [f.line for f in findings] == []
    if RTX:
        profiles = profiles_from_shapes(half.path, {}, _one(feed), {})
        assert build_engine(half.path, None, "tensorrt_rtx", profiles).size_bytes > 0


def _one(feed):
    return {name: (1, *array.shape[1:]) for name, array in feed.items()}


@pytest.mark.parametrize("version", ["8.5.2", "8.6.2"])
def test_fp32_at_opset_17_computes_the_same(exported, version, tmp_path):
    path, feed = exported
    lowered = tmp_path / "lowered.onnx"
    onnx.save(mend(path, VERSIONS[version]).model, lowered)
    onnx.checker.check_model(str(lowered), full_check=True)
    assert onnx.load(lowered).opset_import[0].version == 17
    assert [f.line for f in lint(lowered, version, shapes=feed).findings] == []
    expected = run(path, feed)
    np.testing.assert_allclose(run(lowered, feed), expected, atol=1e-5 * np.abs(expected).max())
