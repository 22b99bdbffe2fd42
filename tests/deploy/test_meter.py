"""The meter that `compress --target ssh://` is handed: the real agent times on this machine."""

from __future__ import annotations

import asyncio
import os
import site
from pathlib import Path

import numpy as np
import pytest
from edgeml.artifact.stage_cache import StageCache
from edgeml.artifact.work_directory import WorkDirectory
from edgeml.compress.device_layer_times import open_device_table
from edgeml.compress.latency_table import Prunable
from edgeml.compress.layer_times import LayerShape
from edgeml.compress.stages import Stages
from edgeml.deploy.address import Address
from edgeml.deploy.meter import DeviceMeter
from edgeml.deploy.meter_answers import bench_of, busy_warnings
from edgeml.deploy.probe import DeviceFacts
from edgeml.errors import DeviceError, Unreachable
from edgeml.runtime.latency import compare
from edgeml.runtime.remote_bench import ModelFile


@pytest.fixture
def x86(make_device):
    return make_device(
        environment={"PYTHONPATH": os.pathsep.join(site.getsitepackages()), "OMP_NUM_THREADS": "1"}
    )


def test_models_are_timed_on_the_device_in_the_shape_of_a_bench(
    run_async, serving, x86, conv_onnx: Path, int8_onnx: Path, images: np.ndarray, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    models = {
        "fp32": ModelFile((conv_onnx,), "onnxruntime", "fp32"),
        "int8": ModelFile((int8_onnx,), "onnxruntime", "int8"),
        "broken": ModelFile((broken,), "onnxruntime", "fp32"),
    }

    def measure():
        with DeviceMeter(x86.address) as meter:
            first = meter.bench(models, {"x": images[:1]}, duration_s=0.5, reference="fp32")
            sent = x86.sent
            second = meter.bench(models, {"x": images[:1]}, duration_s=0.5)
            return meter.target, meter.describe(), first, sent, second

    async def go():
        async with serving(x86):
            return await asyncio.to_thread(measure)

    target, machine, first, sent, second = run_async(go(), 120)
    assert target in ("intel-cpu", "arm64")
    assert machine["device"] == "orin1"
    assert first["fp32"].p50_ms.value > 0
    assert first["int8"].speedup is not None
    assert compare(first, "int8", "fp32").ratio.value > 0
    assert set(first.failed) == set(second.failed) == {"broken"}
    assert first.failed["broken"].startswith("build: ")
    assert x86.sent == sent  # the second call sends nothing


def test_builds_of_a_number_are_timed_apart(
    run_async, serving, x86, conv_onnx: Path, images: np.ndarray
) -> None:
    models, specs = {"fp32": ModelFile((conv_onnx,), "onnxruntime", "fp32")}, []
    x86.on_line = lambda fields: specs.extend(fields.get("engines") or ())

    def measure():
        with DeviceMeter(x86.address) as meter:
            return [
                meter.bench(models, {"x": images[:1]}, duration_s=0.1, build=n)["fp32"].p50_ms.value
                for n in range(2)
            ]

    async def go():
        async with serving(x86):
            return await asyncio.to_thread(measure)

    assert min(run_async(go(), 60)) > 0
    assert [spec["build"] for spec in specs if isinstance(spec, dict)] == [0, 1]


def test_what_disturbed_the_times_is_told() -> None:
    timed = {"id": "int8", "status": "timed", "rounds_ms": [[1.0, 1.1]] * 6, "how": "bindings"}
    answer = {"engines": [timed], "throttle": ["oc3"], "steady": False}
    words = {"reference": None, "seed": 0, "emulated": False}
    found = bench_of(answer, "orin1", {}, {"int8": 5}, **words)
    assert found.warnings == ["orin1: throttled: oc3", "orin1: still warming when the bench ended"]
    assert (found.failed, found.sizes, found["int8"].p50_ms.how) == ({}, {"int8": 5}, "measured")
    slow = {**timed, "id": "fp16", "how": "trtexec"}
    found = bench_of({"engines": [timed, slow, slow]}, "orin1", {"x": "build: no"}, {}, **words)
    (warning,) = found.warnings
    assert "timed by trtexec" in warning and "not taken in blocks" in warning
    assert found.failed == {"x": "build: no"}
    words["emulated"] = True
    assert bench_of({"engines": [timed]}, "o", {}, {}, **words)["int8"].p50_ms.how == "emulated"


def test_who_else_uses_the_gpu_is_told_with_every_bench() -> None:
    facts = DeviceFacts({"gpu_users": [{"pid": 9, "name": "gst-launch"}]})
    on_gpu, on_cpu = (ModelFile((Path("a"),), r, "int8") for r in ("tensorrt", "onnxruntime"))
    told = "orin1: the GPU is used by gst-launch: times may be longer than alone"
    assert busy_warnings(facts, "orin1", [on_cpu, on_gpu]) == [told]
    assert busy_warnings(facts, "orin1", [on_cpu]) == []
    assert busy_warnings(DeviceFacts({}), "orin1", [on_gpu]) == []


def test_a_link_lost_while_measuring_is_a_line(
    run_async, serving, x86, conv_onnx: Path, images: np.ndarray
) -> None:
    models = {"fp32": ModelFile((conv_onnx,), "onnxruntime", "fp32")}
    x86.lose_at = ("bench", 0)

    def measure() -> str:
        with DeviceMeter(x86.address) as meter, pytest.raises(DeviceError) as error:
            meter.bench(models, {"x": images[:1]}, duration_s=0.1)
        return str(error.value)

    async def go():
        async with serving(x86):
            return await asyncio.to_thread(measure)

    assert run_async(go()).startswith("orin1: bench: connection lost")


def test_a_device_that_cannot_be_reached_leaves_nothing_open(run_async, user_home, x86) -> None:
    with pytest.raises(Unreachable), DeviceMeter(Address("127.0.0.1", port=1, name="away")):
        pass


def test_a_latency_table_is_read_from_the_devices_own_profile(
    run_async, serving, x86, tmp_path: Path, host_cache: Path
) -> None:
    """The real agent with ONNX Runtime: every layer of the networks is found in its profile by name."""
    layers = {
        "a": LayerShape("conv", 8, 32, (16, 16), (3, 3)),
        "b": LayerShape("conv", 32, 32, (16, 16), (3, 3)),
        "fc": LayerShape("linear", 32, 10, (1, 4)),
    }
    groups = {
        "a": Prunable("a", "channels", 32, (("a", "out", 1), ("b", "in", 1))),
        "b": Prunable("b", "channels", 32, (("b", "out", 1), ("fc", "in", 1))),
    }

    def measure():
        with (
            DeviceMeter(x86.address) as meter,
            WorkDirectory(tmp_path / "out", "recipe") as work,
        ):
            stages = Stages(StageCache(host_cache), work, lambda line: None, None)
            first = open_device_table(layers, groups, meter, "onnxruntime", stages)
            asked = len(x86.requests)
            return (
                first,
                asked,
                open_device_table(layers, groups, meter, "onnxruntime", stages),
            )

    async def go():
        async with serving(x86):
            return await asyncio.to_thread(measure)

    table, asked, again = run_async(go(), 180)
    assert set(table.times) == {shape.key for shape in table.wanted()}
    assert table.fixed_ms > 0
    assert all(ms > 0 for ms in table.times.values())
    # Which is longer is not asserted: another program on this core decides it.
    assert table.predict({}) > 0 and table.predict({"a": 8, "b": 8}) > 0
    assert again.times == table.times
    assert len(x86.requests) == asked  # from the cache: the device was not asked
