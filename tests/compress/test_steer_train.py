"""Fine-tuning a student: on what data, towards which teacher, and what ends it."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from edgeml.artifact.recipe import build_recipe
from edgeml.artifact.stage_cache import StageCache
from edgeml.compress import steer
from edgeml.errors import EdgemlError, InputError
from edgeml.runtime.engine import EngineOptions
from torch import nn

STEPS = {"steps": [{"step": "finetune"}]}
LOOPS = """
def hook(model, teacher, out, deadline_s):
    (out / "seen.txt").write_text(f"{deadline_s}")
    return model

def wrong(model, teacher, out, deadline_s):
    return teacher
"""


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, image):
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))


def finetune_data(values, settings=None, augment=(), spec=None):
    """`open_finetune_data` for a job of which it needs only a few parts."""
    from types import SimpleNamespace

    from edgeml.artifact.preprocess import ImagePreprocess
    from edgeml.artifact.tensor_spec import TensorSpec
    from edgeml.compress.steer_data import open_finetune_data
    from edgeml.compress.train_split import with_train_split
    from edgeml.train.open_task import open_data, open_user_task
    from edgeml.train.settings import TrainSettings

    recipe = with_train_split(build_recipe({"model": "net.py:build", **values}))
    spec = spec or TensorSpec("image", (None, 3, 8, 8), "float32")
    preprocess = ImagePreprocess() if "imagefolder" in str(recipe.data) else None
    if recipe.task:
        opened = open_user_task(recipe.task, [spec], names_only=True)
    else:
        opened = open_data(recipe.data, spec, preprocess=preprocess)
    job = SimpleNamespace(recipe=recipe, opened=opened, info=SimpleNamespace(inputs=[spec]))
    return open_finetune_data(job, settings or TrainSettings(batch=16), augment), recipe


def finetuned(tmp_path, data, epochs=3, time_s=None, lr=1e-2):
    """A student of random weights after `finetune`, its teacher, and what was told."""
    from edgeml.artifact.recipe import FinetuneStep
    from edgeml.artifact.work_directory import WorkDirectory
    from edgeml.compress.stages import Stages
    from edgeml.compress.steer_train import finetune
    from edgeml.train.settings import TrainSettings

    torch.manual_seed(0)
    teacher, student = (Pooled() for _ in range(2))
    lines: list[str] = []
    with WorkDirectory(tmp_path / "out", "finetune") as work:
        stages = Stages(StageCache(tmp_path / "cache"), work, lines.append, time_s)
        settings = TrainSettings(batch=16, lr=lr, epochs=epochs)
        file = work.part / "finetune-1.safetensors"
        key = {"of": "this test"}
        step = FinetuneStep(epochs=epochs)
        finetune(student, teacher, data, step, settings, epochs, file, key, stages, lambda: "!")
    return student, teacher, lines


@pytest.fixture
def few(tmp_path):
    x = np.random.default_rng(0).standard_normal((80, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    return finetune_data({"data": f"npz:{tmp_path / 'x.npz'}", **STEPS})[0]


def test_a_student_comes_nearer_to_its_teacher(few, tmp_path):
    from edgeml.compress.distil import distillation_loss

    student, teacher, lines = finetuned(tmp_path, few, epochs=30)
    inputs, _ = next(iter(few.batches.epoch(0)))
    loss = distillation_loss(teacher, alpha=1.0)
    torch.manual_seed(0)
    _, untrained = Pooled(), Pooled()
    assert float(loss(student, inputs, None).detach()) < 0.5 * float(
        loss(untrained, inputs, None).detach()
    )
    assert sum(line.startswith("fine-tuning, epoch") and line.endswith("!") for line in lines) == 30


def test_fine_tuning_stays_within_the_time(few, tmp_path):
    _, _, lines = finetuned(tmp_path, few, epochs=10**6, time_s=0.5)
    epochs = [line for line in lines if line.startswith("fine-tuning, epoch")]
    assert len(epochs) < 10**4 and (epochs or "no time is left for fine-tuning" in lines)
    assert all("min left" in line for line in epochs)


def test_a_training_that_diverges_keeps_its_last_good_epoch(few, tmp_path):
    with pytest.raises(
        EdgemlError, match="fine-tuning diverged, the last good epoch is kept"
    ) as caught:
        finetuned(tmp_path, few, epochs=20, lr=1e30)
    assert caught.value.exit_code == 1


def test_images_are_fine_tuned_on_their_train_split_alone(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(60):
        file = tmp_path / "photos" / f"c{i % 3}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(file)
    data, recipe = finetune_data(
        {"data": f"imagefolder:{tmp_path / 'photos'}", **STEPS}, augment=("flip",)
    )
    assert recipe.data.startswith("cut:60-20-20:imagefolder:")
    assert data.batches.samples == 36 and data.labels
    inputs, targets = next(iter(data.batches.epoch(0)))
    assert inputs["image"].shape == (16, 3, 8, 8) and inputs["image"].max() <= 1
    assert targets.shape == (16,)


def test_large_inputs_come_in_smaller_batches():
    from types import SimpleNamespace

    from edgeml.artifact.recipe import FinetuneStep
    from edgeml.compress.steer_data import finetune_settings

    def batch(side, **step):
        recipe = SimpleNamespace(model="net.py:build", seed=0, threads=1)
        job = SimpleNamespace(recipe=recipe, sample={"x": np.zeros((3, side, side), np.float32)})
        return finetune_settings(job, FinetuneStep(**step))[0].batch

    assert [batch(side) for side in (32, 112, 224, 512)] == [128, 128, 32, 6]
    assert batch(512, batch=64) == 64


def test_a_pruned_network_is_not_trained_at_a_last_small_rate(tmp_path):
    from types import SimpleNamespace

    from edgeml.artifact.recipe import FinetuneStep
    from edgeml.compress.steer_data import finetune_settings

    def rate(pruned, trained, **step):
        (tmp_path / "manifest.json").write_text(json.dumps({"recipe": {"settings": trained}}))
        recipe = SimpleNamespace(model=str(tmp_path), seed=0, threads=1)
        job = SimpleNamespace(recipe=recipe, sample={"x": np.zeros((3, 8, 8), np.float32)})
        return finetune_settings(job, FinetuneStep(**step), pruned)[0].lr

    sgd = {"optimizer": "sgd", "momentum": 0.9, "lr": 0.002, "batch": 64}
    assert rate(False, sgd) == 0.001
    assert rate(True, sgd) == 0.01
    assert rate(True, sgd, lr=0.003) == 0.003
    assert rate(True, {**sgd, "lr": 0.1}) == 0.05
    assert rate(True, {**sgd, "momentum": 0.0}) == 0.001
    assert rate(True, {**sgd, "optimizer": "adam"}) == 0.001
    assert rate(True, sgd, optimizer="adamw") == 5e-4
    assert rate(True, {**sgd, "optimizer": "adam"}, optimizer="sgd") == 0.01
    assert rate(True, sgd, batch=16) == 0.0025


def test_texts_are_fine_tuned_on_as_their_tokens(tmp_path, monkeypatch):
    from edgeml.artifact.tensor_spec import TensorSpec
    from edgeml.train.tokenizer import TokenizerSettings, learn_tokenizer

    monkeypatch.setenv("EDGEML_CACHE", str(tmp_path / "cache"))
    rows = [f"word{i} of text {i},{'ab'[i % 2]}" for i in range(40)]
    (tmp_path / "news.csv").write_text("\n".join(["text,label", *rows]))
    file, _ = learn_tokenizer(rows, TokenizerSettings(max_length=8))
    words = f"tokens:{file}:text-csv:{tmp_path / 'news.csv'}"
    spec = TensorSpec("ids", (None, None), "int64")
    data, _ = finetune_data({"data": words, **STEPS}, spec=spec)
    inputs, targets = next(iter(data.batches.epoch(0)))
    assert inputs["ids"].shape == (16, 8) and inputs["ids"].dtype == torch.int64
    assert set(targets.tolist()) == {0, 1}


def test_without_labels_the_calibration_samples_are_learnt_from(tmp_path):
    x = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    data, recipe = finetune_data({"data": f"npz:{tmp_path / 'x.npz'}", **STEPS})
    assert not data.labels and not recipe.data.startswith("cut:")
    assert 0 < data.batches.samples < 40


def test_without_labels_a_round_is_scored_against_the_original(few, tmp_path):
    from types import SimpleNamespace

    from edgeml.artifact.tensor_spec import TensorSpec
    from edgeml.train.open_task import open_data

    spec = TensorSpec("image", (None, 3, 8, 8), "float32")
    opened = open_data(f"npz:{tmp_path / 'x.npz'}", spec)
    job = SimpleNamespace(
        recipe=SimpleNamespace(batch=1),
        opened=opened,
        info=SimpleNamespace(outputs=[TensorSpec("y", (None, 2), "float32")]),
        sample={"image": np.zeros((3, 8, 8), np.float32)},
        options=EngineOptions(),
    )
    teacher = Pooled().eval()
    other = copy.deepcopy(teacher)
    other.head.weight.data.neg_()
    other.head.bias.data.neg_()
    run = SimpleNamespace(job=job, teacher=teacher)
    assert steer._score(run, copy.deepcopy(teacher)) == pytest.approx(1)
    assert steer._score(run, other) < 0.5


def test_a_task_needs_a_loss_to_be_fine_tuned(tmp_path):
    text = """
import numpy as np

class Task:
    primary, lower_is_better = "right", False
    def samples(self, split):
        for i in range(8):
            yield {"image": np.full((3, 8, 8), i, np.float32)}, i % 2
    def score(self, outputs, targets):
        return {"right": 1.0}

class Taught(Task):
    def loss(self, model, batch, teacher=None):
        return model(**batch[0]).mean()
"""
    (tmp_path / "task.py").write_text(text)
    with pytest.raises(InputError, match=r"Task has no loss\(model, batch, teacher=None\)"):
        finetune_data({"task": f"{tmp_path / 'task.py'}:Task", **STEPS})
    data, _ = finetune_data({"task": f"{tmp_path / 'task.py'}:Taught", **STEPS})
    assert data.task_loss is not None and data.batches.samples == 8


class Run:
    """What a hook needs of `Stages`."""

    log = staticmethod(lambda line: None)

    @staticmethod
    def seconds_left():
        return 100.0


def test_a_users_own_loop_replaces_ours(tmp_path):
    from edgeml.compress.steer_train import TRAINING_SHARE, _by_hook

    net, teacher = nn.Linear(2, 3), nn.Linear(2, 4)
    (tmp_path / "loops.py").write_text(LOOPS)
    hook = f"{tmp_path / 'loops.py'}:hook"
    _by_hook(hook, net, teacher, tmp_path / "own", Run())
    assert float((tmp_path / "own/seen.txt").read_text()) == 100 * TRAINING_SHARE
    wrong = f"{tmp_path / 'loops.py'}:wrong"
    with pytest.raises(InputError, match=r"returned another network: weight is \(4, 2\)"):
        _by_hook(wrong, net, teacher, tmp_path / "own", Run())
    with pytest.raises(InputError, match="did you mean hook"):
        _by_hook(hook + "k", net, teacher, tmp_path / "own", Run())
