"""What a device tells of the engines that it built, and when it is asked again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from edgeml.artifact.measurement import Measurement
from edgeml.artifact.result_row import EngineRow
from edgeml.artifact.stage_cache import StageCache
from edgeml.artifact.target import find_target
from edgeml.artifact.work_directory import WorkDirectory
from edgeml.compress.build_engines import Trial
from edgeml.compress.stages import Stages
from edgeml.compress.target_times import time_on_device
from edgeml.runtime.latency import Timing
from edgeml.runtime.remote_bench import RemoteBench

MS = Measurement(value=2.0, unit="ms")


class Device:
    """Counts how often it is asked; `failing` engines are not built."""

    def __init__(self, failing=()):
        self.failing, self.asked = failing, 0
        self.mode = "15W"

    def describe(self):
        return {"device": "orin1"}

    def state(self):
        return {"device": "orin1", "power_mode": self.mode, "tensorrt": "10.3"}

    def bench(self, models, inputs, **options):
        self.asked += 1
        timing = Timing(MS, MS, MS, None, 10, [np.ones(3)], 1)
        timed = {name: timing for name in models if name not in self.failing}
        failed = {name: "build: no" for name in models if name in self.failing}
        return RemoteBench(timed, [], failed, {}, dict.fromkeys(timed, 1234))


@pytest.fixture
def ask(small, tmp_path):
    """``ask(device)``: the rows of an INT8 and an FP16 engine in the run of OUT, which then ends, or goes on with a
    stage of the name `then`; as after a kill, each time anew."""

    def rows(device, out="out", text=None, then=None):
        file = Path(small["model"])
        if text is not None:
            file = tmp_path / "other.onnx"
            file.write_bytes(Path(small["model"]).read_bytes() + text)
        trials = [
            Trial(
                EngineRow(id=name, runtime="tensorrt", precision=name, size_bytes=9999), file=file
            )
            for name in ("int8", "fp16")
        ]
        sample = {"x": np.zeros((1, 3), np.float32)}
        job = SimpleNamespace(sample=sample, recipe=SimpleNamespace(batch=1, seed=0))
        with WorkDirectory(tmp_path / out, "recipe") as work:
            stages = Stages(StageCache(tmp_path / "cache"), work, lambda line: None, None)
            target = find_target("jetson-orin-nano")
            assert time_on_device(job, trials, target, device, stages) == []
            if then is not None:
                stages.values(then, {}, then, dict)
        return [trial.row for trial in trials]

    return rows


def test_the_size_is_that_of_the_plan_and_a_failure_is_a_row(ask):
    int8, fp16 = ask(Device(["fp16"]))
    assert (int8.size_bytes, int8.latency_p50_ms) == (1234, MS)
    assert (fp16.status, fp16.reason) == ("failed", "on orin1: build: no")


def test_a_resumed_run_takes_its_times_where_files_and_device_are_the_same(ask):
    device = Device()
    first = ask(device)
    assert [row.latency_p50_ms for row in ask(device)] == [row.latency_p50_ms for row in first]
    assert device.asked == 1
    device.mode = "25W"
    ask(device)
    assert device.asked == 2
    # ONNX takes a trailing empty field; only its hash is another.
    ask(device, text=b"\x1a\x00")
    assert device.asked == 3
    ask(device, out="another-run")
    assert device.asked == 4


def test_an_engine_that_failed_is_tried_again(ask):
    device = Device(["fp16"])
    ask(device)
    device.failing = ()
    int8, fp16 = ask(device)
    assert device.asked == 2
    assert (int8.latency_p50_ms, fp16.latency_p50_ms, fp16.status) == (MS, MS, "measured")


def test_a_killed_run_that_went_on_from_its_times_keeps_them(ask):
    """Its pruning is by them: other times would be another goal, whose training is not taken up again."""
    device = Device(["fp16"])
    ask(device, then="structure")
    device.failing = ()
    for _ in range(2):
        _, fp16 = ask(device, then="structure")
        assert (device.asked, fp16.status) == (1, "failed")
    assert ask(device, out="another-run")[1].status == "measured"


def test_times_that_were_taken_again_are_those_that_a_killed_run_keeps(ask):
    device = Device(["fp16"])
    for asked in (1, 2):  # it ends twice at what failed
        ask(device)
        assert device.asked == asked
    device.failing = ["int8"]
    for _ in range(2):
        int8, fp16 = ask(device, then="structure")
        assert (device.asked, int8.status, fp16.status) == (3, "failed", "measured")
