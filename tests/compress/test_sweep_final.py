"""The last work of a sweep: what fails is left out with its reason, and test is scored once an engine."""

from __future__ import annotations

import json
import shutil

import pytest
from edgeml.artifact.recipe import build_recipe
from edgeml.compress import search
from edgeml.compress.sweep_final import run_final
from edgeml.compress.sweep_table import REFERENCE
from edgeml.compress.sweep_trial import opened, run_baselines


@pytest.fixture(scope="module")
def baselines(small, tmp_path_factory):
    """A folder with bundles of the small network's engines and a cache, what asked for them, and their rows."""
    folder = tmp_path_factory.mktemp("baselines")
    step = {"step": "quantize", "routes": ["onnxruntime"], "calibration_samples": 16}
    values = {**small, "runtimes": ["onnxruntime"], "threads": 1, "max_drop_points": None}
    request = {
        "id": "a",
        "recipe": build_recipe({**values, "steps": [step]}).model_dump(mode="json"),
        "objectives": ["accuracy", "latency", "size"],
        "threads": 1,
        "trust_code": False,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEML_CACHE", str(folder / "cache"))
        patch.setattr(search, "BENCH_SECONDS", 0.02)
        given = {**request, "tested": str(folder / "tested.json")}
        with opened(given, folder, lambda line: None) as job:
            rows = run_baselines(job)["rows"]
    return folder, request, rows


@pytest.fixture
def work(baselines, tmp_path, monkeypatch):
    """A copy of those bundles, by id, and the request that they came from."""
    made, request, rows = baselines
    monkeypatch.setenv("EDGEML_CACHE", str(made / "cache"))
    monkeypatch.setattr(search, "BENCH_SECONDS", 0.02)
    shutil.copytree(made / "bundles", tmp_path / "bundles")
    request = {**request, "tested": str(tmp_path / "tested.json")}
    finalists = {
        row["id"]: {
            "bundle": str(tmp_path / "bundles" / row["id"]),
            "size_bytes": row["size_bytes"],
            "energy": None,
            "baseline": "fp32" if row["precision"] == "fp32" else None,
        }
        for row in rows[1:]
    }
    assert set(finalists) == {"onnxruntime-fp32", "onnxruntime-int8-onnxruntime-minmax"}
    return tmp_path, request, finalists


def finish(folder, request, finalists):
    with opened({**request, "finalists": finalists}, folder, lambda line: None) as given:
        return run_final(given), json.loads((folder / "tested.json").read_text())


def test_a_resumption_scores_only_what_was_never_scored_and_counts_the_readings(work):
    folder, request, finalists = work
    float_one = {"onnxruntime-fp32": finalists["onnxruntime-fp32"]}
    _, first = finish(folder, request, float_one)
    assert first["reads"] == 1 and set(first["rows"]) == {REFERENCE, "onnxruntime-fp32"}
    _, same = finish(folder, request, float_one)
    assert same == first
    found, second = finish(folder, request, finalists)
    assert set(found["rows"]) == {REFERENCE, *finalists}
    new = set(second["rows"]) - set(first["rows"])
    if new:  # the INT8 engine is on the front, or cannot be told from it
        assert second["reads"] == 2 and second["rows"][new.pop()]["read"] == 2
    for name, row in first["rows"].items():
        assert second["rows"][name] == row


def test_an_engine_that_cannot_be_loaded_is_left_out_with_its_reason(work):
    folder, request, finalists = work
    (bad,) = [name for name in finalists if "int8" in name]
    for file in (folder / "bundles" / bad).glob("*.onnx"):
        file.write_bytes(b"")
    found, tested = finish(folder, request, finalists)
    assert set(found["rows"]) == {REFERENCE, "onnxruntime-fp32"}
    assert set(found["failed"]) == {bad} and "BundleError" in found["failed"][bad]
    assert bad not in tested["rows"] and tested["rows"]["onnxruntime-fp32"]["n"] > 0
