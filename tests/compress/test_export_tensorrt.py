"""`edgeml export`: typed graphs for every version, engines by TensorRT-RTX, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgeml.artifact.content_hash import hash_file
from edgeml.cli import main
from edgeml.errors import InputError
from edgeml.export.qdq_lint import lint

pytest.importorskip("onnxconverter_common", reason="onnxconverter-common is not installed")
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None
    or importlib.util.find_spec("polygraphy") is None,
    reason="tensorrt-rtx-cu13 or polygraphy is not installed",
)
new_enough = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="onnxruntime is too old to quantize there"
)


def export(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["export", *(str(a) for a in arguments)])
    return ended.value.code


@pytest.fixture
def error(capsys):
    """The one line on stderr."""

    def read() -> str:
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return read


@needs_rtx
def test_an_fp16_engine_with_its_graph_and_its_record(small, tmp_path, capsys):
    out = tmp_path / "out"
    done = export(
        small["model"], "--to", "tensorrt-rtx", "--fp16", "--data", small["data"], "-o", out
    )
    assert done == 0
    record = json.loads((out / "engine.json").read_text())
    plan = out / record["engine"]["file"]
    assert plan.name.startswith("model.trtrtx1.") and plan.name.endswith("-sm89.plan")
    assert record["engine"]["sha256"] == hash_file(plan)
    assert record["graph"]["sha256"] == hash_file(out / "model.onnx")
    assert (record["state"], record["precision"]) == ("legal", "fp16")
    assert record["profiles"] == {"x": [[1, 3, 16, 16]] * 3}
    assert "legal, not run on hardware" in capsys.readouterr().err
    assert {p.name for p in out.iterdir()} == {"engine.json", "model.onnx", plan.name}


@new_enough
@pytest.mark.parametrize(
    ("version", "flags", "opset"),
    [
        ("8.5.2", "--fp16 --int8", 17),
        ("8.6.2", "--fp16 --int8", 17),
        ("10.3", "--stronglyTyped", 20),
        ("11.4", "", 20),
    ],
)
def test_int8_for_a_device_is_a_graph_and_a_line(version, flags, opset, small, tmp_path, capsys):
    out = tmp_path / "out"
    what = ("--int8", "--data", small["data"], "--calibration-samples", 20)
    done = export(
        small["model"], "--to", "tensorrt", "--command", "--tensorrt", version, *what, "-o", out
    )
    assert done == 0
    line = capsys.readouterr().out.strip()
    assert f"--saveEngine={out}/model.trt{'.'.join(version.split('.')[:2])}.plan {flags}" in line
    graph = out / "model.onnx"
    assert onnx.load(graph).opset_import[0].version == opset
    assert [f.line for f in lint(graph, version, shapes=["x"]).findings] == []
    record = json.loads((out / "engine.json").read_text())
    assert record["command"] == line and record["state"] == "written" and record["engine"] is None


def test_a_command_alone_writes_nothing(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert export(small["model"], "--to", "tensorrt", "--command", "--tensorrt", "10.3") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("/usr/src/tensorrt/bin/trtexec --onnx=")
    assert "--stronglyTyped" in printed.out and "fp32-layer" in printed.err
    # What was not asked to be FP16 is not, where flags choose.
    assert export(small["model"], "--to", "tensorrt", "--command", "--tensorrt", "8.6") == 0
    assert "--fp16" not in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_a_bundle_gives_its_float_graph_and_its_reference_inputs(make_bundle, tmp_path, images):
    from safetensors.numpy import save

    tensors = save({f"{i:03}.input.x": image[None] for i, image in enumerate(images)})
    root = make_bundle(
        tmp_path / "bundle",
        files={"reference.safetensors": tensors},
        reference_files=["reference.safetensors"],
    )
    assert export(root, "--to", "tensorrt-rtx", "--fp16", "-o", tmp_path / "out") == 0
    record = json.loads((tmp_path / "out" / "engine.json").read_text())
    assert len(record["model"]["parent"]) == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "tensorrt", "--command", "--tensorrt", "9.9"], "known: 8.5.2"),
        (["--to", "tensorrt", "--command", "--tensorrt", "8.2"], "too old: JetPack 4"),
        (["--to", "tensorrt", "--command", "--tensorrt", "rtx"], "--to tensorrt-rtx"),
        (["--to", "tensorrt", "--command"], "name its version: --tensorrt 8.5.2"),
        (["--to", "tensorrt", "-o", "out"], "tensorrt is not installed"),
        (["--to", "tensorrt", "--command", "--tensorrt", "10.3", "--fp16"], "no output"),
        (["--to", "tensorrt", "--command", "--tensorrt", "10.3", "--fp16", "--int8"], "give one"),
        (
            ["--to", "tensorrt", "--command", "--tensorrt", "10.3", "--fp16", "-o", "out"],
            "give --data",
        ),
        (
            [
                "--to",
                "tensorrt",
                "--command",
                "--tensorrt",
                "10.3",
                "--precision",
                "fp8",
                "-o",
                "o",
            ],
            "fp8 needs ModelOpt",
        ),
        (
            ["--to", "tensorrt", "--command", "--tensorrt", "10.3", "--opt-shape", "z:1x3"],
            "no such input",
        ),
        (
            ["--to", "tensorrt", "--command", "--tensorrt", "10.3", "--compute-capability", "SM89"],
            "is for --to tensorrt-rtx",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, message, small, tmp_path, monkeypatch, error):
    monkeypatch.chdir(tmp_path)
    assert export(small["model"], *arguments) == 2
    assert message in error()
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_int8_convolutions_are_refused_for_rtx(small, tmp_path, error):
    what = ("--int8", "--data", small["data"], "-o", tmp_path / "out")
    assert export(small["model"], "--to", "tensorrt-rtx", *what) == 2
    line = error()
    assert "--fp16" in line and "fp8" in line


@needs_rtx
def test_a_graph_that_lint_refuses_is_not_built_and_leaves_nothing(int8_onnx, tmp_path, error):
    out = tmp_path / "out"
    assert export(int8_onnx, "--to", "tensorrt-rtx", "-o", out) == 1
    assert "edgeml lint --fix may mend it" in error()
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    assert export(int8_onnx, "--to", "tensorrt-rtx", "-o", out) == 2
    assert "exists" in error()


@needs_rtx
def test_an_unknown_gpu_is_told(small, tmp_path, error):
    where = ("--compute-capability", "SM12", "-o", tmp_path / "out")
    assert export(small["model"], "--to", "tensorrt-rtx", *where) != 0
    assert "SM12" in error()


def test_the_8x_graph_computes_the_same(small, tmp_path, draw):
    """Form (a) of the float network, in ONNX Runtime."""
    import onnxruntime

    out = tmp_path / "out"
    arguments = ("--to", "tensorrt", "--command", "--tensorrt", "8.5.2", "-o", out)
    assert export(small["model"], *arguments) == 0
    x = draw(4)
    runs = [
        onnxruntime.InferenceSession(p, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for p in (Path(small["model"]), out / "model.onnx")
    ]
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def typed_bundle(small, cache, tmp_path_factory):
    """INT8 and FP16 graphs for a Jetson Orin Nano."""
    from edgeml.artifact.recipe import build_recipe
    from edgeml.compress.recipe_from_flags import recipe_values
    from edgeml.compress.run_recipe import run_recipe

    flags = {"precisions": ("int8",), "routes": ("tensorrt-form",), "calibration_samples": 60}
    values = {"model": small["model"], "data": small["data"], "target": "jetson-orin-nano"}
    recipe = build_recipe(recipe_values({}, {**values, **flags, "max_drop": 5.0}))
    return run_recipe(recipe, tmp_path_factory.mktemp("typed") / "out", cache=cache).bundle


@new_enough
def test_of_a_typed_bundle_the_command_builds_the_graph_that_ships_beside_it(typed_bundle, capsys):
    assert export(typed_bundle, "--to", "tensorrt", "--command", "--tensorrt", "10.3") == 0
    line = capsys.readouterr().out.strip()
    assert f"--onnx={typed_bundle}/model.int8.onnx" in line
    assert f"--saveEngine={typed_bundle}-model.int8.trt10.3-sm87.plan --stronglyTyped" in line
    assert "--optShapes=x:1x3x16x16" in line
    # Without a version it is the bundle's own.
    assert export(typed_bundle, "--to", "tensorrt", "--command", "--fp16") == 0
    assert "model.fp16.trt10.3-sm87.plan" in capsys.readouterr().out
    assert [p.name for p in typed_bundle.parent.iterdir()] == ["out"]


@new_enough
def test_a_timing_cache_that_came_home_is_used_again(typed_bundle, tmp_path, capsys):
    shutil.copytree(typed_bundle, tmp_path / "b")
    kept = tmp_path / "b" / "measurements" / "timing.trt10.3.cache"
    kept.parent.mkdir()
    kept.write_bytes(b"cache")
    assert export(tmp_path / "b", "--to", "tensorrt", "--command") == 0
    assert f"--timingCacheFile={kept}" in capsys.readouterr().out
    assert export(tmp_path / "b", "--to", "tensorrt", "--command", "-o", tmp_path / "out") == 0
    assert (tmp_path / "out" / "timing.cache").read_bytes() == b"cache"
    assert f"--timingCacheFile={tmp_path}/out/timing.cache" in capsys.readouterr().out


@needs_rtx
@new_enough
def test_the_fp16_graph_of_a_typed_bundle_builds_for_rtx(typed_bundle, tmp_path):
    assert export(typed_bundle, "--to", "tensorrt-rtx", "--fp16", "-o", tmp_path / "out") == 0
    record = json.loads((tmp_path / "out" / "engine.json").read_text())
    assert (record["state"], record["precision"]) == ("legal", "fp16")
    assert record["graph"]["sha256"] == hash_file(typed_bundle / "model.fp16.onnx")


@new_enough
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "tensorrt", "--command", "--tensorrt", "8.6"], "8.6.2 takes another form"),
        (
            ["--to", "tensorrt", "--command", "--precision", "fp8"],
            "holds no fp8 graph; it has int8",
        ),
    ],
)
def test_what_a_typed_bundle_does_not_hold_is_one_line(typed_bundle, arguments, message, error):
    assert export(typed_bundle, *arguments) == 2
    assert message in error()


@needs_rtx
def test_as_a_library_a_graph_is_built_as_it_is(conv_onnx, tmp_path):
    from edgeml.export import to_tensorrt

    done = to_tensorrt(conv_onnx, tmp_path / "out", "tensorrt-rtx", compute_capability="SM120")
    assert done.record["engine"]["compute_capability"] == "SM120"
    assert (tmp_path / "out" / "model.onnx").read_bytes() == conv_onnx.read_bytes()
    with pytest.raises(InputError, match="exists; name another directory"):
        to_tensorrt(conv_onnx, tmp_path / "out", "tensorrt-rtx")
