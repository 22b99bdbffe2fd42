"""2:4 sparsity: kept through fine-tuning and export, and refused where nothing is gained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edgeml.artifact.recipe import FinetuneStep, build_recipe
from edgeml.artifact.recipe_steps import step_fault
from edgeml.artifact.stage_cache import StageCache
from edgeml.artifact.target import find_target
from edgeml.artifact.work_directory import WorkDirectory
from edgeml.compress.plan_training import training_lines
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.compress.sparsity_2to4 import (
    covered_layers,
    finish_2to4,
    is_2to4,
    sparse_layers_of,
    sparsify_2to4,
)
from edgeml.compress.sparsity_gain import why_no_gain
from edgeml.compress.stages import Stages
from edgeml.compress.steer_data import FinetuneData
from edgeml.compress.steer_run import refuse_untrainable
from edgeml.compress.steer_train import finetune
from edgeml.errors import EdgemlError, InputError
from edgeml.export.onnx_graph import to_onnx
from edgeml.train.batches import ArrayBatches
from edgeml.train.checkpoint import Checkpoint
from edgeml.train.settings import TrainSettings
from edgeml.train.training_loop import fit
from torch import nn

pytest.importorskip("modelopt")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 8)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(torch.relu(self.first(x)))))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 3, 8, 8)).astype(np.float32)
    return ArrayBatches({"x": x}, rng.integers(0, 8, 32), batch=16)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def test_every_covered_weight_of_the_exported_onnx_is_2to4_after_fine_tuning(net, data, tmp_path):
    sparse = sparsify_2to4(net)
    assert covered_layers(sparse) == ["conv", "fc"]
    before = sparse.conv.weight.detach().clone()
    fit(sparse, data, TrainSettings(epochs=2, lr=0.05))
    plain = finish_2to4(sparse)
    assert not torch.equal(plain.conv.weight, before)  # it learned
    to_onnx(plain, {"x": np.ones((2, 3, 8, 8), np.float32)}, tmp_path / "net.onnx")
    layers = {layer.shape: layer.is_2to4 for layer in sparse_layers_of(tmp_path / "net.onnx")}
    assert layers == {(16, 3, 3, 3): False, (16, 16, 3, 3): True, (8, 16): True}


def test_the_largest_two_of_four_stay_and_the_original_is_left_alone(net):
    before = net.fc.weight.detach().clone()
    plain = finish_2to4(sparsify_2to4(net))
    fours = before.abs().reshape(-1, 4)
    kept = (plain.fc.weight.detach() != 0).reshape(-1, 4)
    best = fours.argsort(1)[:, 2:].sort(1).values
    assert torch.equal(kept.nonzero()[:, 1].reshape(-1, 2), best)
    assert torch.equal(net.fc.weight, before) and type(net.fc) is nn.Linear


@pytest.mark.parametrize("name", ["cpu", "arm64"])
def test_a_target_that_gains_nothing_is_refused_unless_forced(net, name):
    with pytest.raises(InputError, match=r"gains nothing there: .*multiply the zeros too"):
        sparsify_2to4(net, target=find_target(name))
    assert covered_layers(sparsify_2to4(net, target=find_target(name), force=True))


def test_boards_with_sparse_tensor_cores_are_let_through():
    assert why_no_gain(find_target("jetson-orin-nano")) is None
    old = find_target("rtx").model_copy(update={"name": "t4", "compute_capability": "SM75"})
    assert "SM80" in (why_no_gain(old) or "")


def test_what_cannot_be_done_is_one_line(net):
    with pytest.raises(InputError, match="no layer that 2:4 covers"):
        sparsify_2to4(nn.Linear(6, 6))
    with pytest.raises(InputError, match="quantization works on ONNX alone"):
        sparsify_2to4("net.onnx")
    with pytest.raises(EdgemlError, match="holds no 2:4 mask"):
        finish_2to4(net)


def test_three_of_four_is_not_2to4():
    assert not is_2to4(np.array([[1.0, 2, 3, 0]]), 1)
    assert not is_2to4(np.zeros((2, 6)), 1)


class Blocks(nn.Module):
    """`Net`, and a block whose features are matched, too."""

    def __init__(self):
        super().__init__()
        self.net, self.last = Net(), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, x):
        return self.last(self.net(x))


def finetuned(folder, data, kill_after=None, monkeypatch=None):
    """A network after `finetune` with masks and features; killed once after an epoch, and resumed."""
    torch.manual_seed(0)
    folder.mkdir()
    teacher, save, lines = Blocks(), Checkpoint.save, []
    torch.manual_seed(1)
    student = Blocks()

    def killed(self, module, optimizer, progress):
        save(self, module, optimizer, progress)
        if len(progress.epochs) == kill_after:
            raise KeyboardInterrupt

    step = FinetuneStep(epochs=3, features=True, sparse_2to4="forced")
    settings = TrainSettings(lr=1e-2, threads=1, precision="fp32", channels_last=False)
    with WorkDirectory(folder / "out", "sparse") as work:
        stages = Stages(StageCache(folder / "cache"), work, lines.append, None)
        file = work.part / "finetune.safetensors"
        words = (teacher, FinetuneData(data, True, None), step, settings, 3, file, {}, stages)
        if kill_after:
            with monkeypatch.context() as patch:
                patch.setattr(Checkpoint, "save", killed)
                with pytest.raises(KeyboardInterrupt):
                    finetune(student, *words)
            torch.manual_seed(1)
            student = Blocks()
        finetune(student, *words)
    return student, lines


def test_a_recipes_step_keeps_the_masks_also_over_a_kill(data, tmp_path, monkeypatch):
    whole, lines = finetuned(tmp_path / "whole", data)
    assert "2:4: the weights of 3 layers are masked" in lines
    assert type(whole.net.conv) is nn.Conv2d
    for name in ("net.conv", "net.fc", "last.2"):
        assert is_2to4(whole.get_submodule(name).weight.detach().numpy(), 1)
    assert not is_2to4(whole.net.first.weight.detach().numpy(), 1)
    again, lines = finetuned(tmp_path / "killed", data, 2, monkeypatch)
    assert any("going on after epoch 2" in line for line in lines)
    other = again.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize(("value", "refused"), [(True, True), ("forced", False)])
def test_a_recipe_is_refused_where_nothing_is_gained_unless_forced(value, refused):
    values = recipe_values({}, {"model": "net.py:build", "data": "digits", "epochs": 2})
    values["steps"][0] |= {"sparse_2to4": value}
    recipe = build_recipe(values)
    if refused:
        with pytest.raises(InputError, match=r"sparse_2to4 gains nothing there: cpu runs .*forced"):
            refuse_untrainable(recipe)
    else:
        refuse_untrainable(recipe)
        assert "2:4 masks" in training_lines(recipe)[0]


def test_qat_would_lose_the_zeros():
    steps = [{"step": "finetune", "sparse_2to4": True}, {"step": "quantize"}, {"step": "qat"}]
    assert "does not keep the zeros" in step_fault(steps)[1]
