"""The teacher's outputs are computed once for the samples that they belong to."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from edgeml.artifact.recipe import FinetuneStep, build_recipe
from edgeml.artifact.stage_cache import StageCache
from edgeml.artifact.work_directory import WorkDirectory
from edgeml.compress import distillation_loss, teacher_logits
from edgeml.compress.distil import STORED
from edgeml.compress.plan_training import training_lines
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.compress.stages import Stages
from edgeml.compress.steer_data import FinetuneData
from edgeml.compress.steer_train import finetune
from edgeml.compress.teacher_logits import with_stored_logits
from edgeml.train.batches import ArrayBatches, flip, shift_crop
from edgeml.train.settings import TrainSettings
from torch import nn


class Counted(nn.Module):
    """A linear layer that counts its passes."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 3)

    def forward(self, x):
        Counted.calls += not self.training
        return self.fc(x.flatten(1))


@pytest.fixture
def stages(tmp_path):
    with WorkDirectory(tmp_path / "out", "teacher") as work:
        lines: list[str] = []
        run = Stages(StageCache(tmp_path / "cache"), work, lines.append, None)
        run.lines = lines
        yield run


def batches(**more) -> ArrayBatches:
    x = np.random.default_rng(0).standard_normal((50, 3, 2, 2)).astype(np.float32)
    return ArrayBatches({"x": x}, np.arange(50) % 3, batch=16, **more)


def test_each_sample_keeps_its_own_answer_in_every_order(stages):
    teacher = Counted().eval()
    stored = with_stored_logits(batches(prepare=lambda x: 2 * x), teacher, 2, stages)
    for seed in (0, 1):
        for inputs, _ in stored.epoch(seed):
            torch.testing.assert_close(inputs[STORED], teacher(inputs["x"]).detach())
    loss = distillation_loss(teacher, alpha=1.0)
    plain = {"x": inputs["x"]}
    student = Counted()
    torch.testing.assert_close(loss(student, inputs, None), loss(student, plain, None))
    assert STORED in inputs  # the caller's own dictionary is left as it is
    assert any("50 samples, stored in float32" in line for line in stages.lines)


def test_the_teacher_is_not_asked_again(stages):
    teacher = Counted().eval()
    with_stored_logits(batches(), teacher, 2, stages)
    before = Counted.calls
    stored = with_stored_logits(batches(), teacher, 2, stages)
    assert Counted.calls == before + 1  # the batch that is part of the key
    other = copy.deepcopy(teacher)
    other.fc.bias.data += 1
    again = with_stored_logits(batches(), other, 2, stages)
    (a, b) = (next(iter(x.epoch(0)))[0][STORED] for x in (stored, again))
    torch.testing.assert_close(a + 1, b)


def test_an_augmented_epoch_is_asked_for_once(stages):
    teacher = Counted().eval()
    stored = with_stored_logits(batches(augment=flip), teacher, 2, stages)
    first = [{k: v.clone() for k, v in inputs.items()} for inputs, _ in stored.epoch(1)]
    for inputs in first:
        torch.testing.assert_close(inputs[STORED], teacher(inputs["x"]).detach())
    before = Counted.calls
    again = with_stored_logits(batches(augment=flip), teacher, 2, stages)
    for one, (inputs, _) in zip(first, again.epoch(1), strict=True):
        assert torch.equal(one["x"], inputs["x"])
        assert torch.equal(one[STORED], inputs[STORED])
    assert Counted.calls == before + 1  # the batch that is part of the key
    next(iter(again.epoch(2)))  # begun and left: nothing of it is kept
    list(again.epoch(2))
    assert Counted.calls == before + 1 + 1 + 4


def test_another_augmentation_is_another_epoch(stages):
    teacher = Counted().eval()
    for augment in (flip, shift_crop(1)):
        stored = with_stored_logits(batches(augment=augment), teacher, 1, stages)
        for inputs, _ in stored.epoch(1):
            torch.testing.assert_close(inputs[STORED], teacher(inputs["x"]).detach())


@pytest.mark.parametrize("augment", [None, flip])
def test_large_ones_are_computed_anew(stages, augment, monkeypatch):
    monkeypatch.setattr(teacher_logits, "MOST_BYTES", 50 * 3 * 4 * 2 - 1)
    plain = batches(augment=augment)
    assert (with_stored_logits(plain, Counted().eval(), 2, stages) is plain) == bool(augment)
    assert ("in every epoch" in stages.lines[-1]) == bool(augment)


def test_fine_tuning_uses_them(stages):
    torch.manual_seed(0)
    teacher, student = Counted(), Counted()
    data = FinetuneData(batches(), True, None)
    settings = TrainSettings(lr=1e-2, threads=1, precision="fp32", batch=16)
    before = Counted.calls
    words = (data, FinetuneStep(epochs=5), settings, 5, stages.part / "f.safetensors", {}, stages)
    assert finetune(student, teacher, *words) == 5
    assert Counted.calls - before == 1 + 4  # one batch for the key, then all four


@pytest.mark.parametrize(
    ("tune", "told"),
    [
        ({}, "computed once and stored in float32"),
        ({"augment": ["flip"]}, "computed once for each epoch's augmented samples"),
        ({"features": True}, "outputs and blocks, computed in every epoch"),
    ],
)
def test_the_plan_says_how_often(tune, told):
    values = recipe_values({}, {"model": "net.py:build", "data": "digits", "epochs": 2})
    values["steps"][0] |= tune
    (line,) = [x for x in training_lines(build_recipe(values)) if x.startswith("finetune")]
    assert re.search(told, line)
