"""A planted fault is found: the first layer where two engines part is named."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from edgeml.export.blame import _bisect, _Pair, first_divergence, first_divergence_torch
from edgeml.export.onnx_graph import to_onnx
from edgeml.export.parity import compare, tolerance_for
from edgeml.export.probe import chunks, float_probes
from edgeml.runtime.engine import EngineOptions, load_file
from onnx import numpy_helper
from torch import nn

DYNAMIC = EngineOptions(batch=None)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.block(x)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net(torch.randn(16, 3, 8, 8))
    return net.eval()


@pytest.fixture(scope="module")
def feeds():
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(2, 3, 8, 8)).astype(np.float32)} for _ in range(2)]


@pytest.fixture(scope="module")
def whole(net, feeds, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    to_onnx(net, feeds[0], path)
    return path


@pytest.fixture
def faulty(whole, tmp_path):
    """faulty(part of a weight's name): a copy of the graph with that weight turned around."""

    def make(name):
        model = onnx.load_model(whole)
        (weight,) = [t for t in model.graph.initializer if name in t.name]
        changed = numpy_helper.from_array(numpy_helper.to_array(weight)[::-1].copy(), weight.name)
        weight.CopyFrom(changed)
        onnx.save_model(model, tmp_path / "faulty.onnx")
        return tmp_path / "faulty.onnx"

    return make


@pytest.mark.parametrize(
    ("weight", "op", "scope"),
    [
        ("stem.weight", "Conv", "stem"),
        ("block.0.weight", "Conv", "block.1"),  # the exporter folds block.1, the batch norm, in
        ("head.weight", "Gemm", "head"),
    ],
)
def test_the_layer_with_a_planted_fault_is_named(whole, faulty, feeds, weight, op, scope):
    bad = faulty(weight)
    with (
        load_file(whole, "onnxruntime", DYNAMIC) as right,
        load_file(bad, "openvino", DYNAMIC) as wrong,
    ):
        assert not compare(right, wrong, feeds, "fp32").passed
    blame = first_divergence(whole, "onnxruntime", "openvino", feeds, "fp32", candidate_onnx=bad)
    assert (blame.op, blame.scope) == (op, scope)
    nodes = {node.name: node for node in onnx.load_model(whole).graph.node}
    assert any(weight in name for name in nodes[blame.layer].input)
    assert f"layer {blame.layer} ({op}, torch module {scope}): max |Δ|" in blame.line


def test_engines_that_agree_have_no_blame(whole, feeds):
    assert first_divergence(whole, "onnxruntime", "openvino", feeds, "fp32") is None


def test_bisection_finds_the_same_layer_with_one_tensor_added_at_a_time(whole, faulty, feeds):
    bad = faulty("block.0.weight")
    pair = _Pair(whole, bad, "onnxruntime", "onnxruntime", DYNAMIC, feeds, tolerance_for("fp32"))
    assert _bisect(pair, pair.probes()).scope == "block.1"


def test_the_torch_module_that_its_export_does_not_reproduce_is_named(net, whole, faulty, feeds):
    assert first_divergence_torch(net, whole, feeds) is None
    blame = first_divergence_torch(net, faulty("block.0.weight"), feeds)
    assert blame.scope == "block.1"
    assert "torch module block.1" in blame.line
    assert not any(m._forward_hooks for m in net.modules())


def test_a_graph_with_external_data_can_be_probed(net, feeds, tmp_path):
    path = tmp_path / "net.onnx"
    assert to_onnx(net, feeds[0], path, external_over_bytes=0).has_external
    options = replace(DYNAMIC, threads=1)
    assert first_divergence(path, "onnxruntime", "openvino", feeds, "fp32", options) is None
    assert first_divergence_torch(net, path, feeds) is None


def test_probes_come_in_the_order_of_the_graph_and_in_chunks_of_bounded_size(whole):
    probes = float_probes(whole, batch=2)
    order = [out for node in onnx.load_model(whole).graph.node for out in node.output]
    assert [p.tensor for p in probes] == [t for t in order if t in {p.tensor for p in probes}]
    conv = next(p for p in probes if p.node.op_type == "Conv")
    assert conv.size_bytes == 2 * 8 * 8 * 8 * 4
    assert [p for chunk in chunks(probes) for p in chunk] == probes
    huge = [replace(p, size_bytes=10**9) for p in probes]
    assert [len(chunk) for chunk in chunks(huge)] == [1] * len(probes)
