"""Networks of an opset below 13, whose DequantizeLinear knows no axis: per-channel weights need one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from edgeml.artifact.recipe import QuantizeStep, build_recipe
from edgeml.artifact.work_directory import WorkDirectory
from edgeml.compress import quantize_onnxruntime
from edgeml.compress.build_engines import build
from edgeml.compress.calibration import Calibration
from edgeml.compress.candidates import int8_candidates, quantization_steps
from edgeml.compress.job import open_job
from edgeml.compress.quantize_onnxruntime import QuantizeOnnxRuntime
from edgeml.compress.stages import Stages
from edgeml.compress.step import apply
from edgeml.errors import ModelError


@pytest.fixture
def old(tmp_path, small) -> Path:
    """The small network in opset 12, weights in Constant nodes, as Paddle's converter writes them."""
    model = onnx.load(small["model"])
    nodes = [
        onnx.helper.make_node("Constant", [], [weight.name], value=weight)
        for weight in model.graph.initializer
    ]
    graph = onnx.helper.make_graph(
        [*nodes, *model.graph.node], "old", model.graph.input, model.graph.output
    )
    opset = [onnx.helper.make_opsetid("", 12)]
    path = tmp_path / "old.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=7), path)
    return path


def test_onnxruntime_quantizes_it_per_channel_to_a_valid_file(old, tmp_path, draw):
    import onnxruntime

    calibration = Calibration(lambda: ({"x": x} for x in draw(8)), 8)
    result = apply(QuantizeOnnxRuntime(), old, calibration, tmp_path)
    onnx.checker.check_model(str(result.path), full_check=True)
    opsets = {opset.domain: opset.version for opset in onnx.load(result.path).opset_import}
    assert opsets[""] == 13
    before, after = (
        onnxruntime.InferenceSession(path).run(None, {"x": draw(4)})[0]
        for path in (old, result.path)
    )
    assert np.abs(before - after).max() < 0.1 * np.abs(before).max()


def test_a_newer_network_is_left_as_it_is(small, tmp_path):
    model = Path(small["model"])
    assert quantize_onnxruntime.readable(model, tmp_path / "copy.onnx", False) == model
    assert not (tmp_path / "copy.onnx").exists()


def test_weights_in_a_file_of_their_own_are_quantized_too(small, tmp_path, draw):
    import onnxruntime

    model = tmp_path / "apart.onnx"
    proto = onnx.load(small["model"])
    onnx.save(proto, model, save_as_external_data=True, location="apart.bin", size_threshold=64)
    assert (tmp_path / "apart.bin").is_file()
    directory = tmp_path / "out"
    directory.mkdir()
    calibration = Calibration(lambda: ({"x": x} for x in draw(8)), 8)
    result = apply(QuantizeOnnxRuntime(), model, calibration, directory)
    assert result.quantizers > 0
    session = onnxruntime.InferenceSession(result.path)
    assert session.run(None, {"x": draw(4)})[0].shape == (4, 4)


def test_a_file_that_a_route_wrote_wrong_costs_its_row_and_not_the_run(
    small, tmp_path, monkeypatch, fresh_cache
):
    """OpenVINO refused ONNX Runtime's opset-12 Q/DQ, and the user's good model was blamed for it."""

    def converts(source, directory):
        if source.name == "model.int8.onnx":
            raise ModelError(f"{source} breaks the ONNX rules: unrecognized attribute axis")
        return original(source, directory)

    from edgeml.export import openvino_ir

    original = openvino_ir.to_openvino
    monkeypatch.setattr(openvino_ir, "to_openvino", converts)
    step = QuantizeStep(routes=("onnxruntime",), calibration_samples=20)
    recipe = build_recipe(
        {"model": small["model"], "data": small["data"], "steps": [step.model_dump()]}, "test"
    )
    with WorkDirectory(tmp_path / "out", recipe.hash) as work:
        stages = Stages(fresh_cache, work, lambda line: None, None)
        candidates = int8_candidates(recipe, quantization_steps(step)[0])
        trials = build(open_job(recipe, stages), candidates, stages)
    failed = [t.row for t in trials if t.row.status == "failed"]
    assert failed and {row.runtime for row in failed} == {"openvino"}
    assert failed[0].reason.startswith("onnxruntime minmax wrote a wrong file: ")
    assert [t.row.runtime for t in trials if t.engine] == ["onnxruntime"]
    for trial in trials:
        if trial.engine:
            trial.engine.close()
