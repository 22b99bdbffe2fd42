"""The meter that `compress --target ssh://` is handed: the real agent times on this machine."""

from __future__ import annotations

import asyncio
import os
import site
from pathlib import Path

import numpy as np
import pytest
from edgeml.deploy.meter import DeviceMeter
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
    from edgeml.deploy.address import Address

    with pytest.raises(Unreachable), DeviceMeter(Address("127.0.0.1", port=1, name="away")):
        pass
