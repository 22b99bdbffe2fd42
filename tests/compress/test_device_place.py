"""`compress --target ssh://` prunes by the device's own table: a device whose every time is planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from edgeml.artifact.measurement import Measurement
from edgeml.artifact.recipe import build_recipe
from edgeml.artifact.stage_cache import StageCache
from edgeml.compress import device_layer_times, device_plan
from edgeml.compress.plan import plan_lines
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.compress.run_recipe import run_recipe
from edgeml.errors import DeviceError, InputError
from edgeml.report.budget_table import budget_lines
from edgeml.runtime.latency import Timing
from edgeml.runtime.remote_bench import RemoteBench, RemoteProfile

NETWORK = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.b(torch.relu(self.a(x))))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Net()
"""
CALL_MS = 0.02


def layer_ms(model: onnx.ModelProto) -> dict[str, float]:
    """By node: 1 ms a million multiply-accumulates, of channels in whole eights (as a kernel's vectors)."""
    dims = {c.name: list(c.dims) for c in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in dims:
            dims[node.output[0]] = dims[node.input[0]]
    shapes = onnx.shape_inference.infer_shapes(model).graph
    sizes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in [*shapes.value_info, *shapes.output]
    }
    found = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            out, into, *kernel = dims[node.input[1]]
            work = -(-out // 8) * 8 * -(-into // 8) * 8 * np.prod(kernel, dtype=float)
            pixels = np.prod(sizes[node.output[0]][2:]) if node.op_type == "Conv" else 1
            found[node.name] = float(work * pixels) / 1e6
    return found


class Device:
    """Answers as `deploy.meter.DeviceMeter`; remembers what it was asked to build.

    Attributes:
        lose_at: how many networks and engines it builds before the run is killed.
        failing: ids of engines that do not run there.
        drift_ms: added to every time of each further bench.
        warnings: of each bench.
    """

    target = "arm64"

    def __init__(self, emulated=False):
        self.emulated, self.built, self.lose_at = emulated, [], None
        self.failing, self.drift_ms, self.benches = (), 0.0, 0
        self.warnings = []

    def describe(self):
        return {"device": "orin1", "emulated": self.emulated, "cpu": "planted"}

    def state(self):
        return {"device": "orin1", "onnxruntime": "1.32"}

    def _note(self, *what):
        if self.lose_at is not None and len(self.built) >= self.lose_at:
            raise KeyboardInterrupt
        self.built.append(what)

    def layer_times(self, models, inputs, *, iterations):
        model = onnx.load(models["layers"].files[0])
        self._note("layers", model.SerializeToString())
        return RemoteProfile({"layers": list(layer_ms(model).items())})

    def bench(self, models, inputs, *, build=0, **options):
        self.benches += 1
        call = CALL_MS + self.benches * self.drift_ms
        if self.emulated:
            raise AssertionError("an emulated device is asked for no times")
        times = {
            name: call + sum(layer_ms(onnx.load(m.files[0])).values())
            for name, m in models.items()
            if name not in self.failing
        }
        self._note(build, *sorted((n, m.files[0].read_bytes()) for n, m in models.items()))
        timed = {}
        for name, ms in times.items():
            p50 = Measurement(value=ms, low=ms, high=ms, unit="ms", n=9)
            timed[name] = Timing(p50, p50, p50, None, 1.0, [np.full(9, ms)] * 3, 1)
        failed = {name: "build: no memory" for name in models if name in self.failing}
        return RemoteBench(timed, self.warnings, failed, {}, dict.fromkeys(timed, 5000))


@pytest.fixture(scope="module")
def net(tmp_path_factory, trained_on_colours) -> dict[str, str]:
    """A network of two blocks on three colours of noise, hardly trained, and its data."""
    return trained_on_colours(tmp_path_factory.mktemp("net"), NETWORK, 300, 10)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> StageCache:
    return StageCache(tmp_path_factory.mktemp("device-cache"))


def recipe_of(net, rounds=1, **flags):
    values = {**net, "target": "arm64", "threads": 1, "max_drop": 90.0, "calibration_samples": 16}
    values |= {"epochs": 1, **flags}
    values = recipe_values({}, values, timed=True)
    for step in values["steps"]:
        if step["step"] == "prune":
            step["rounds"] = rounds
    return build_recipe(values)


def test_a_budget_on_a_device_brings_pruning_along(net):
    steps = [step.step for step in recipe_of(net, latency="60%").steps]
    assert steps == ["prune", "finetune", "quantize"]


def test_a_killed_run_prunes_by_the_devices_times_and_builds_nothing_twice(
    net, shared, tmp_path, monkeypatch
):
    monkeypatch.setattr(device_layer_times, "PER_NETWORK", 8)
    recipe, device = recipe_of(net, rounds=2, epochs=2, latency="60%"), Device()
    out = tmp_path / "out"
    for more in (2, 2, 3):
        device.lose_at = len(device.built) + more
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, out, cache=shared, meter=device)
    device.lose_at = None
    result = run_recipe(recipe, out, cache=shared, meter=device)
    assert len(set(device.built)) == len(device.built)

    table = result.table
    assert result.exit_code == 0, table.verdict_line
    (part,) = table.budget
    assert (part["verdict"], part["unit"], part["builds"]) == ("proven", "of plain INT8", 3)
    assert part["value"] <= 0.6
    # The widths that the device rewards: whole eights, or a whole block less.
    assert table.removed
    for row in table.removed:
        assert row["kind"] == "block" or row["after"] % 8 == 0, row
    # The table is the device's own: it predicts what is planted there.
    errors = [e for row in table.steps if "round" in row for e in row["table_errors"]]
    assert errors and max(map(abs, errors)) < 0.1
    assert [row["round"] for row in table.steps if "round" in row] == [1, 2]
    assert table.machine["device"] == "orin1"
    assert {"prune_history.json", "weights.safetensors", "model.int8.onnx"} <= {
        path.name for path in out.iterdir()
    }
    ids = {row.id for row in table.rows}
    assert any(i.startswith("original-onnxruntime-int8") for i in ids)


def test_a_run_killed_in_fine_tuning_goes_on_where_an_engine_had_failed(
    net, shared, tmp_path, monkeypatch
):
    """And the result tells how much of its table was measured, and what disturbed the times."""
    device = Device()
    device.failing, device.drift_ms = ("onnxruntime-fp32",), 1e-5
    monkeypatch.setattr(device_layer_times, "PER_NETWORK", 4)
    device.warnings = ["orin1: throttled: oc1"]
    recipe, lines = recipe_of(net, epochs=3, latency="0.25ms", table_time_s=1e-6), []

    def log(line):
        lines.append(line)
        if sum(text.startswith("fine-tuning, ") for text in lines) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "out", cache=shared, meter=device, log=log)
    result = run_recipe(recipe, tmp_path / "out", cache=shared, meter=device)
    assert result.table.removed
    reasons = {row.id: row.reason for row in result.table.rows}
    assert reasons["onnxruntime-fp32"] == "on orin1: build: no memory"
    measured, wanted = next(row["table_shapes"] for row in result.table.steps if "round" in row)
    assert 0 < measured < wanted
    told = f"{measured} of {wanted} shapes measured"
    assert any(told in line for line in budget_lines(result.table))
    assert any(told in line for line in result.table.warnings)
    assert result.table.warnings.count("orin1: throttled: oc1") == 1


def test_what_the_original_meets_is_not_pruned(net, shared, tmp_path):
    device = Device()
    result = run_recipe(recipe_of(net, latency="1s"), tmp_path / "out", cache=shared, meter=device)
    assert result.exit_code == 0 and not result.table.removed
    # All engines in one bench, no table; then what ships, three times.
    assert [what[0] for what in device.built] == [0, 1, 2, 3]
    assert result.table.budget[0]["verdict"] == "proven"


def test_what_the_device_cannot_reach_is_refused_before_training(net, shared, tmp_path):
    with pytest.raises(InputError, match=r"--latency 0.021ms cannot be met: the lowest that the"):
        run_recipe(
            recipe_of(net, latency="0.021ms"), tmp_path / "out", cache=shared, meter=Device()
        )


def test_nothing_is_pruned_by_an_emulated_devices_times(net, shared, tmp_path):
    """Before anything is exported, quantized or sent."""
    device, lines = Device(emulated=True), []
    with pytest.raises(InputError, match=r"orin1 is emulated: its times mean .*; leave out --lat"):
        run_recipe(
            recipe_of(net, latency="60%"),
            tmp_path / "out",
            cache=shared,
            meter=device,
            log=lines.append,
        )
    assert not lines and not device.built and not list(tmp_path.iterdir())
    text = "\n".join(plan_lines(recipe_of(net, latency="60%"), meter=device))
    assert "MISSING     limits: orin1 is emulated" in text


def test_nothing_is_chosen_by_an_emulated_devices_times(net, shared, tmp_path):
    class StandIn(Device):
        def describe(self):
            return {**super().describe(), "emulated": True}

    plain = recipe_of(net, max_drop=90.0)
    steps = tuple(step for step in plain.steps if step.step == "quantize")
    plain = plain.model_copy(update={"steps": steps})
    result = run_recipe(plain, tmp_path / "out", cache=shared, meter=StandIn())
    assert "the device is emulated: its times decide nothing" in result.table.verdict_line
    assert "fastest" not in result.table.verdict_line


def test_the_plan_of_a_bundle_of_onnx_alone_trains_nothing(net, shared, tmp_path):
    plain = recipe_of(net, precisions=("int8",), max_drop=90.0)
    steps = tuple(step for step in plain.steps if step.step == "quantize")
    plain = plain.model_copy(update={"steps": steps})
    run_recipe(plain, tmp_path / "out", cache=shared, meter=Device())
    recipe, device = recipe_of({**net, "model": str(tmp_path / "out")}, latency="60%"), Device()
    recipe = recipe.model_copy(update={"weights": None})
    lines = plan_lines(recipe, meter=device, trust_code=True)
    (told,) = [line for line in lines if line.startswith("train ")]
    assert "is ONNX alone, without weights to train" in told
    assert not device.built
    assert not any(line.startswith(("prune ", "table ", "finetune ")) for line in lines)
    assert lines[-1] == "MISSING     nothing"


def test_the_plan_tells_the_minutes_by_timed_builds(net, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(device_layer_times, "PER_NETWORK", 4)
    monkeypatch.setattr(device_plan, "PER_NETWORK", 4)
    device = Device()
    recipe = recipe_of(net, latency="60%", table_time_s=1e-6)
    (line,) = [line for line in plan_lines(recipe, meter=device) if line.startswith("table")]
    assert "min by 3 that were built and timed; --table-time" in line
    assert "networks on orin1" in line
    assert [what for what, _ in device.built] == ["layers"] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]

    def lost(*args, **named):
        raise DeviceError("orin1: connection lost")

    device.layer_times = lost
    monkeypatch.setenv("EDGEML_CACHE", str(tmp_path / "other"))
    text = "\n".join(plan_lines(recipe, meter=device))
    assert "table       not measured: orin1: connection lost" in text


def test_the_plan_without_a_device_measures_nothing(net):
    text = "\n".join(plan_lines(recipe_of(net, latency="60%")))
    assert "table       not measured: no device answers" in text
    assert "MISSING     prune: it is steered by times of arm64: --target ssh://USER@HOST" in text


@pytest.mark.parametrize(
    ("flags", "meter", "said"),
    [
        ({"latency": "60%"}, None, r"step prune: it is steered by times, and arm64 is not this"),
        ({"max_energy": "5mJ"}, Device(), "compress measures no energy on a device"),
        ({"qat": True}, Device(), "step qat: for arm64 it is not made from here"),
        ({"target": "cpu", "table_time_s": 60.0}, None, "--table-time bounds a device's latency"),
    ],
)
def test_what_no_device_steers_is_one_line(net, tmp_path, flags, meter, said):
    with pytest.raises(InputError, match=said):
        run_recipe(recipe_of(net, **flags), Path(tmp_path / "out"), meter=meter)
