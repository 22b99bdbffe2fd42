"""What a device tells of the engines that it built."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from edgeml.artifact.measurement import Measurement
from edgeml.artifact.result_row import EngineRow
from edgeml.artifact.target import find_target
from edgeml.compress.build_engines import Trial
from edgeml.compress.target_times import time_on_device
from edgeml.runtime.latency import Timing
from edgeml.runtime.remote_bench import RemoteBench

MS = Measurement(value=2.0, unit="ms")


class Device:
    def describe(self):
        return {"device": "orin1"}

    def bench(self, models, inputs, **options):
        timing = Timing(MS, MS, MS, None, 10, [np.ones(3)], 1)
        return RemoteBench({"int8": timing}, [], {"fp16": "build: no"}, {}, {"int8": 1234})


def test_the_size_is_that_of_the_plan_and_a_failure_is_a_row(small):
    trials = [
        Trial(
            EngineRow(id=name, runtime="tensorrt", precision=name, size_bytes=9999),
            file=Path(small["model"]),
        )
        for name in ("int8", "fp16")
    ]
    job = SimpleNamespace(
        sample={"x": np.zeros(3, np.float32)}, recipe=SimpleNamespace(batch=1, seed=0)
    )
    stages = SimpleNamespace(log=lambda line: None)
    assert time_on_device(job, trials, find_target("jetson-orin-nano"), Device(), stages) == []
    int8, fp16 = (trial.row for trial in trials)
    assert (int8.size_bytes, int8.latency_p50_ms) == (1234, MS)
    assert (fp16.status, fp16.reason) == ("failed", "on orin1: build: no")
