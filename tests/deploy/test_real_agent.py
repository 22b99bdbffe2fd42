"""The whole way with the real agent: this machine is the device, with ONNX Runtime, over loopback SSH."""

from __future__ import annotations

import os
import site
from pathlib import Path

import numpy as np
import pytest
from edgeml.artifact.bundle import open_bundle
from edgeml.artifact.manifest import EngineEntry
from edgeml.deploy.fleet import agent_file
from edgeml.deploy.plan import DeployOptions
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
