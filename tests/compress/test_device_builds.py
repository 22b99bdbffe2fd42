"""The verdict on a device's engine by several builds there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from edgeml.artifact.measurement import Measurement
from edgeml.artifact.result_row import EngineRow
from edgeml.artifact.stage_cache import StageCache
from edgeml.artifact.work_directory import WorkDirectory
from edgeml.compress.budget_parts import upper_bound
from edgeml.compress.build_engines import Trial
from edgeml.compress.device_builds import measure_builds_on_device
from edgeml.compress.stages import Stages
from edgeml.errors import BuildError
from edgeml.runtime.latency import Timing
from edgeml.runtime.remote_bench import RemoteBench


class Device:
    """Engines take `ms` there, by the number of the build and by id; a build without times fails."""

    def __init__(self, ms):
        self.ms, self.asked = ms, []

    def describe(self):
        return {"device": "orin1"}

    def state(self):
        return {"device": "orin1"}

    def bench(self, models, inputs, *, build, **options):
        self.asked.append((build, list(models)))
        times = self.ms[build - 1]  # 0 is the bench's own plan
        if not times:
            return RemoteBench({}, [], {"shipped": "build: killed for memory"})
        timed = {}
        for name in models:
            p50 = Measurement(value=times[name], unit="ms")
            timed[name] = Timing(p50, p50, p50, None, 1, [np.full(4, times[name])] * 3, 1)
        return RemoteBench(timed, [f"throttled in build {build}"], {})


@pytest.fixture
def measure(small, tmp_path):
    def builds(device, beside=True):
        file = Path(small["model"])
        shipped, baseline = (
            Trial(EngineRow(id=name, runtime="tensorrt", precision="int8"), file=file)
            for name in ("student", "plain")
        )
        sample = {"x": np.zeros((3, 16, 16), np.float32)}
        job = SimpleNamespace(sample=sample, recipe=SimpleNamespace(batch=1, seed=0))
        with WorkDirectory(tmp_path / "out", "recipe") as work:
            stages = Stages(StageCache(tmp_path / "cache"), work, lambda line: None, None)
            return measure_builds_on_device(
                job, baseline if beside else None, shipped, device, stages
            )

    return builds


def test_each_build_is_a_pair_and_the_bound_is_over_the_builds(measure):
    shipped = [1.0, 1.1, 1.2]
    device = Device([{"shipped": ms, "baseline": 2.0} for ms in shipped])
    found, warnings = measure(device)
    orders = [["shipped", "baseline"], ["baseline", "shipped"], ["shipped", "baseline"]]
    assert device.asked == [(n + 1, order) for n, order in enumerate(orders)]
    assert found["p50"] == shipped
    assert found["p50 ratio"] == pytest.approx([0.5, 0.55, 0.6])
    assert 0.6 < upper_bound(found["p50 ratio"]) < 0.66
    assert warnings == [f"throttled in build {n}" for n in (1, 2, 3)]
    # A resumed run builds none again, and its warnings are told again.
    assert measure(device) == (found, warnings)
    assert len(device.asked) == 3


def test_a_build_that_fails_is_told_and_one_alone_proves_nothing(measure):
    device = Device([{"shipped": 1.0}, {}, {}])
    with pytest.raises(BuildError, match="no bound can be told of 1 builds: build 3 of 3 for the"):
        measure(device, beside=False)
    device.ms[1] = {"shipped": 1.0}  # a resumed run tries again those that failed
    found, warnings = measure(device, beside=False)
    assert (found["p50"], found["p50 ratio"]) == ([1.0, 1.0], [])
    assert "build 3 of 3 for the verdict on orin1: build: killed for memory" in warnings
    assert [build for build, _ in device.asked] == [1, 2, 3, 2, 3]
