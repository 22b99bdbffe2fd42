"""`compress` to a budget, the whole way on a tiny network: prune, fine-tune, quantize, prove, resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from edgeml.artifact.recipe import build_recipe
from edgeml.artifact.stage_cache import StageCache
from edgeml.compress import (
    budget_parts,
    layer_times,
    search,
    steer,
    steer_engine,
    steer_structure,
)
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.compress.run_recipe import run_recipe
from edgeml.compress.steer import _epochs
from edgeml.errors import InputError
from edgeml.report.budget_table import budget_lines
from edgeml.train.model_source import open_model

NETWORK = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n = nn.Conv2d(32, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48)
        self.b, self.m = nn.Conv2d(48, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)

    def forward(self, x):
        return torch.relu(x + self.m(self.b(torch.relu(self.n(self.a(x))))))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, trained_on_colours) -> dict[str, str]:
    """A trained network of two blocks on three colours of noise, and its data."""
    return trained_on_colours(tmp_path_factory.mktemp("tiny"), NETWORK, 600, 30)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> StageCache:
    return StageCache(tmp_path_factory.mktemp("steer-cache"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(steer_engine, "MEASURE_SECONDS", 0.1)
    monkeypatch.setattr(steer, "SETTLING_BUILDS", 1)
    monkeypatch.setattr(budget_parts, "BUILD_SECONDS", 0.1)
    monkeypatch.setattr(budget_parts, "BUILDS", 3)
    monkeypatch.setattr(layer_times, "CALLS", 12)
    monkeypatch.setattr(layer_times, "WARMUP", 2)
    # How a round settles and puts back is proven on a planted engine (test_steer_structure.py).
    monkeypatch.setattr(steer_structure, "MOST_BUILDS", 2)
    monkeypatch.setattr(steer_structure, "MOST_PUT_BACK", 1)


def recipe_of(tiny, rounds=2, epochs=2, steps=None, **values):
    prune = {"step": "prune", "rounds": rounds}
    finetune = {"step": "finetune", "epochs": epochs, "lr": 1e-3, "batch": 64}
    quantize = {"step": "quantize", "routes": ["nncf"], "calibration_samples": 32}
    return build_recipe(
        {
            **tiny,
            "runtimes": ["openvino"],
            "threads": 1,
            "max_drop_points": 60,
            "steps": steps or [prune, finetune, quantize],
            **values,
        }
    )


def test_a_killed_run_goes_on_to_its_latency_and_can_be_built_again(
    tiny, shared, tmp_path, monkeypatch
):
    recipe = recipe_of(tiny, latency="75%")
    real, calls = steer.finetune, []

    def killed(*args, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(steer, "finetune", killed)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, tmp_path / "out", cache=shared)
    assert (tmp_path / "out.part").is_dir()
    lines: list[str] = []
    monkeypatch.setattr(steer, "finetune", lambda *a, **n: calls.append(2) or real(*a, **n))
    result = run_recipe(recipe, tmp_path / "out", log=lines.append, cache=shared)
    assert calls == [1, 1, 2]  # the second round alone was trained again
    assert any(line.startswith("round 1 of 2: fine-tuning") and "cache" in line for line in lines)
    assert any(line == "round 2 of 2: what to prune: from the cache" for line in lines)

    table = result.table
    assert [row["round"] for row in table.steps if "round" in row] == [1, 2]
    assert table.removed and all(row["after"] < row["before"] for row in table.removed)
    (part,) = table.budget
    assert part["part"] == "latency" and part["builds"] == budget_parts.BUILDS
    assert part["bound"] >= part["value"]
    assert result.exit_code == (3 if part["verdict"] == "missed" else 0)
    # A noisy machine: what it was steered to is well below the whole, whatever the verdict.
    assert part["value"] < 0.95
    ids = {row.id for row in table.rows}
    assert any(i.startswith("original-openvino-int8") for i in ids) and "torch-fp32" in ids
    assert any("fine-tuning, epoch" in line for line in lines)
    assert "of plain INT8" in table.verdict_line
    text = "\n".join(budget_lines(table))
    cut = [line for line in text.splitlines() if line.startswith(("1", "2"))]
    assert len(cut) == len({row["group"] for row in table.removed})
    assert "removed" in text and "budget" in text and "round 2" in text

    out = tmp_path / "out"
    manifest = json.loads((out / "manifest.json").read_text())
    assert {"prune_history.json", "weights.safetensors"} <= set(manifest["files"])
    original = open_model(tiny["model"], Path(tiny["weights"])).module
    student = steer.load_student(original, out)
    x = np.load(tiny["data"].removeprefix("npz:"))["x"][:4]
    session = onnxruntime.InferenceSession(out / "model.onnx")
    (expected,) = session.run(None, {session.get_inputs()[0].name: x})
    with torch.inference_mode():
        got = student(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_what_cannot_be_met_is_refused_before_training(tiny, shared, tmp_path, monkeypatch):
    monkeypatch.setattr(steer, "finetune", lambda *a, **n: pytest.fail("trained"))
    recipe = recipe_of(tiny, latency="0.0001ms")
    with pytest.raises(InputError, match=r"--latency 0.0001ms cannot be met: the lowest that the"):
        run_recipe(recipe, tmp_path / "out", cache=shared)
    assert not (tmp_path / "out.part").exists()


def test_a_budget_that_plain_int8_meets_prunes_nothing(tiny, shared, tmp_path, monkeypatch):
    monkeypatch.setattr(steer, "finetune", lambda *a, **n: pytest.fail("trained"))
    result = run_recipe(recipe_of(tiny, latency="50ms"), tmp_path / "out", cache=shared)
    assert result.exit_code == 0 and not result.table.removed
    assert result.table.budget[0]["verdict"] == "proven"
    assert any("nothing was pruned" in warning for warning in result.table.warnings)


def test_what_was_trained_is_judged_however_late_it_is(tiny, shared, tmp_path, monkeypatch):
    real = steer.steer

    def late(job, meter, goal, stages, open_table):
        stages._start -= 1e6  # `--time` is used up as pruning begins
        return real(job, meter, goal, stages, open_table)

    monkeypatch.setattr(steer, "steer", late)
    monkeypatch.setattr(steer_structure, "MOST_BUILDS", 1)
    monkeypatch.setattr(steer_structure, "MOST_PUT_BACK", 0)
    recipe = recipe_of(tiny, latency="75%", rounds=3, epochs=3, time_s=1e5)
    lines: list[str] = []
    table = run_recipe(recipe, tmp_path / "out", log=lines.append, cache=shared).table
    assert "no time is left for fine-tuning" in lines
    assert [row["round"] for row in table.steps if "round" in row] == [1, 3]
    assert all(row.reason is None or "--time" not in row.reason for row in table.rows)
    assert table.removed and table.budget[0]["value"] < 0.95


def test_int8_that_loses_too_much_is_still_the_measure(tiny, shared, tmp_path, monkeypatch):
    def hopeless(job, trials, budget):
        lossy = [t.row.id for t in trials if t.row.precision == "int8"]
        return {}, dict.fromkeys(lossy, "loses ≥ 90 points on 100 samples")

    monkeypatch.setattr(search, "_hopeless", hopeless)
    result = run_recipe(recipe_of(tiny, latency="50ms"), tmp_path / "out", cache=shared)
    assert result.exit_code == 0 and result.table.budget[0]["verdict"] == "proven"
    (int8,) = [r for r in result.table.rows if r.id == "openvino-int8-nncf-performance"]
    assert int8.status == "measured" and int8.latency_p50_ms.value > 0


def test_training_alone_has_the_int8_engine_as_its_measure_too(tiny):
    values = recipe_values({}, {**tiny, "epochs": 1, "precisions": ("fp32",)})
    assert [step["step"] for step in values["steps"]] == ["finetune", "quantize"]


def test_steps_that_train_are_refused_for_another_machine(tiny, tmp_path):
    recipe = build_recipe(recipe_values({}, {**tiny, "epochs": 1, "target": "jetson-orin-nano"}))
    with pytest.raises(
        InputError, match=r"step finetune: it is steered by times, and jetson-orin-nano is not this"
    ):
        run_recipe(recipe, tmp_path / "out")


def test_nothing_is_pruned_where_another_part_is_missed():
    class Meter:
        is_baseline, baseline_bytes = True, 1000

    assert steer._is_met(steer.Goal(1.0, None, ""), Meter())
    assert steer._is_met(steer.Goal(1.0, 2000, ""), Meter())
    assert not steer._is_met(steer.Goal(0.9, None, ""), Meter())
    assert not steer._is_met(steer.Goal(None, 900, ""), Meter())


def test_engines_of_students_are_built_as_what_ships_fastest_without_named_layers():
    from types import SimpleNamespace

    from edgeml.artifact.measurement import Measurement
    from edgeml.artifact.result_row import EngineRow
    from edgeml.compress.budget import Budget
    from edgeml.compress.candidates import Candidate
    from edgeml.compress.mixed_precision import left_in_float
    from edgeml.compress.quantize_nncf import QuantizeNncf
    from edgeml.compress.steer_run import _fastest, _of_any_network

    def trial(candidate, ms, drop=0.0, put_back=()):
        row = EngineRow(
            id=candidate.id,
            runtime=candidate.runtime,
            precision=candidate.precision,
            latency_p50_ms=Measurement(value=ms, unit="ms", n=9),
            drop_points=Measurement(value=drop, unit="points", n=9),
            put_back=list(put_back),
        )
        return SimpleNamespace(row=row, candidate=candidate)

    plain = QuantizeNncf("performance")
    int8 = trial(Candidate("openvino", "int8", "fp32", plain), 2.0)
    bf16 = trial(Candidate("openvino", "bf16"), 1.5)
    slow, lossy = trial(Candidate("openvino", "fp32"), 3.0), trial(Candidate("x", "bf16"), 1.0, 9.0)
    rows, budget = [int8, bf16, slow, lossy], Budget(1.0)
    half, any_time = steer.Goal(0.5, None, ""), steer.Goal(None, 9, "")
    assert _fastest(rows, int8, half, budget, None, True) == bf16.candidate
    assert _fastest(rows, int8, half, budget, {"int8"}, True) == int8.candidate
    assert _fastest([int8, slow, lossy], int8, half, budget, None, True) == int8.candidate
    assert _fastest(rows, int8, any_time, budget, None, True) == int8.candidate

    mended = Candidate("openvino", "int8", "bf16", left_in_float(plain, ["conv_1"]))
    back = trial(mended, 2.2, put_back=[{"node": "conv_1"}])
    assert _of_any_network(mended, [int8, back]).step is plain
    assert _of_any_network(mended, [int8, back]).execution == "bf16"
    assert _of_any_network(bf16.candidate, rows) == bf16.candidate


def test_onnx_alone_cannot_be_trained(small, cache, tmp_path):
    flags = {"latency": "10%", "max_drop": 60.0, "threads": 1, "routes": ("nncf",)}
    values = recipe_values({}, {**small, **flags})
    assert [step["step"] for step in values["steps"]] == ["quantize"]
    values |= {"runtimes": ["openvino"]}
    with pytest.raises(InputError, match="an ONNX file, and pruning, distillation and QAT train"):
        run_recipe(build_recipe(values), tmp_path / "out", cache=cache)


def test_no_round_is_without_an_epoch_to_heal_in():
    from edgeml.artifact.recipe import FinetuneStep, PruneStep

    def rounds(epochs, hook=None):
        return steer._rounds(PruneStep(rounds=3), FinetuneStep(epochs=epochs, hook=hook))

    assert [rounds(n) for n in (0, 1, 2, 3, 30)] == [1, 1, 2, 3, 3]
    assert rounds(0, "own.py:fn") == 3 and steer._rounds(None, FinetuneStep()) == 1


def test_epochs_add_up():
    for total in range(12):
        for count in range(1, 5):
            assert sum(_epochs(total, n, count) for n in range(1, count + 1)) == total


def test_flags_and_their_recipe_are_one_run(tiny):
    flags = {**tiny, "latency": "60%", "max_drop": 0.5, "epochs": 3}
    values = recipe_values({}, flags)
    recipe = build_recipe(values)
    assert [step.step for step in recipe.steps] == ["prune", "finetune", "quantize"]
    assert recipe.step("finetune").epochs == 3
    again = build_recipe(recipe_values(recipe.model_dump(mode="json"), {}))
    assert again.hash == recipe.hash


def test_a_limit_keeps_int8_as_its_measure_where_only_float_may_ship(tiny):
    values = recipe_values({}, {**tiny, "latency": "60%", "precisions": ("fp32",)})
    assert [step["step"] for step in values["steps"]] == ["prune", "finetune", "quantize"]
    plain = recipe_values({}, {**tiny, "precisions": ("fp32",)})
    assert plain["steps"] == []
