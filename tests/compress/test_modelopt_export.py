"""A module that ModelOpt quantized becomes ONNX with Q/DQ: equal to it, in TensorRT's form, or refused with a line."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from edgeml.errors import BuildError, ParityError
from edgeml.export.lint_graph import LintGraph
from edgeml.export.qdq_lint import lint
from edgeml.export.tensorrt_plan import build_engine, profiles_from_shapes

torch = pytest.importorskip("torch")
if not find_spec("modelopt") or not find_spec("onnxscript"):
    pytest.skip("nvidia-modelopt is not installed", allow_module_level=True)

from edgeml.compress.modelopt_export import (  # noqa: E402  torch is needed
    export_quantized,
    import_modelopt,
    quiet,
)
from edgeml.compress.modelopt_prepare import prepared, shared_residuals  # noqa: E402

RTX = find_spec("tensorrt_rtx") and find_spec("polygraphy")


class Block(torch.nn.Module):
    """Two convolutions with a shortcut, and a product: 3×8×8 in, 4 classes out."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = torch.nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(8)
        self.conv2 = torch.nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        out = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(out)) + x)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def images():
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def block(images):
    torch.manual_seed(0)
    module = Block().train()
    with torch.no_grad():
        for _ in range(3):
            module(images)
    return module.eval()


def quantized(module, x, config: str):
    mtq = import_modelopt()
    ready = prepared(module, {"x": x})
    with quiet():
        mtq.quantize(ready, getattr(mtq, config), lambda m: m(x))
    shared_residuals(ready)
    return ready


@pytest.mark.parametrize("config", ["INT8_DEFAULT_CFG", "INT8_SMOOTHQUANT_CFG", "FP8_DEFAULT_CFG"])
def test_the_graph_computes_what_the_fake_quantized_module_does(block, images, config, tmp_path):
    module = quantized(block, images, config)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    done = export_quantized(module, {"x": images.numpy()}, tmp_path / "q.onnx")
    assert done.layer_rel < 5e-3
    assert done.quantizers == 8  # four layers, activations and weights
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    graph = LintGraph.read(done.path)
    assert {n.op_type for n in graph.nodes} >= {"Conv", "Gemm", "QuantizeLinear"}
    assert "BatchNormalization" not in {n.op_type for n in graph.nodes}
    for version in ("10.3", "11.4", "rtx"):
        assert [f.line for f in lint(done.path, version, shapes=["x"]).findings] == []
    if RTX:
        profiles = profiles_from_shapes(done.path, {}, {"x": (1, 3, 8, 8)}, {})
        assert build_engine(done.path, None, "tensorrt_rtx", profiles).size_bytes > 0


def test_weights_are_stored_as_int8_and_the_addition_reads_the_quantized_shortcut(
    block, images, tmp_path
):
    path = export_quantized(
        quantized(block, images, "INT8_DEFAULT_CFG"), {"x": images.numpy()}, tmp_path / "q.onnx"
    ).path
    graph = LintGraph.read(path)
    stored = [t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert sum(len(t.dims) > 1 for t in stored) == 4
    [add] = [n for n in graph.nodes if n.op_type == "Add"]
    assert any(graph.dequantizer(name) is not None for name in add.input)


def test_a_channel_of_zeros_gets_a_scale_that_is_legal(block, images, tmp_path):
    with torch.no_grad():
        block.stem.weight[2] = 0
    module = quantized(block, images, "INT8_DEFAULT_CFG")
    path = export_quantized(module, {"x": images.numpy()}, tmp_path / "q.onnx").path
    assert [f.line for f in lint(path, "10.3", shapes=["x"]).errors] == []


def test_what_cannot_be_exported_is_named(block, images, tmp_path):
    mtq = import_modelopt()
    feed = {"x": images.numpy()}
    with pytest.raises(BuildError, match="no enabled quantizer"):
        export_quantized(block, feed, tmp_path / "q.onnx")
    ready = prepared(block, {"x": images})
    with quiet():
        mtq.quantize(ready, mtq.INT4_AWQ_CFG, lambda m: m(images))
    with pytest.raises(BuildError, match=r"weight_quantizer: 4 bits have no Q/DQ form"):
        export_quantized(ready, feed, tmp_path / "q.onnx")
    ready = prepared(block, {"x": images})
    with quiet():
        mtq.quantize(ready, mtq.INT8_DEFAULT_CFG, lambda m: m(images))
    ready.head.input_quantizer.reset_amax()
    with pytest.raises(BuildError, match=r"head\.input_quantizer was never calibrated"):
        export_quantized(ready, feed, tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


class Attention(torch.nn.Module):
    def __init__(self, batch_first: bool):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, x, hidden, mask):
        return self.attention(x, x, x, key_padding_mask=hidden, attn_mask=mask)


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_as_linear_layers_computes_the_same(batch_first):
    torch.manual_seed(0)
    module = Attention(batch_first).eval()
    hidden = torch.zeros(4, 4, dtype=torch.bool)
    hidden[1, 3] = True
    feed = {
        "x": torch.randn(4, 4, 8),
        "hidden": hidden,
        "mask": torch.ones(4, 4).tril().bool().logical_not(),
    }
    with torch.no_grad():
        expected, weights = module(**feed)
        got, got_weights = prepared(module, feed)(**feed)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_allclose(got_weights, weights, atol=1e-6)


@pytest.mark.parametrize(
    ("op_type", "named"), [("Conv", r"conv2\.input_quantizer"), ("Gemm", "at ")]
)
def test_a_layer_that_computes_something_else_is_named_and_nothing_is_written(
    op_type, named, block, images, tmp_path, monkeypatch
):
    from edgeml.compress import modelopt_export

    def planted(path):
        """A scale 3 % too large, which the noise of quantization would hide."""
        model, quantizers = tensorrt_form(path)
        nodes = [n for n in model.graph.node if n.op_type == op_type]
        layer = nodes[min(1, len(nodes) - 1)]  # conv1, or the head
        [dq] = [n for n in model.graph.node if n.output[0] == layer.input[1]]
        [scale] = [t for t in model.graph.initializer if t.name == dq.input[1]]
        scale.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * 1.03, scale.name)
        )
        return model, quantizers

    tensorrt_form = modelopt_export.tensorrt_form
    monkeypatch.setattr(modelopt_export, "tensorrt_form", planted)
    module = quantized(block, images, "INT8_DEFAULT_CFG")
    with pytest.raises(ParityError, match=named):
        export_quantized(module, {"x": images.numpy()}, tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


def test_what_only_a_nested_subgraph_reads_is_kept():
    from edgeml.compress.modelopt_graph import drop_unused
    from onnx import TensorProto, helper

    def branch(nodes, name):
        return helper.make_graph(
            nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])]
        )

    inner = [helper.make_node("Neg", ["r"], ["in"])], [helper.make_node("Abs", ["r"], ["on"])]
    nested = helper.make_node(
        "If", ["c"], ["n"], then_branch=branch(inner[0], "in"), else_branch=branch(inner[1], "on")
    )
    other = helper.make_node("Identity", ["x"], ["e"])
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Relu", ["x"], ["nobody"]),
        helper.make_node(
            "If", ["c"], ["y"], then_branch=branch([nested], "n"), else_branch=branch([other], "e")
        ),
    ]
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
    ]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])]
    model = helper.make_model(helper.make_graph(nodes, "g", values, out))
    drop_unused(model)
    assert [node.output[0] for node in model.graph.node] == ["r", "y"]
