"""As few layers in float as keep the budget: ModelOpt ranks, the bisection tries, the engine decides."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from edgeml.compress.calibration import Calibration
from edgeml.compress.step import apply
from edgeml.export import to_onnx
from edgeml.export.lint_graph import HEAVY, LintGraph
from edgeml.runtime.engine import EngineOptions, load_file

torch = pytest.importorskip("torch")
if not find_spec("modelopt") or not find_spec("onnxscript"):
    pytest.skip("nvidia-modelopt is not installed", allow_module_level=True)

from edgeml.compress.auto_quantize import AutoQuantizeModelopt  # noqa: E402  torch is needed


class Outlier(torch.nn.Module):
    """Three Linear layers; before the second one channel is 1000 × the others, which INT8 rounds away."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)
        self.third = torch.nn.Linear(16, 8)
        with torch.no_grad():
            self.first.weight[3] *= 1000
            self.second.weight[:, 3] /= 1000

    def forward(self, x):
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    module = Outlier().eval()
    x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    model = tmp_path_factory.mktemp("auto") / "model.onnx"
    to_onnx(module, {"x": x[:2]}, model)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()

    def score(path):
        """Percent of the outputs' norm."""
        with load_file(path, "onnxruntime", EngineOptions(batch=None)) as engine:
            [got] = engine.run({"x": x}).values()
        return 100 * float(np.linalg.norm(got - expected) / np.linalg.norm(expected))

    return module, model, Calibration(lambda: ({"x": a} for a in x), 16), score


def test_the_layer_behind_the_outlier_stays_in_float(job, tmp_path):
    module, model, calibration, score = job
    step = AutoQuantizeModelopt(module, score, max_drop_points=3.0)
    result = apply(step, model, calibration, tmp_path)
    assert step.tried[0].effective_bits == 8
    assert step.tried[0].drop_points > 10
    assert score(result.path) <= 3
    graph = LintGraph.read(result.path)
    quantized = [
        graph.dequantizer(n.input[1]) is not None for n in graph.nodes if n.op_type in HEAVY
    ]
    assert quantized == [True, False, True]
    assert result.notes == ["second stays in float, which the budget asks for"]


def test_all_int8_is_enough_where_the_budget_is_wide(job, tmp_path):
    module, model, calibration, score = job
    step = AutoQuantizeModelopt(module, score, max_drop_points=90.0)
    result = apply(step, model, calibration, tmp_path)
    assert (len(step.tried), result.quantizers, result.notes) == (1, 6, [])


def test_a_budget_that_cannot_be_kept_is_told_with_what_was_reached(job, tmp_path):
    module, model, calibration, score = job
    step = AutoQuantizeModelopt(module, score, max_drop_points=0.0, tries=3)
    result = apply(step, model, calibration, tmp_path)
    assert any("no choice of layers kept 0 points in 3 tries" in note for note in result.notes)
