"""The real agent as the host starts it: its zipapp, in a process, over pipes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from edgeml.runtime.device.zipapp_build import build_agent
from safetensors.numpy import load, save


class Host:
    """Speaks the protocol of docs/decisions/009 to one agent."""

    def __init__(self, agent: Path, cache: Path, python: str = sys.executable, env=None) -> None:
        (cache / "blobs").mkdir(parents=True, exist_ok=True)
        self.cache = cache
        self.process = subprocess.Popen(
            [python, "-u", agent, "agent", "--cache", cache],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        )
        self._number = 0
        self.progress: list[dict] = []
        self.data: list[tuple[dict, bytes]] = []
        # A full pipe would stop the agent.
        self.stderr: list[bytes] = []
        self._listener = threading.Thread(target=lambda: self.stderr.extend(self.process.stderr))
        self._listener.start()

    def put(self, content: bytes) -> str:
        """A blob, as the bootstrap would have stored it."""
        digest = hashlib.sha256(content).hexdigest()
        (self.cache / "blobs" / digest).write_bytes(content)
        return digest

    def send(self, **fields) -> None:
        self.process.stdin.write(json.dumps(fields).encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, do: str, **fields) -> dict:
        """The result, or the error, of one request."""
        self._number += 1
        self.send(id=self._number, do=do, **fields)
        while True:
            line = self.process.stdout.readline()
            assert line, b"".join(self.stderr).decode()
            answer = json.loads(line)
            payload = self.process.stdout.read(answer.get("bytes", 0))
            if answer["event"] == "progress":
                self.progress.append(answer)
            elif answer["event"] == "data":
                self.data.append((answer, payload))
            else:
                assert answer["id"] == self._number
                return answer

    def close(self) -> int:
        """End it as a lost connection would, if it has not ended."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        code = self.process.wait(timeout=20)
        self._listener.join()
        self.process.stdout.close()
        self.process.stderr.close()
        return code


@pytest.fixture(scope="session")
def agent_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "agent.pyz"
    build_agent(path)
    return path


@pytest.fixture
def start(agent_file, tmp_path):
    """A function that starts a host with its agent; all are ended afterwards."""
    hosts = []

    def begin(**options) -> Host:
        hosts.append(Host(agent_file, options.pop("cache", tmp_path / "device cache"), **options))
        return hosts[-1]

    yield begin
    for host in hosts:
        host.close()


@pytest.fixture
def host(start) -> Host:
    return start()


@pytest.fixture(scope="session")
def reference(conv_onnx, images) -> bytes:
    """`conv_onnx` on five inputs: a tensor file of inputs and ONNX Runtime's outputs."""
    session = onnxruntime.InferenceSession(conv_onnx, providers=["CPUExecutionProvider"])
    tensors = {}
    for i, image in enumerate(images):
        x = image[None]
        tensors[f"{i:03}.input.x"] = x
        tensors[f"{i:03}.output.y"] = session.run(None, {"x": x})[0]
    return save(tensors)


@pytest.fixture
def engine(host, conv_onnx) -> dict:
    """The ENGINE of `conv_onnx` in ONNX Runtime, its file uploaded."""
    return spec(host, conv_onnx.read_bytes())


def spec(host: Host, model: bytes, **fields) -> dict:
    found = {
        "id": "fp32",
        "runtime": "onnxruntime",
        "precision": "fp32",
        "execution": "fp32",
        "files": {"model.onnx": host.put(model)},
        "model": "model.onnx",
        "shapes": {"x": [1, 3, 16, 16]},
        "threads": 1,
    }
    return {**found, **fields}


def outputs_of(payload: bytes) -> np.ndarray:
    return np.concatenate([array for _, array in sorted(load(payload).items())])
