"""ModelOpt's torch route as a compression step: what it writes, and what stays in float is told."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from edgeml.compress.calibration import Calibration
from edgeml.compress.step import apply
from edgeml.errors import BuildError, InputError
from edgeml.export import to_onnx
from edgeml.export.lint_graph import HEAVY, LintGraph
from edgeml.export.qdq_lint import lint

torch = pytest.importorskip("torch")
if not find_spec("modelopt") or not find_spec("onnxscript"):
    pytest.skip("nvidia-modelopt is not installed", allow_module_level=True)

from edgeml.compress.quantize_modelopt import QuantizeModelopt  # noqa: E402  torch is needed


class Padded(torch.nn.Conv2d):
    """A convolution with a forward of its own, as EfficientNet's "same" padding."""

    def forward(self, x):
        x = torch.nn.functional.pad(x, (0, 1, 0, 1))
        return torch.nn.functional.conv2d(x, self.weight, self.bias, self.stride)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Padded(3, 8, 3, stride=2, bias=False)
        self.bn = torch.nn.BatchNorm2d(8)
        self.deep = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.deep(torch.relu(self.bn(self.stem(x)))))
        return self.head(x.mean((2, 3)))


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(4, 8, batch_first=True)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.lstm(x)[0].mean(1))


def exported(module, shape, folder: Path) -> Path:
    x = torch.zeros(2, *shape)
    to_onnx(module, {"x": x.numpy()}, folder / "model.onnx", ["logits"])
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    """`Network` and its ONNX file; a route leaves both as they were."""
    torch.manual_seed(0)
    module = Network().eval()
    return module, exported(module, (3, 8, 8), tmp_path_factory.mktemp("network"))


def run(module, model: Path, shape, folder: Path, **options):
    x = np.random.default_rng(0).standard_normal((16, *shape)).astype(np.float32)
    calibration = Calibration(lambda: ({"x": a} for a in x), 16)
    step = QuantizeModelopt(module, **options)
    return step, apply(step, model, calibration, folder)


def test_a_convolution_with_its_own_padding_is_quantized_with_the_padding_inside(network, tmp_path):
    step, result = run(*network, (3, 8, 8), tmp_path)
    assert (step.route, result.path.name) == ("modelopt max", "model.int8.onnx")
    graph = LintGraph.read(result.path)
    kinds = Counter(node.op_type for node in graph.nodes)
    assert kinds["Pad"] == kinds["BatchNormalization"] == 0
    heavy = [node for node in graph.nodes if node.op_type in HEAVY]
    assert len(heavy) == 3
    assert all(graph.dequantizer(name) is not None for n in heavy for name in n.input[:2])
    assert graph.outputs == {"logits"}
    assert [f.line for f in lint(result.path, "10.3", shapes=["x"]).findings] == []


def test_fp8_is_a_file_of_its_own_name(network, tmp_path):
    step, result = run(*network, (3, 8, 8), tmp_path, method="fp8")
    assert (step.precision, result.path.name, result.quantizers) == ("fp8", "model.fp8.onnx", 6)


def test_excluded_nodes_stay_in_float_by_their_module(network, tmp_path):
    _, result = run(*network, (3, 8, 8), tmp_path, nodes_to_exclude=("linear|Gemm",))
    graph = LintGraph.read(result.path)
    quantized = {
        n.op_type
        for n in graph.nodes
        if n.op_type in HEAVY and graph.dequantizer(n.input[1]) is not None
    }
    assert quantized == {"Conv"}
    with pytest.raises(InputError, match="matches none"):
        run(*network, (3, 8, 8), tmp_path, nodes_to_exclude=("nowhere",))


def test_recurrent_layers_stay_in_float_and_are_named(tmp_path):
    module = Recurrent().eval()
    _, result = run(module, exported(module, (5, 4), tmp_path), (5, 4), tmp_path)
    assert any("lstm stays in float" in note for note in result.notes)
    kinds = Counter(node.op_type for node in LintGraph.read(result.path).nodes)
    assert kinds["LSTM"] == 1
    assert result.quantizers == 2  # the Linear layer


def test_a_graph_is_sent_to_the_route_for_graphs(tmp_path):
    with pytest.raises(InputError, match="take modelopt-onnx"):
        QuantizeModelopt(None)(tmp_path / "model.onnx", Calibration(lambda: iter(()), 0), tmp_path)


def test_a_network_without_a_layer_to_quantize_is_told(tmp_path):
    class Nothing(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    model = exported(Nothing().eval(), (3, 8, 8), tmp_path)
    with pytest.raises(BuildError, match="has no convolution or Linear layer"):
        run(Nothing().eval(), model, (3, 8, 8), tmp_path)
