"""OpenVINO: precisions, profile, what it cannot read."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from edgeml.errors import MissingPart
from edgeml.runtime.engine import EngineOptions, load_file
from edgeml.runtime.openvino_engine import executable_precisions, import_openvino

CONV_MACS, FC_MACS = 16 * 16 * 16 * 3 * 3 * 3, 16 * 4


@pytest.mark.parametrize("batch", [1, 2, None])
def test_the_profile_counts_the_work_of_each_layer(conv_onnx, images, batch):
    n = batch or 3
    with load_file(conv_onnx, "openvino", EngineOptions(batch=batch)) as engine:
        layers = engine.profile({"x": images[:n]})
    busy = [layer for layer in layers if layer.macs]
    assert [layer.macs for layer in busy] == [n * CONV_MACS, n * FC_MACS]
    assert [layer.kind for layer in busy] == ["Convolution", "FullyConnected"]
    assert {layer.precision for layer in busy} == {"fp32"}
    assert all(layer.time_ms >= 0 for layer in layers)
    assert {layer.precision for layer in layers if not layer.macs} <= {None}


def test_the_profile_tells_int8_from_float(int8_onnx, images):
    with load_file(int8_onnx, "openvino", EngineOptions()) as engine:
        busy = [layer for layer in engine.profile({"x": images[:1]}) if layer.macs]
    assert [layer.macs for layer in busy] == [CONV_MACS, FC_MACS]
    assert {layer.precision for layer in busy} == {"int8"}


def test_fp32_is_always_executed_and_bf16_where_the_cpu_has_it(conv_onnx, images):
    assert executable_precisions()[0] == "fp32"
    outputs = {}
    for execution in ("fp32", "bf16", "fp16"):
        options = EngineOptions(execution=execution)
        if execution not in executable_precisions():
            with pytest.raises(MissingPart, match=f"executes fp32.*, not {execution}"):
                load_file(conv_onnx, "openvino", options)
            continue
        with load_file(conv_onnx, "openvino", options) as engine:
            outputs[execution] = engine.run({"x": images[:1]})["y"]
            assert outputs[execution].dtype == np.float32
    for other in outputs.values():
        np.testing.assert_allclose(other, outputs["fp32"], rtol=0.05, atol=0.05)


def test_threads_and_objective_reach_the_library(conv_onnx):
    options = EngineOptions(threads=1, objective="throughput")
    with load_file(conv_onnx, "openvino", options) as engine:
        found = engine._compiled
        assert found.get_property("INFERENCE_NUM_THREADS") == 1
        assert "THROUGHPUT" in str(found.get_property("PERFORMANCE_HINT"))


def test_telemetry_is_off_in_openvino_and_nncf():
    """Neither imports the package that sends; it is installed here as a dependency of OpenVINO."""
    code = """if True:
        import sys
        from edgeml.runtime.openvino_engine import import_openvino
        openvino = import_openvino()
        import openvino.tools.ovc.telemetry_utils as ours
        import nncf.telemetry.wrapper as theirs
        assert "stub" in ours.tm.Telemetry.__module__, ours.tm
        assert isinstance(theirs.telemetry, theirs.NNCFTelemetryStub), theirs.telemetry
        sent = [n for n, module in sys.modules.items() if "openvino_telemetry" in n and module]
        assert not sent, sent
    """
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPart, match=r"pip install 'edgeml-toolchain\[openvino\]'"):
        import_openvino()
