"""Serving: tensors in and out over a Unix socket, with the example client; and a folder that pins its hash."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from edgeml.runtime.device import client as client_module
from edgeml.runtime.device.client import Client
from safetensors.numpy import load


@pytest.fixture
def served(host, engine, short_path):
    host.ask("build", engines=[engine])
    answer = host.ask("serve", engine="fp32", socket=str(short_path / "s"))
    assert answer["event"] == "result", answer
    return answer["socket"]


@pytest.fixture
def short_path(tmp_path_factory) -> Path:
    """A socket's path has at most 107 bytes."""
    return tmp_path_factory.mktemp("s")


def test_a_client_gets_what_the_engine_computes(served, reference):
    expected = load(reference)
    client = Client(served)
    for number in ("000", "003"):
        found = client.run({"x": expected[f"{number}.input.x"]})
        np.testing.assert_allclose(found["y"], expected[f"{number}.output.y"], rtol=1e-4, atol=1e-5)
    client.close()


def test_the_example_client_runs_by_itself(served, images, tmp_path):
    np.savez(tmp_path / "in.npz", x=images[:1])
    words = [
        sys.executable,
        client_module.__file__,
        served,
        tmp_path / "in.npz",
        tmp_path / "out.npz",
    ]
    bare = {**os.environ, "PYTHONPATH": ""}
    subprocess.run(words, check=True, env=bare, cwd=tmp_path)
    assert np.load(tmp_path / "out.npz")["y"].shape == (1, 4)


def test_only_the_owner_may_connect(served):
    assert stat.S_IMODE(Path(served).stat().st_mode) == 0o600


def test_a_bad_request_is_answered_and_the_server_goes_on(served, images):
    client = Client(served)
    with pytest.raises(RuntimeError, match="onnxruntime"):
        client.run({"y": images[:1]})
    assert client.run({"x": images[:1]})["y"].shape == (1, 4)
    client.close()
    for junk in (b"", b"\x05", struct.pack("<Q", 2**40), struct.pack("<Q", 4) + b"junk"):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(served)
            raw.sendall(junk)
    client = Client(served)
    assert client.run({"x": images[:1]})["y"].shape == (1, 4)
    client.close()


def test_a_second_server_there_is_refused(served, host):
    answer = host.ask("serve", engine="fp32", socket=served)
    assert answer["event"] == "error" and "a server listens there already" in answer["message"]


@pytest.fixture
def folder(tmp_path, conv_onnx) -> Path:
    """What --emit writes, less unit and Dockerfile."""
    root = tmp_path / "emitted"
    root.mkdir()
    (root / "model.onnx").write_bytes(conv_onnx.read_bytes())
    spec = {
        "id": "fp32",
        "runtime": "onnxruntime",
        "precision": "fp32",
        "files": {"model.onnx": hashlib.sha256(conv_onnx.read_bytes()).hexdigest()},
        "model": "model.onnx",
        "shapes": {"x": [1, 3, 16, 16]},
    }
    (root / "engine.json").write_text(json.dumps(spec))
    return root


def serve(agent_file, folder, path, *more):
    words = [sys.executable, agent_file, "serve", folder, "--socket", path, *more]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)


def test_a_folder_is_served_after_a_kill_too(agent_file, folder, short_path, images, tmp_path):
    pinned = hashlib.sha256((folder / "engine.json").read_bytes()).hexdigest()
    for _ in range(2):  # the first leaves its socket behind
        more = ("--sha256", pinned, "--cache", tmp_path / "cache")
        process = serve(agent_file, folder, short_path / "s", *more)
        assert process.stderr.readline().startswith("listening at")
        client = Client(str(short_path / "s"))
        assert client.run({"x": images[:1]})["y"].shape == (1, 4)
        client.close()
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: (f / "model.onnx").write_bytes(b"x"), "model.onnx does not match its hash"),
        (lambda f: (f / "engine.json").write_text("{}"), "is not the one that was pinned"),
        (lambda f: (f / "model.onnx").unlink(), "No such file"),
    ],
)
def test_a_folder_that_is_not_what_was_pinned_is_refused(
    agent_file, folder, short_path, spoil, told, tmp_path
):
    pinned = hashlib.sha256((folder / "engine.json").read_bytes()).hexdigest()
    spoil(folder)
    process = serve(agent_file, folder, short_path / "s", "--sha256", pinned)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 2 and told in said and len(said.splitlines()) == 1
    assert not (short_path / "s").exists()
