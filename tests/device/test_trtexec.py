"""trtexec's way: a build, a check and times by the flags of each version, with a strict stand-in for it."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from edgeml.artifact.tensorrt_versions import find_version
from edgeml.errors import BuildError, EdgemlError, InputError
from edgeml.runtime.device.build_on_device import build_engine
from edgeml.runtime.device.check import check_engine
from edgeml.runtime.device.tensor_file import Tensor, from_array, to_array
from edgeml.runtime.device.trtexec_builder import build_command, build_plan, version_row
from edgeml.runtime.device.trtexec_output import (
    error_line,
    read_json,
    trtexec_version,
)
from edgeml.runtime.device.trtexec_runner import TrtexecRunner
from safetensors.numpy import load, save

VERSIONS = ["8.5.2", "8.6.2", "10.3.0", "11.4.1"]
SHAPES = {"x": [1, 3, 16, 16]}


@pytest.fixture
def trtexec(tmp_path):
    """A function: the stand-in of a version."""

    def make(version: str) -> str:
        folder = tmp_path / version
        folder.mkdir(exist_ok=True)
        (folder / "version").write_text(f"{version}\n")
        body = (Path(__file__).parent / "trtexec_stand_in.py").read_text()
        path = folder / "trtexec"
        path.write_text(f"#!{sys.executable}\n{body}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


def build(trtexec: str, onnx, plan, version: str, int8=False, **options) -> bool:
    row = version_row(version)
    words = build_command(
        trtexec, str(onnx), str(plan), row, int8=int8, fp16=True, shapes=SHAPES, **options
    )
    return build_plan(words, lambda line: None, 60)


@pytest.fixture
def two_references(tmp_path, reference) -> str:
    kept = {k: a for k, a in load(reference).items() if k[:3] in ("000", "001")}
    (tmp_path / "reference.safetensors").write_bytes(save(kept))
    return str(tmp_path / "reference.safetensors")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_versions_flags_build_check_and_time(
    version, trtexec, conv_onnx, tmp_path, two_references
):
    program, plan, cache = trtexec(version), tmp_path / "engine.plan", tmp_path / "timing.cache"
    assert trtexec_version(program) == version
    options = {"workspace_mib": 64, "timing_cache": str(cache)}
    assert build(program, conv_onnx, plan, version, **options) is True
    assert cache.exists()
    runner = TrtexecRunner(program, str(plan), version_row(version), SHAPES)
    row = check_engine(runner, two_references)
    assert (row["status"], row["n"]) == ("checked", 2), row["reason"]
    assert row["outputs"][0]["max_rel"] < 1e-5  # six digits come back
    x = {"x": from_array(np.zeros((1, 3, 16, 16), np.float32))}
    times = runner.times_ms(x, 0.05, 0.0)
    assert len(times) >= 10 and min(times) > 0
    if version == "10.3.0":
        assert runner.profile(x, 3)[0]["ms"] > 0
    runner.close()


def test_a_numbered_build_is_one_of_its_own_without_kept_timings(
    trtexec, conv_onnx, tmp_path, monkeypatch
):
    """What differs from build to build would be hidden by a plan or timings of an earlier one."""
    monkeypatch.setenv("PATH", str(Path(trtexec("10.3.0")).parent), prepend=os.pathsep)
    spec = {"id": "a", "runtime": "tensorrt", "precision": "fp32", "execution": "fp32"}
    spec |= {"model": conv_onnx.name, "files": {conv_onnx.name: "hash"}, "shapes": SHAPES}

    def made(**more):
        folder, cache = str(conv_onnx.parent), str(tmp_path / "cache")
        row = build_engine({**spec, **more}, folder, cache, 60, lambda line: None)
        (timings,) = (tmp_path / "cache" / "plans").glob("timing-*.cache")
        return row["status"], row["plan"], timings.read_bytes()

    first = made()
    assert first[0] == "built" and made(build=0) == ("cached", *first[1:])
    again = made(build=1)
    assert again[0] == "built" and again[1] != first[1] and again[2] == first[2]
    assert made(build=1)[0] == "cached" and made(build=2)[1] not in (first[1], again[1])


def test_int8_on_a_weakly_typed_version_gets_its_flag(trtexec, int8_onnx, tmp_path):
    program, plan = trtexec("8.5.2"), tmp_path / "engine.plan"
    assert build(program, int8_onnx, plan, "8.5.2", int8=True)
    with pytest.raises(BuildError, match="INT8 is not enabled"):
        build(program, int8_onnx, plan, "8.5.2", int8=False)


def test_a_graph_without_open_axes_is_built_without_shapes(trtexec, save_graph, tmp_path):
    from onnx import helper

    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    fixed = save_graph(
        tmp_path / "fixed.onnx", nodes, [("x", [1, 3, 16, 16])], [("y", [1, 3, 16, 16])]
    )
    program = trtexec("10.3.0")
    plan = tmp_path / "p.plan"
    assert build(program, fixed, plan, "10.3.0") is False
    runner = TrtexecRunner(program, str(plan), version_row("10.3.0"), None)
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    y = to_array(runner.run({"x": from_array(x)})["y"])
    np.testing.assert_allclose(y, np.maximum(x, 0), rtol=1e-5)


def test_names_that_trtexec_splits_on_are_quoted(trtexec, save_graph, tmp_path):
    from onnx import helper

    nodes = [helper.make_node("Add", ["in:0", "in,1"], ["y"])]
    inputs = [("in:0", ["n", 2]), ("in,1", ["n", 2])]
    graph = save_graph(tmp_path / "odd.onnx", nodes, inputs, [("y", ["n", 2])])
    program, plan, row = trtexec("10.3.0"), str(tmp_path / "p"), version_row("10.3.0")
    shapes = {"in:0": [1, 2], "in,1": [1, 2]}
    words = build_command(program, str(graph), plan, row, int8=False, fp16=False, shapes=shapes)
    assert build_plan(words, lambda line: None, 60)
    feed = {name: from_array(np.full((1, 2), k, np.float32)) for k, name in enumerate(shapes, 1)}
    outputs = TrtexecRunner(program, plan, row, shapes).run(feed)
    assert to_array(outputs["y"]).tolist() == [[3, 3]]


def test_what_trtexec_refuses_is_one_line(trtexec, tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"none")
    with pytest.raises(BuildError, match=r"^trtexec: ModelImporter.cpp: .* \(exit code 1\)$"):
        build(trtexec("10.3.0"), tmp_path / "no.onnx", tmp_path / "p", "10.3.0")
    (tmp_path / "bad.plan").write_bytes(b"junk")
    runner = TrtexecRunner(trtexec("10.3.0"), str(tmp_path / "bad.plan"), version_row("10.3.0"))
    with pytest.raises(EdgemlError, match="Magic tag does not match"):
        runner.run({"x": Tensor("float32", (1,), b"\0\0\0\0")})


def test_the_stand_in_refuses_removed_flags(trtexec, conv_onnx, tmp_path):
    """As the real one: what the tests above pass is not passed by luck."""
    row = find_version("8.6.2")  # its flags given to another version's trtexec
    for version, flag in (("11.4.1", "--fp16"), ("8.5.2", "--skipInference")):
        words = build_command(
            trtexec(version), str(conv_onnx), str(tmp_path / "p"), row, int8=True, fp16=True,
            shapes=SHAPES,
        )  # fmt: skip
        with pytest.raises(BuildError, match=f"Unknown option: {flag}"):
            build_plan(words, lambda line: None, 60)


def test_a_build_that_hangs_is_ended(tmp_path, conv_onnx):
    slow = tmp_path / "trtexec"
    slow.write_text("#!/bin/sh\nwhile :; do echo still building; sleep 0.1; done\n")
    slow.chmod(0o755)
    with pytest.raises(BuildError, match="took longer than 0 s and was ended"):
        build_plan([str(slow)], lambda line: None, 0.5)


def test_nan_and_inf_as_cpp_prints_them_are_read(tmp_path):
    path = tmp_path / "o.json"
    values = "[ nan, -nan, inf, -inf, 1 ]"
    path.write_text(
        f'[\n  {{ "name" : "nan"\n  , "dimensions" : "5"\n  , "values" : {values}\n  }}\n]\n'
    )
    (row,) = read_json(str(path))
    assert row["name"] == "nan"
    assert np.isnan(row["values"][:2]).all() and row["values"][2:] == [np.inf, -np.inf, 1]


def test_a_trtexec_that_tells_no_version_or_is_killed_is_named():
    with pytest.raises(InputError, match="tells no version"):
        trtexec_version(shutil.which("true"))
    with pytest.raises(InputError, match="does not run"):
        trtexec_version("/gone/trtexec")
    assert "for memory" in error_line("", -9)
    assert version_row("10.9.0").name == "10.3"


def test_int64_inputs_are_int32_before_tensorrt_10(tmp_path):
    ids = from_array(np.array([[1, -2, 30522]], np.int64))
    old = TrtexecRunner("trtexec", "plan", version_row("8.6.1"))
    assert np.frombuffer(old._bytes(ids), np.int32).tolist() == [1, -2, 30522]
    assert TrtexecRunner("trtexec", "plan", version_row("10.3.0"))._bytes(ids) == ids.data
    with pytest.raises(InputError, match="int32 does not hold"):
        old._bytes(from_array(np.array([2**31], np.int64)))
