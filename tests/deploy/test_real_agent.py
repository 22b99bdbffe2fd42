"""The whole way with the real agent: this machine is the device, with ONNX Runtime, over loopback SSH."""

from __future__ import annotations

import asyncio
import os
import site
from pathlib import Path

import numpy as np
import pytest
from edgeml.artifact.bundle import open_bundle
from edgeml.artifact.manifest import EngineEntry
from edgeml.deploy.fleet import agent_file
from edgeml.deploy.plan import DeployOptions
from edgeml.deploy.run_remote import remote_runner
from edgeml.runtime.engine import EngineOptions, load_file
from safetensors.numpy import save

TARGET = "arm64" if os.uname().machine == "aarch64" else "intel-cpu"


@pytest.fixture
def cpu_bundle(tmp_path: Path, make_bundle, int8_onnx: Path, images: np.ndarray):
    """The float network and an INT8 one, as `edgeml compress` writes them for ONNX Runtime."""
    entry = EngineEntry(
        id="onnxruntime-int8",
        runtime="onnxruntime",
        precision="int8",
        files=["model.int8.onnx"],
        input_shapes={"x": [1, 3, 16, 16]},
    )
    tensors = {f"{i:03}.input.x": image[None] for i, image in enumerate(images)}
    root = make_bundle(
        tmp_path / "cpu bundle",
        engines=[entry],
        shipped=entry.id,
        files={"model.int8.onnx": int8_onnx.read_bytes(), "reference.safetensors": save(tensors)},
        reference_files=["reference.safetensors"],
    )
    return open_bundle(root)


def test_a_cpu_bundle_is_built_checked_scored_and_timed_on_another_linux(
    run_async, serving, make_device, deploying, cpu_bundle, scorer, tmp_path: Path
) -> None:
    # The device's python3 finds numpy and ONNX Runtime where this Python has them.
    paths = os.pathsep.join(site.getsitepackages())
    device = make_device(environment={"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"})
    file, digest = agent_file(tmp_path)

    async def go():
        async with serving(device):
            options = DeployOptions(duration_s=0.2, steady_s=0, target=TARGET, energy=False)
            asked = {"options": options, "bundle": cpu_bundle, "scorer": scorer}
            first = await deploying(device, agent=(file, digest), **asked)
            device.requests.clear()
            return first + await deploying(device, agent=(file, digest), **asked)

    first, second = run_async(go(), 120)
    assert first.status == "done", (first.reason, first.plan)
    rows = {row.engine.id: row for row in first.rows}
    assert set(rows) == {"onnxruntime-int8", "onnxruntime-fp32"}
    for row in rows.values():
        assert row.engine.status != "failed", row.engine.reason
        assert row.check == "passed", row.check_text
        assert row.engine.latency_p50_ms.value > 0
        assert row.built == "onnxruntime"
    assert first.conditions
    assert first.verdict_line.startswith("ships onnxruntime")
    assert second.status == "done", second.reason
    assert second.sent_bytes == 0
    assert "put" not in device.requests


def test_run_sends_the_one_engine_that_runs(
    run_async, serving, make_device, cpu_bundle, images: np.ndarray
) -> None:
    device = make_device(
        environment={"PYTHONPATH": os.pathsep.join(site.getsitepackages()), "OMP_NUM_THREADS": "1"}
    )

    async def go():
        async with serving(device):
            to = f"jetson@127.0.0.1:{device.port}"
            run = remote_runner(cpu_bundle.root, to, TARGET, lambda _: None)
            feeds = [{"x": image[None]} for image in images[:2]]
            return await asyncio.to_thread(run, feeds), await asyncio.to_thread(run, feeds)

    first, second = run_async(go(), 120)
    entry = cpu_bundle.manifest.files
    there = {path.name for path in device.blobs()}
    assert entry["model.int8.onnx"].sha256 in there
    assert entry["model.onnx"].sha256 not in there
    assert len(there) == 3  # the agent, the engine, the inputs
    with load_file(cpu_bundle.file("model.int8.onnx"), "onnxruntime", EngineOptions()) as engine:
        for answer, again, image in zip(first, second, images, strict=False):
            expected = engine.run({"x": image[None]})
            assert set(answer) == set(expected)
            for name, array in expected.items():
                np.testing.assert_allclose(answer[name], array, atol=1e-4)
                np.testing.assert_array_equal(answer[name], again[name])
