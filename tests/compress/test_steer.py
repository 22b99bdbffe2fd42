"""`compress` to a budget, the whole way on a tiny network: prune, fine-tune, quantize, prove, resume."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from edgeml.artifact.recipe import build_recipe
from edgeml.artifact.stage_cache import StageCache
from edgeml.compress import budget_parts, layer_times, search, steer, steer_engine, steer_run
from edgeml.compress.budget_parts import judge_parts, parts_line, upper_bound
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.compress.run_recipe import run_recipe
from edgeml.compress.steer import _epochs
from edgeml.errors import EdgemlError, InputError
from edgeml.report.budget_table import budget_lines
from edgeml.runtime.engine import EngineOptions
from edgeml.train.model_source import open_model
from torch import nn

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
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Net()

def hook(model, teacher, out, deadline_s):
    (out / "seen.txt").write_text(f"{deadline_s}")
    return model

def wrong(model, teacher, out, deadline_s):
    return teacher
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, trained_on_colours) -> dict[str, str]:
    """A trained network of three blocks on three colours of noise, and its data."""
    return trained_on_colours(tmp_path_factory.mktemp("tiny"), NETWORK, 600, 30)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> StageCache:
    return StageCache(tmp_path_factory.mktemp("steer-cache"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(search, "SCREEN_SECONDS", 0.02)
    for bench in (search, steer_run):
        monkeypatch.setattr(bench, "BENCH_SECONDS", 0.1)
    monkeypatch.setattr(steer_engine, "MEASURE_SECONDS", 0.15)
    monkeypatch.setattr(budget_parts, "BUILD_SECONDS", 0.1)
    monkeypatch.setattr(layer_times, "CALLS", 12)
    monkeypatch.setattr(layer_times, "WARMUP", 2)


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
    values = recipe_values({}, {**small, "latency": "10%", "max_drop": 60.0, "threads": 1})
    assert [step["step"] for step in values["steps"]] == ["quantize"]
    values |= {"runtimes": ["openvino"]}
    with pytest.raises(InputError, match="an ONNX file, and pruning, distillation and QAT train"):
        run_recipe(build_recipe(values), tmp_path / "out", cache=cache)


class Run:
    """What a hook needs of `Stages`."""

    log = staticmethod(lambda line: None)

    @staticmethod
    def seconds_left():
        return 100.0


def test_a_users_own_loop_replaces_ours(tiny, tmp_path):
    from edgeml.compress.steer_train import TRAINING_SHARE, _by_hook

    net, teacher = nn.Linear(2, 3), nn.Linear(2, 4)
    hook = tiny["model"].replace(":build", ":hook")
    _by_hook(hook, net, teacher, tmp_path / "own", Run())
    assert float((tmp_path / "own/seen.txt").read_text()) == 100 * TRAINING_SHARE
    wrong = tiny["model"].replace(":build", ":wrong")
    with pytest.raises(InputError, match=r"returned another network: weight is \(4, 2\)"):
        _by_hook(wrong, net, teacher, tmp_path / "own", Run())
    with pytest.raises(InputError, match="did you mean hook"):
        _by_hook(hook + "k", net, teacher, tmp_path / "own", Run())


def test_energy_without_a_meter_is_refused_at_once(tiny, tmp_path):
    with pytest.raises(InputError, match="--max-energy 5mJ: energy cannot be measured here"):
        run_recipe(recipe_of(tiny, max_energy="5mJ"), tmp_path / "out")


def test_energy_is_judged_where_there_is_a_meter(tiny, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from edgeml.artifact.result_row import EngineRow
    from edgeml.artifact.work_directory import WorkDirectory
    from edgeml.compress.budget_parts import Baseline, measure_energy_of
    from edgeml.compress.stages import Stages
    from edgeml.compress.steer_run import goal_of
    from edgeml.runtime import bench_energy
    from edgeml.runtime.energy.meter import EnergyReading

    def reading(mj):
        fields = {
            "gross_mj": mj,
            "gross_mj_low": mj - 0.1,
            "gross_mj_high": mj + 0.1,
            "windows": 5,
            "window_s": 10.0,
            "net_mj": mj - 1,
        }
        return lambda *a, **n: EnergyReading("x", "counter", "cpu", "hardware", [], [], **fields)

    def trial(name):
        row = EngineRow(id=name, runtime="null", precision="int8", size_bytes=1)
        engine = SimpleNamespace(device="cpu")
        return SimpleNamespace(row=row, engine=engine, file=tmp_path / name / "model.xml")

    recipe = recipe_of(tiny, max_energy="60%")
    job = SimpleNamespace(
        recipe=recipe, sample={"x": np.zeros(1)}, options=EngineOptions(), onnx=None
    )
    baseline, shipped = trial("baseline"), trial("shipped")
    with WorkDirectory(tmp_path / "out", "energy") as work:
        stages = Stages(StageCache(tmp_path / "cache"), work, lambda line: None, None)
        for one, mj in ((baseline, 10.0), (shipped, 5.5)):
            monkeypatch.setattr(bench_energy, "measure_energy", reading(mj))
            measure_energy_of(job, one, stages)
    assert goal_of(recipe, baseline).ratio == pytest.approx(0.6)
    (part,) = judge_parts(recipe, shipped, Baseline(baseline.row), {})
    assert part["verdict"] == "proven" and part["value"] == pytest.approx(0.55)
    assert "energy 55 % of plain INT8" in parts_line([part])


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


def test_a_bound_widens_with_what_builds_differ_by():
    assert upper_bound([0.5] * 5) == pytest.approx(0.5)
    assert 0.5 < upper_bound([0.49, 0.5, 0.51]) < upper_bound([0.45, 0.5, 0.55])


def test_parts_are_proven_plausible_or_missed(tiny):
    recipe = recipe_of(tiny, latency="60%", max_size="1KB")

    class Row:
        size_bytes = 2000

    class Trial:
        row = Row()

    def verdicts(ratios):
        rows = judge_parts(recipe, Trial, None, {"p50": [1.0] * 3, "p50 ratio": ratios})
        assert "size 2,000 bytes (at most 1KB): missed" in parts_line(rows)
        return [row["verdict"] for row in rows]

    assert verdicts([0.5, 0.51, 0.5]) == ["proven", "missed"]
    assert verdicts([0.57, 0.62, 0.58]) == ["plausible", "missed"]
    assert verdicts([0.61, 0.62, 0.63]) == ["missed", "missed"]


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


STEPS = {"steps": [{"step": "finetune"}]}


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


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, image):
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))


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
