"""`edgeml bench`: tables, comparisons, and what cannot be timed."""

from __future__ import annotations

import json
import re

import pytest
from edgeml.artifact.preprocess import ImagePreprocess

QUICK = ("--duration", "0.05")

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def bundle(make_bundle, tmp_path):
    """Made from images: it says how one becomes an input."""
    how = ImagePreprocess(resize=16, crop=16).model_dump_json()
    return make_bundle(tmp_path / "made", files={"preprocess.json": how.encode()})


def test_two_are_compared_and_the_result_is_pure_json(bundle, inside, edgeml):
    run = edgeml("bench", bundle, "net.onnx", *QUICK, "--json", "-", "--percentile", 75)
    assert run.code == 0 and run.said == []
    result = json.loads(run.stdout)
    assert {row["id"] for row in result["rows"]} == {str(bundle), "net.onnx"}
    assert re.search("faster|slower|no difference", result["verdict_line"])
    assert "p75" in result["settings"]["percentiles"]["net.onnx"]


def test_end_to_end_times_every_stage(bundle, inside, edgeml):
    args = ("bench", bundle, *QUICK, "--end-to-end", "--data", "imagefolder:photos")
    run = edgeml(*args, "--iterations", 5, "--warmup", 1)
    assert run.code == 0 and run.said == []
    for stage in ("decode", "preprocess", "infer", "postprocess"):
        assert stage in run.stdout


REFUSED = {
    "gone": "no engine at gone; give a bundle's directory",
    "gone.onnx": "no engine at gone.onnx",
    "net.py": "net.py is no engine file",
    "no-bundle": "is no bundle: it has no manifest.json",
    "cut.onnx": "cut.onnx is no ONNX model, or is cut short",
    "foreign-op.onnx": "cannot load foreign-op.onnx: .*mine:Foo",
    "open.onnx": "has open axes",
    "batch8.onnx --batch 4": "is fixed to input .*; --batch 4 needs an open batch axis",
    "net.onnx --duration 0": "0.0 is not in the range",
    "net.onnx --duration nan": "nan is no finite number",
    "net.onnx --duration inf": "inf is no finite number",
    "net.onnx --iterations 0": "0 is not in the range",
    "net.onnx --percentile 101": "101.0 is not in the range",
    "net.onnx --percentile nan": "nan is no finite number",
    "net.onnx --batch 0": "'0' is no batch size; give 8, or several as in 1,8,32",
    "net.onnx --batch 1,x": "'1,x' is no batch size",
    "net.onnx --threads 0": "0 is not in the range",
    "net.onnx --threads 100000": r"this machine has \d+ CPUs",
    "net.onnx --data imagefolder:photos": "--data gives the images of --end-to-end",
    "net.onnx --end-to-end": "--end-to-end needs images; give --data",
    "net.onnx --end-to-end --data imagefolder:photos": "declares no preprocessing",
    "BUNDLE --end-to-end": "--end-to-end needs images; give --data",
    "BUNDLE --end-to-end --data npz:good.npz": "npz:good.npz holds arrays",
    "BUNDLE --end-to-end --data imagefolder:gone": "neither a directory nor a .zip",
    "BUNDLE --end-to-end --data imagefolder:all-bad": "c0/1.png: unreadable image",
    "BUNDLE --end-to-end --batch 4 --data imagefolder:photos": "one frame at a time; leave out --batch",
    "net.onnx gone": "no engine at gone",
}


@pytest.mark.parametrize("args", REFUSED)
def test_what_cannot_be_timed_is_refused_before_timing(args, bundle, inside, edgeml):
    run = edgeml("bench", *args.replace("BUNDLE", str(bundle)).split())
    assert run.code == 2
    assert len(run.said) == 1 and run.said[0].startswith("edgeml: "), run.said
    assert re.search(REFUSED[args], run.said[0]), run.said[0]
    assert run.stdout == "" and not [line for line in run.progress if "timing" in line]


def test_energy_says_that_there_is_no_meter_and_why(inside, edgeml, monkeypatch):
    from edgeml.runtime import bench_energy
    from edgeml.runtime.energy.none import NoMeter

    monkeypatch.setattr(
        bench_energy, "find_meter", lambda device: NoMeter("rapl: this machine shows none")
    )
    run = edgeml("bench", "net.onnx", *QUICK, "--energy", "--batch", "1,4")
    assert run.code == 0
    heads = run.stdout.splitlines()[0]
    assert " mJ" in heads and "net mJ" in heads and run.stdout.count("not measured") >= 4
    assert "energy not measured: rapl: this machine shows none" in run.stdout
    assert "(batch 1)" in run.stdout and "(batch 4)" in run.stdout


def test_a_plan_of_elsewhere_is_refused_in_one_line(tmp_path, edgeml):
    export = tmp_path / "out-trt"
    export.mkdir()
    (export / "model.plan").write_bytes(b"code")
    (export / "engine.json").write_text('{"engine": {"file": "model.plan"}}')
    run = edgeml("bench", export, *QUICK)
    assert run.code == 2 and len(run.said) == 1
    assert "was not built on this machine, and a plan is executable code" in run.said[0]
    run = edgeml("bench", export, *QUICK, "--trust-plan", "0" * 64)
    assert run.code == 2 and "is not the sha256 of" in run.said[0]
