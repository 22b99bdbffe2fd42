"""A user's task is trained on: its own loss, and its own score in place of an accuracy."""

import json

import numpy as np
import pytest
import torch
from edgeml.artifact.bundle import open_bundle
from edgeml.errors import BundleError, DataError, InputError, TaskError
from edgeml.train.model_source import open_model
from edgeml.train.settings import TrainSettings
from edgeml.train.task_data import open_task_data
from edgeml.train.trained_bundle import run_defaults
from edgeml.train.training_run import TrainingRequest, run_training

NET = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(6, 1)

    def forward(self, left, right):
        return {"y": self.dense(torch.cat([left, right], 1))[:, 0]}

def build():
    return Two()
"""
# A weighing of six numbers, in kilograms: no class anywhere.
TASK = """
import numpy as np

class Task:
    primary, lower_is_better, points_per_unit = "error_kg", True, 1

    def samples(self, split):
        random = np.random.default_rng(("train", "validation", "test").index(split))
        for _ in range({"train": 256, "validation": 40, "test": 41}[split]):
            x = random.normal(size=6).astype(np.float32)
            yield {"left": x[:4], "right": x[4:]}, float(x @ np.arange(6))

    def score(self, outputs, targets):
        errors = [abs(float(o["y"]) - t) for o, t in zip(outputs, targets)]
        return {"error_kg": float(np.mean(errors)), "worst_kg": max(errors)}

    def loss(self, model, batch, teacher=None):
        inputs, targets = batch
        return ((model(**inputs)["y"] - targets) ** 2).mean()
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEML_CACHE", str(tmp_path / "cache"))
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "weigh.py").write_text(TASK)
    return tmp_path


def request(files, task="weigh.py:Task", net="net.py:build", **values):
    plain = {"epochs": 8, "batch": 16, "lr": 0.1, "threads": 1, "precision": "fp32"}
    settings = TrainSettings(**plain | values.pop("settings", {}))
    return TrainingRequest(
        model=f"{files / net}", task=f"{files / task}", settings=settings, **values
    )


def quiet(line):
    return None


def test_a_network_of_two_inputs_learns_by_the_tasks_loss(files):
    out = files / "run"
    result = run_training(request(files), out, log=quiet)
    test = result.scores["test"]
    assert test.n == 41 and test.metrics["error_kg"] < 1 < 5 < result.fit.epochs[0].loss
    assert result.fit.epochs[0].validation.keys() == {"loss", "error_kg", "worst_kg"}
    written = json.loads((out / "scores.json").read_text())
    assert written["test"]["metrics"] == test.metrics
    bundle = open_bundle(out, trust_code=True)
    assert [spec["name"] for spec in bundle.manifest.inputs] == ["left", "right"]
    assert [spec["name"] for spec in bundle.manifest.outputs] == ["y"]
    # `edgeml compress RUN` goes on with the same task, where its code is trusted.
    with pytest.raises(BundleError, match="user code for its task"):
        run_defaults(str(out))
    assert run_defaults(str(out), trust_code=True) == {"task": f"{files / 'weigh.py'}:Task"}
    module = open_model(str(out), trust_code=True).module
    with torch.no_grad():
        y = module(torch.ones(1, 4), torch.ones(1, 2))["y"]
    assert float(y[0]) == pytest.approx(15, abs=3)


def test_early_stopping_watches_the_tasks_loss(files):
    lines = []
    settings = {"epochs": 60, "patience": 2, "schedule": "constant", "lr": 0.3}
    result = run_training(request(files, settings=settings), files / "run", log=lines.append)
    assert result.fit.best_epoch and len(result.fit.epochs) < 60
    assert any("stopped early" in line for line in lines)


def test_a_changed_task_file_is_another_training(files):
    first = open_task_data(f"{files / 'weigh.py'}:Task", None).fingerprint
    assert open_task_data(f"{files / 'weigh.py'}:Task", None).fingerprint == first
    (files / "weigh.py").write_text(TASK + "# a word more\n")
    assert open_task_data(f"{files / 'weigh.py'}:Task", None).fingerprint != first


def test_targets_of_several_shapes_reach_the_loss_as_a_list(files):
    boxes = TASK.replace("float(x @ np.arange(6))", "np.zeros((len(x) % 3 + int(x[0] > 0), 2))")
    boxes = boxes.replace('abs(float(o["y"]) - t)', "abs(float(o['y']))").replace(
        "- targets) ** 2", "- len(targets) * isinstance(targets, list)) ** 2"
    )
    (files / "weigh.py").write_text(boxes)
    result = run_training(request(files, settings={"epochs": 1}), files / "run", log=quiet)
    assert result.scores["validation"].n == 40


def test_what_cannot_be_trained_on_is_refused_with_one_line(files):
    def refused(kind, *changes, **values):
        text = TASK
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (files / "weigh.py").write_text(text)
        with pytest.raises(kind) as caught:
            run_training(request(files, **values), files / "out", log=quiet)
        assert "\n" not in str(caught.value) and caught.value.exit_code == 2
        assert not (files / "out").exists() and not (files / "out.part").exists()
        return str(caught.value)

    assert "has no loss(model, batch" in refused(TaskError, ("def loss", "def lose"))
    assert "loss raises NameError" in refused(TaskError, (".mean()\n", ".mean() + nothing\n"))
    assert "must give a scalar tensor" in refused(TaskError, (" ** 2).mean()", " ** 2)"))
    no_gradient = ("return ((model", "return ((model.eval() and model")
    assert "no gradient" in refused(TaskError, (".mean()\n", ".mean().detach()\n"), no_gradient)
    assert "gives left, other; the network takes left, right" in refused(
        DataError, ('"right": x[4:]', '"other": x[4:]')
    )
    assert "differ in shape" in refused(DataError, ("x[:4]", "x[:4 + len(x) // 6 * int(x[0] > 0)]"))
    assert "does not take a sample" in refused(DataError, ("x[:4]", "x[:3]"))
    assert "augment is for --data" in refused(InputError, augment=("flip",))
    assert "one of them" in refused(InputError, data="digits")
    assert "score gives nothing" in refused(
        TaskError,
        ('return {"error_kg": float(np.mean(errors)), "worst_kg": max(errors)}', "return {}"),
    )


def test_samples_need_no_class_names_and_zoo_networks_take_their_options(files):
    images = TASK.replace(
        '{"left": x[:4], "right": x[4:]}', '{"x": np.ones((1, 8, 8), "f4") * x[0]}'
    )
    images = images.replace('o["y"]', 'o["output"][0]').replace(
        'model(**inputs)["y"]', "model(**inputs)[:, 0]"
    )
    (files / "weigh.py").write_text(images)
    small = {"width": 4, "blocks": 1, "classes": 1}
    asked = request(files, settings={"epochs": 1})
    asked = asked.model_copy(update={"model": "resnet20", "options": small})
    result = run_training(asked, files / "run", log=quiet)
    assert np.isfinite(result.scores["test"].metrics["error_kg"])
    assert open_bundle(files / "run").manifest.model["trained"]["options"]["classes"] == 1
