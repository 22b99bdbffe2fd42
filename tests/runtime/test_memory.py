"""Loading, first inference and peak memory, in a process that does nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from edgeml.errors import EdgemlError
from edgeml.runtime import memory
from edgeml.runtime.engine import EngineOptions
from edgeml.runtime.memory import measure_in_own_process

X = {"x": np.zeros((1, 3, 16, 16), np.float32)}


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_process_is_measured(conv_onnx, runtime):
    options = EngineOptions(threads=1, input_shapes=(("x", (1, 3, 16, 16)),))
    found = measure_in_own_process(conv_onnx, runtime, options, X, repeats=2)
    assert found.load_ms.value > 0 and found.load_ms.unit == "ms"
    assert found.first_inference_ms.value > 0
    assert found.peak_memory_bytes.value >= found.library_bytes.value > 2**20
    for measurement in (found.load_ms, found.peak_memory_bytes):
        assert measurement.n == 2
        assert measurement.low <= measurement.value <= measurement.high


def test_the_child_measures_itself_and_not_its_parent(conv_onnx):
    ballast = np.ones(500 * 2**20, np.uint8)
    found = measure_in_own_process(conv_onnx, "onnxruntime", EngineOptions(), X, repeats=1)
    assert found.peak_memory_bytes.value < ballast.nbytes


def test_a_child_that_refuses_gives_its_line(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(EdgemlError) as caught:
        measure_in_own_process(tmp_path / "bad.onnx", "onnxruntime", EngineOptions(), X)
    line = str(caught.value)
    assert "died in its own process (exit 1): " in line
    assert line.endswith("is no ONNX model, or is cut short (8 bytes)")
    assert "\n" not in line


def test_a_child_that_crashes_gives_one_line(conv_onnx):
    wrong = {"x": np.zeros((1, 3, 8, 8), np.float32)}
    with pytest.raises(EdgemlError, match=r"exit 1.*has shape 1×3×8×8") as caught:
        measure_in_own_process(conv_onnx, "onnxruntime", EngineOptions(), wrong)
    assert "\n" not in str(caught.value)


def test_a_child_that_is_killed_gives_one_line(conv_onnx, monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nprintf 'half a line'\nkill -9 $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(memory.sys, "executable", str(python))
    with pytest.raises(EdgemlError, match=r"died in its own process \(exit -9\): no message"):
        measure_in_own_process(conv_onnx, "onnxruntime", EngineOptions(), X)


def test_a_child_that_hangs_gives_one_line(conv_onnx, monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 30\n")
    python.chmod(0o755)
    monkeypatch.setattr(memory.sys, "executable", str(python))
    monkeypatch.setattr(memory, "TIMEOUT_S", 0.2)
    with pytest.raises(EdgemlError, match=r"in its own process took over 0\.2 s"):
        measure_in_own_process(conv_onnx, "onnxruntime", EngineOptions(), X)


def test_a_file_named_like_a_library_is_not_imported(conv_onnx, tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    monkeypatch.chdir(tmp_path)
    measure_in_own_process(conv_onnx, "onnxruntime", EngineOptions(), X, repeats=1)
