"""The bundle of networks that come from elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgeml.artifact.bundle import open_bundle
from edgeml.artifact.manifest import EngineEntry
from edgeml.artifact.preprocess import ImagePreprocess
from edgeml.artifact.recipe import build_recipe
from edgeml.compress.example_script import example_script
from edgeml.compress.run_recipe import run_recipe
from edgeml.runtime import load


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_external_data_in_a_folder_of_its_own_stays_there(small, tmp_path, cache, runtime):
    model = onnx.load(small["model"])
    (tmp_path / "net/weights").mkdir(parents=True)
    for tensor in model.graph.initializer:
        (tmp_path / f"net/weights/{tensor.name}.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = tensor.EXTERNAL
        tensor.external_data.add(key="location", value=f"weights/{tensor.name}.bin")
    onnx.save(model, tmp_path / "net/net.onnx")
    values = {"model": str(tmp_path / "net/net.onnx"), "data": small["data"], "runtimes": [runtime]}
    recipe = build_recipe({**values, "precisions": ["fp32"], "max_drop_points": 50})
    run_recipe(recipe, tmp_path / "out", cache=cache)
    assert "weights/w1.bin" in open_bundle(tmp_path / "out").manifest.files
    with load(tmp_path / "out") as engine:
        assert engine.run({"x": np.zeros((1, 3, 16, 16), np.float32)})["y"].shape == (1, 4)


def test_a_name_in_the_network_is_no_code_in_the_example(tmp_path):
    trace = tmp_path / "ran"
    name = f'x": open({str(trace)!r}, "w") or 0, "y'
    entry = EngineEntry(
        id="e",
        runtime="openvino",
        precision="fp32",
        files=["model.xml"],
        threads=1,
        input_shapes={name: [1, 3, 16, 16]},
    )
    script = example_script(entry, ImagePreprocess(crop=16), None)
    # What it does with an image, its engine replaced by one that takes anything.
    script = script.replace(
        "engine = load_engine()", "engine = lambda inputs: {0: np.zeros((1, 9))}"
    )
    script = script.replace("preprocess(sys.argv[1])", "0")
    Path(tmp_path / "example.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "example.py", "photo"], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not trace.exists()
