"""QAT: fake quantizers that train, an OpenVINO engine that computes what was trained."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from edgeml.artifact.recipe import build_recipe
from edgeml.compress import distillation_loss, qat
from edgeml.compress.fake_quantize import quantizers_of, to_openvino
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.compress.run_recipe import run_recipe
from edgeml.compress.steer_run import refuse_untrainable
from edgeml.errors import DataError, InputError
from edgeml.runtime.engine import EngineOptions, load_file
from edgeml.train.batches import ArrayBatches
from edgeml.train.checkpoint import Checkpoint
from edgeml.train.settings import TrainSettings
from edgeml.train.training_loop import fit
from safetensors.torch import save_file
from torch import nn


class Net(nn.Module):
    """Channel ranges that differ by 2^12 share one scale after relu: plain INT8 drowns the small ones."""

    def __init__(self, spread: float = 6.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)
        scale = 2.0 ** torch.linspace(-spread, spread, 16)
        with torch.no_grad():
            self.a.weight *= scale[:, None, None, None]
            self.a.bias *= scale
            self.b.weight /= scale[None, :, None, None]

    def forward(self, image):
        x = torch.relu(self.b(torch.relu(self.a(image))))
        return self.head(x.mean((2, 3)))


def images(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    offsets = 2 * rng.standard_normal((n, 3, 1, 1))
    return (rng.standard_normal((n, 3, 8, 8)) + offsets).astype(np.float32)


def score(module: nn.Module, teacher: nn.Module, x: np.ndarray) -> float:
    with torch.no_grad():
        x = torch.from_numpy(x)
        return float((module(x).argmax(1) == teacher(x).argmax(1)).float().mean())


def test_training_wins_back_what_ptq_lost_and_the_engine_computes_it(tmp_path):
    teacher, x = Net().eval(), images(512)
    ready = qat(teacher, [{"image": x[i : i + 1]} for i in range(20)])
    assert quantizers_of(ready) >= 5 and quantizers_of(teacher) == 0
    before = score(ready, teacher, x[256:])
    batches = ArrayBatches({"image": x[:256]}, np.zeros(256, np.int64), batch=32)
    settings = TrainSettings(epochs=6, lr=3e-3, precision="fp32", threads=1, channels_last=False)
    fit(ready, batches, settings, loss=distillation_loss(teacher, alpha=1.0))
    after = score(ready, teacher, x[256:])
    assert before < 0.95 and after > before + 0.03
    to_openvino(ready, {"image": x[:1]}, tmp_path / "model.xml", ["y"])
    options = EngineOptions(threads=1, batch=1, input_shapes=(("image", (1, 3, 8, 8)),))
    with load_file(tmp_path / "model.xml", "openvino", options) as engine:
        got = np.concatenate([engine.run({"image": x[i : i + 1]})["y"] for i in range(256, 512)])
    with torch.no_grad():
        want = teacher(torch.from_numpy(x[256:])).argmax(1).numpy()
    assert abs((got.argmax(1) == want).mean() - after) < 0.03


def test_a_copy_is_trained_and_the_model_stays_as_it_was():
    model, x = Net(1.0).eval(), images(8)
    weights = copy.deepcopy(model.state_dict())
    ready = qat(model, [{"image": x[:4]}, {"image": x[4:]}], excluded=["head"])
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert quantizers_of(ready) < quantizers_of(qat(model, [{"image": x}]))


def test_what_cannot_be_trained_is_one_line():
    with pytest.raises(InputError, match="needs a torch module"):
        qat("model.onnx", [])
    with pytest.raises(DataError, match="no calibration samples"):
        qat(Net(), [])


NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)
        scale = 2.0 ** torch.linspace(-6.0, 6.0, 16)
        with torch.no_grad():
            self.a.weight *= scale[:, None, None, None]
            self.a.bias *= scale
            self.b.weight /= scale[None, :, None, None]

    def forward(self, image):
        x = torch.relu(self.b(torch.relu(self.a(image))))
        return self.head(x.mean((2, 3)))

def build():
    return Net()
"""


@pytest.fixture
def hostile(tmp_path) -> dict:
    """Flags of a run on `Net`, labelled by its own answers."""
    teacher, x = Net().eval(), images(900)
    (tmp_path / "net.py").write_text(NETWORK)
    with torch.no_grad():
        y = teacher(torch.from_numpy(x)).argmax(1).numpy()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    save_file(teacher.state_dict(), tmp_path / "w.safetensors")
    return {
        "model": f"{tmp_path / 'net.py'}:build",
        "weights": str(tmp_path / "w.safetensors"),
        "data": f"npz:{tmp_path / 'data.npz'}",
        "routes": ("nncf",),
        "runtimes": ("openvino",),
        "calibration_samples": 20,
        "precisions": ("int8",),
        "threads": 1,
        "max_drop": 100.0,
    }


def recipe_of(flags: dict, **step):
    values = recipe_values({}, {**flags, "qat": True})
    values["steps"][-1] |= {"epochs": 3, "lr": 3e-3, **step}
    return build_recipe(values)


def test_a_run_trains_its_int8_engine_and_a_killed_one_goes_on(
    tmp_path, hostile, cache, monkeypatch
):
    recipe, lines, save = recipe_of(hostile), [], Checkpoint.save

    def killed(self, module, optimizer, progress):
        save(self, module, optimizer, progress)
        if len(progress.epochs) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, tmp_path / "out", cache=cache)
    result = run_recipe(recipe, tmp_path / "out", log=lines.append, cache=cache)
    assert any("going on after epoch 2" in line for line in lines)
    rows = {row.route: row for row in result.table.rows if row.execution == "fp32"}
    trained, plain = rows["nncf qat"], rows["nncf performance"]
    assert trained.status == "measured" and trained.precision == "int8"
    assert trained.drop_points.value < plain.drop_points.value - 3
    assert trained.latency_p50_ms.value > 0 and trained.int8_mac_share.value > 0.9


def test_for_tensorrt_modelopt_trains_what_is_written_as_typed_qdq(tmp_path, hostile, cache):
    pytest.importorskip("modelopt")

    flags = {**hostile, "target": "jetson-orin-nano", "routes": ("modelopt",), "runtimes": None}
    result = run_recipe(recipe_of(flags), tmp_path / "out", cache=cache)
    rows = {row.route: row for row in result.table.rows}
    trained, plain = rows["modelopt qat"], rows["modelopt max"]
    assert trained.status == "measured" and (trained.precision, trained.execution) == (
        "int8",
        "fp16",
    )
    assert trained.drop_points.value < plain.drop_points.value - 3
    assert trained.drop_points.how == "emulated" and trained.latency_p50_ms.value is None
    assert result.exit_code == 0 and trained.shipped
    nodes = onnx.load(tmp_path / "out" / "model.int8.onnx").graph.node
    assert sum(node.op_type == "DequantizeLinear" for node in nodes) == 6


def test_auto_trains_nothing_where_quantization_keeps_the_budget(tmp_path, hostile, cache):
    result = run_recipe(recipe_of(hostile, when="auto"), tmp_path / "out", cache=cache)
    assert "nncf qat" not in {row.route for row in result.table.rows}


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"model": "m.onnx", "weights": None}, "step qat: m.onnx is an ONNX file"),
        ({"runtimes": ("onnxruntime",)}, "step qat: it makes engines of openvino"),
        ({"precisions": ("fp32",)}, "--qat trains an INT8 engine"),
        (
            {"target": "arm64"},
            "step qat: for arm64 it is not made from here",
        ),
    ],
)
def test_what_a_run_cannot_train_is_told_before_any_work(hostile, changed, line):
    with pytest.raises(InputError, match=line):
        refuse_untrainable(recipe_of({**hostile, **changed}))
