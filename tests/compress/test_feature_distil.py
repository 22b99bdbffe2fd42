"""Feature distillation: blocks by their names, projections where widths differ, resumed bit for bit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from edgeml.artifact.recipe import FinetuneStep, build_recipe
from edgeml.artifact.stage_cache import StageCache
from edgeml.artifact.work_directory import WorkDirectory
from edgeml.compress import distillation_loss, feature_student
from edgeml.compress.feature_distil import blocks_of
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.compress.stages import Stages
from edgeml.compress.steer_data import FinetuneData
from edgeml.compress.steer_run import refuse_untrainable
from edgeml.compress.steer_train import finetune
from edgeml.errors import InputError
from edgeml.train.batches import ArrayBatches
from edgeml.train.checkpoint import Checkpoint
from edgeml.train.prune_history import remove_block, replay
from edgeml.train.settings import TrainSettings
from edgeml.train.zoo.resnet import resnet
from torch import nn

X = {"x": torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def networks() -> tuple[nn.Module, nn.Module]:
    """A teacher, and a student with a block less and half the channels of its first stage."""
    torch.manual_seed(0)
    teacher = resnet(blocks=2, width=8, classes=4).eval()
    student = copy.deepcopy(teacher)
    remove_block(student, "layer2.1")
    cut = ["conv1", "bn1", "layer1.0.conv2", "layer1.0.bn2", "layer1.1.conv2", "layer1.1.bn2"]
    read = ["layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.0.shortcut"]
    layers = [[n, "out"] for n in cut] + [[n, "in"] for n in read]
    return teacher, replay(student, [{"op": "channels", "kept": [0, 2, 4, 6], "layers": layers}])


def test_blocks_are_matched_by_name_and_removed_ones_drop_out():
    teacher, student = networks()
    wrapped = feature_student(student, teacher, X)
    assert wrapped.blocks == ["layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer3.1"]
    kinds = [type(p) for p in wrapped.projections]
    assert kinds == [nn.Linear, nn.Linear, nn.Identity, nn.Identity, nn.Identity]
    assert wrapped.student is student
    assert torch.equal(wrapped(**X), student(**X))


def test_equal_networks_are_at_no_distance_and_others_come_nearer():
    teacher, student = networks()
    loss = distillation_loss(teacher, alpha=1.0)
    same = feature_student(copy.deepcopy(teacher), teacher, X)
    assert float(loss(same, X, None).detach()) < 1e-6
    wrapped = feature_student(student, teacher, X)
    plain = float(loss(student, X, None).detach())
    first = float(loss(wrapped, X, None).detach())
    assert first > plain + 0.01
    optimizer = torch.optim.Adam(wrapped.parameters(), 3e-3)
    for _ in range(15):
        optimizer.zero_grad()
        value = loss(wrapped, X, None)
        value.backward()
        optimizer.step()
    assert float(value.detach()) < 0.7 * first
    assert all(p.grad is not None for p in wrapped.projections[0].parameters())
    assert not student._forward_hooks and not student.layer1[0]._forward_hooks


def test_statistics_of_batchnorm_are_not_moved_by_looking():
    teacher, student = networks()
    student.train()
    before = student.bn1.running_mean.clone()
    feature_student(student, teacher, X)
    assert torch.equal(student.bn1.running_mean, before) and student.bn1.training


def test_of_nested_blocks_the_outer_is_matched():
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert blocks_of(nn.Sequential(inner, nn.ReLU(), nn.Linear(2, 2))) == ["0", "2"]
    two = nn.ModuleList([inner, copy.deepcopy(inner)])
    assert blocks_of(nn.ModuleDict({"a": two})) == ["a.0", "a.1"]


def test_a_network_without_blocks_is_refused():
    with pytest.raises(InputError, match="no block of Linear has its like in the teacher"):
        feature_student(nn.Linear(2, 2), nn.Linear(2, 2), {"input": torch.ones(1, 2)})


def test_features_with_the_users_own_loop_are_refused():
    values = recipe_values({}, {"model": "net.py:build", "data": "digits", "epochs": 1})
    values["steps"][0] |= {"features": True, "hook": "own.py:fn"}
    with pytest.raises(InputError, match="features belongs to our loop, which hook replaces"):
        refuse_untrainable(build_recipe(values))


def trained(folder, monkeypatch=None, kill_after=None):
    """The student's weights after `finetune` with features; killed once after an epoch, and resumed."""
    teacher, student = networks()
    folder.mkdir()
    save = Checkpoint.save

    def killed(self, module, optimizer, progress):
        save(self, module, optimizer, progress)
        if len(progress.epochs) == kill_after:
            raise KeyboardInterrupt

    targets = np.arange(32) % 4
    data = FinetuneData(ArrayBatches({"x": X["x"].numpy()}, targets, batch=16), True, None)
    settings = TrainSettings(lr=1e-2, threads=1, precision="fp32", channels_last=False)
    step, lines = FinetuneStep(epochs=3, features=True), []
    with WorkDirectory(folder / "out", "features") as work:
        stages = Stages(StageCache(folder / "cache"), work, lines.append, None)
        file = work.part / "finetune.safetensors"
        words = (teacher, data, step, settings, 3, file, {"of": "this test"}, stages)
        if kill_after:
            with monkeypatch.context() as patch:
                patch.setattr(Checkpoint, "save", killed)
                with pytest.raises(KeyboardInterrupt):
                    finetune(copy.deepcopy(student), *words)
        assert finetune(student, *words) == 3
    assert any(line == "features: the outputs of 5 blocks are learnt from" for line in lines)
    return student.state_dict(), lines


def test_a_resumed_run_ends_in_the_same_weights_bit_for_bit(tmp_path, monkeypatch):
    whole, _ = trained(tmp_path / "whole")
    again, lines = trained(tmp_path / "killed", monkeypatch, kill_after=2)
    assert any("going on after epoch 2" in line for line in lines)
    assert set(whole) == set(networks()[1].state_dict())  # the projections are gone
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
