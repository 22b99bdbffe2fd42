"""Profiles, engine names, the trtexec line of every version, and builds by TensorRT-RTX."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest
from edgeml.artifact.tensorrt_versions import VERSIONS
from edgeml.errors import BuildError, InputError, MissingPart
from edgeml.export import tensorrt_plan, to_tensorrt
from edgeml.export.tensorrt_plan import (
    Profile,
    build_engine,
    build_record,
    profiles_from_shapes,
    require,
    trtexec_line,
)
from onnx import helper

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None
    or importlib.util.find_spec("polygraphy") is None,
    reason="tensorrt-rtx-cu13 or polygraphy is not installed",
)
ONE = (1, 3, 16, 16)
EIGHT = (8, 3, 16, 16)


def test_an_open_batch_becomes_one(conv_onnx):
    assert profiles_from_shapes(conv_onnx, {}, {}, {}) == {"x": Profile(ONE, ONE, ONE)}


def test_what_is_not_given_is_as_what_is(conv_onnx):
    assert profiles_from_shapes(conv_onnx, {}, {"x": EIGHT}, {}) == {
        "x": Profile(EIGHT, EIGHT, EIGHT)
    }
    assert profiles_from_shapes(conv_onnx, {"x": ONE}, {}, {"x": EIGHT}) == {
        "x": Profile(ONE, EIGHT, EIGHT)
    }


def test_a_static_graph_needs_no_profile(save_graph, tmp_path):
    path = tmp_path / "m.onnx"
    save_graph(path, [helper.make_node("Relu", ["x"], ["y"])], [("x", [1, 3])], [("y", [1, 3])])
    assert profiles_from_shapes(path, {}, {}, {}) == {}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (({}, {"z": ONE}, {}), r"--opt-shape z: no such input, known: x"),
        (({}, {"x": (1, 3, 16)}, {}), r"--opt-shape x:1x3x16 does not fit input"),
        (({}, {}, {"x": (1, 4, 16, 16)}), r"--max-shape x:1x4x16x16 does not fit"),
        (({"x": EIGHT}, {"x": ONE}, {}), r"axis 0 has min 8, opt 1, max 1"),
        (({}, {"x": EIGHT}, {"x": ONE}), r"axis 0 has min 8, opt 8, max 1"),
    ],
)
def test_profiles_that_do_not_fit_are_refused(shapes, message, conv_onnx):
    with pytest.raises(InputError, match=message):
        profiles_from_shapes(conv_onnx, *shapes)


def test_an_open_axis_besides_the_batch_has_to_be_given(save_graph, tmp_path):
    path = tmp_path / "m.onnx"
    save_graph(
        path, [helper.make_node("Relu", ["x"], ["y"])], [("x", ["n", "t"])], [("y", ["n", "t"])]
    )
    with pytest.raises(InputError, match="open axes besides the batch; give --opt-shape x:"):
        profiles_from_shapes(path, {}, {}, {})


LINES = {
    "8.5.2": "--fp16 --int8 --minShapes=x:1x3 --optShapes=x:4x3 --maxShapes=x:8x3 --buildOnly",
    "8.6.2": "--fp16 --int8 --minShapes=x:1x3 --optShapes=x:4x3 --maxShapes=x:8x3 --skipInference",
    "10.3": "--stronglyTyped --minShapes=x:1x3 --optShapes=x:4x3 --maxShapes=x:8x3 --skipInference",
    "10.13": "--stronglyTyped --minShapes=x:1x3 --optShapes=x:4x3 --maxShapes=x:8x3 --skipInference",
    "10.16": "--stronglyTyped --minShapes=x:1x3 --optShapes=x:4x3 --maxShapes=x:8x3 --skipInference",
    "11.4": "--minShapes=x:1x3 --optShapes=x:4x3 --maxShapes=x:8x3 --skipInference",
}


@pytest.mark.parametrize("name", [n for n in VERSIONS if n != "rtx"])
def test_the_trtexec_line_of_every_version(name):
    profiles = {"x": Profile((1, 3), (4, 3), (8, 3))}
    line = trtexec_line("m.onnx", "m.plan", VERSIONS[name], profiles, int8=True, fp16=True)
    head = "/usr/src/tensorrt/bin/trtexec --onnx=m.onnx --saveEngine=m.plan "
    assert line == head + LINES[name]


def test_the_line_is_safe_to_paste_and_takes_workspace_and_timing_cache():
    line = trtexec_line(
        "my model.onnx",
        "m.plan",
        VERSIONS["10.3"],
        {},
        int8=False,
        fp16=False,
        workspace_mib=512,
        timing_cache="t.cache",
    )
    assert "'--onnx=my model.onnx'" in line
    assert "--memPoolSize=workspace:512 --timingCacheFile=t.cache" in line
    with pytest.raises(InputError, match="has no trtexec line"):
        trtexec_line("m", "m", VERSIONS["rtx"], {}, int8=False, fp16=False)


@needs_rtx
def test_it_builds_for_a_gpu_that_is_not_there(conv_onnx, tmp_path):
    profiles = profiles_from_shapes(conv_onnx, {"x": ONE}, {"x": EIGHT}, {})
    plan = tmp_path / "m.plan"
    built = build_engine(
        conv_onnx, plan, "tensorrt_rtx", profiles, compute_capability="SM120", workspace_mib=64
    )
    assert plan.stat().st_size == built.size_bytes > 0
    record = build_record(built, "tensorrt_rtx")
    assert record["compute_capability"] == "SM120" and record["state"] == "legal"
    assert record["version"].startswith("1.") and record["os"] == "Linux"


@pytest.mark.parametrize("capability", ["SM87", "SM90", "sm120", "yes"])
def test_a_gpu_that_rtx_has_not_is_refused_with_those_it_has(conv_onnx, capability):
    with pytest.raises(InputError, match=f"{capability}: TensorRT-RTX builds for SM75, .*SM121"):
        build_engine(conv_onnx, None, "tensorrt_rtx", {}, compute_capability=capability)


@needs_rtx
def test_what_the_parser_refuses_is_told_in_one_line(int8_onnx):
    profiles = profiles_from_shapes(int8_onnx, {}, {}, {})
    with pytest.raises(BuildError, match=r"tensorrt_rtx refuses .*(Int32|zero point)") as caught:
        build_engine(int8_onnx, None, "tensorrt_rtx", profiles)
    assert "\n" not in str(caught.value)


@needs_rtx
def test_a_builder_that_ends_its_process_costs_one_line(conv_onnx, monkeypatch):
    monkeypatch.setattr(
        tensorrt_plan.sys, "executable", str(_script(conv_onnx.parent, "kill -SEGV $$"))
    )
    with pytest.raises(BuildError, match=r"ended its process \(signal 11\)"):
        build_engine(conv_onnx, None, "tensorrt_rtx", {})


def test_a_missing_gpu_is_a_missing_part(conv_onnx, monkeypatch):
    monkeypatch.setattr(tensorrt_plan, "require", lambda module: None)
    told = '{"ok": false, "reason": "no CUDA-capable device (cuInit gives 100)", "seconds": 0}'
    monkeypatch.setattr(
        tensorrt_plan.sys, "executable", str(_script(conv_onnx.parent, f"echo '{told}'"))
    )
    with pytest.raises(MissingPart, match="needs a GPU that is not there"):
        build_engine(conv_onnx, None, "tensorrt", {})


def _script(folder, line):
    path = folder / "fake-python"
    path.write_text(f"#!/bin/sh\ncat > /dev/null\n{line}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("module", "extra"), [("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx")]
)
def test_a_missing_library_is_named_with_what_works_instead(module, extra, monkeypatch):
    monkeypatch.setattr(tensorrt_plan, "find_spec", lambda name: None)
    with pytest.raises(MissingPart, match=rf"edgeml-toolchain\[{extra}\]"):
        require(module)


@pytest.mark.parametrize(
    ("name", "typing"),
    [("8.6.2", (False, True, True)), ("10.3", (True, True, True))],
)
def test_an_older_tensorrt_is_built_by_flags(name, typing, conv_onnx, monkeypatch):
    """Strong typing does not exist there."""
    monkeypatch.setattr(tensorrt_plan, "require", lambda module: None)
    asked = conv_onnx.parent / "asked.json"
    script = _script(conv_onnx.parent, "exit 1")
    script.write_text(f"#!/bin/sh\ncat > {asked}\n")
    monkeypatch.setattr(tensorrt_plan.sys, "executable", str(script))
    with pytest.raises(BuildError, match="gave no result"):
        build_engine(conv_onnx, None, "tensorrt", {}, version=VERSIONS[name], fp16=True, int8=True)
    order = json.loads(asked.read_text())
    assert (order["strongly_typed"], order["fp16"], order["int8"]) == typing


def test_no_engine_is_built_for_another_tensorrt_than_the_installed(
    conv_onnx, tmp_path, monkeypatch
):
    monkeypatch.setattr("edgeml.export.tensorrt_export.require", lambda module: None)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))
    with pytest.raises(InputError, match=r"TensorRT installed here is 10\.3\.0, and builds no"):
        to_tensorrt(conv_onnx, tmp_path / "out", "tensorrt", tensorrt="8.6")
