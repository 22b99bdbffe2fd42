"""`edgeml compress`, the good ways: what comes out on stdout, on stderr and in OUT."""

from __future__ import annotations

import json

import pytest
from edgeml.artifact.bundle import open_bundle

# One runtime and one route: the shortest whole way.
SHORT = ("--runtime", "onnxruntime", "--int8", "--max-drop", "60")

pytestmark = pytest.mark.usefixtures("quick")


def test_the_table_goes_to_stdout_and_progress_to_stderr(inside, edgeml, tmp_path):
    out = tmp_path / "out"
    run = edgeml("compress", "net.onnx", "--data", "npz:good.npz", *SHORT, "-o", out)
    assert run.code == 0 and run.said == []
    assert any("quantizing by onnxruntime minmax" in line for line in run.progress)
    assert run.stdout.splitlines()[-1].startswith("ships onnxruntime int8")
    assert "← shipped" in run.stdout
    manifest = open_bundle(out).manifest
    assert manifest.shipped == "onnxruntime-int8-onnxruntime-minmax"
    assert not (tmp_path / "out.part").exists()
    # Its recipe repeats the run; a flag wins over it.
    again = edgeml("compress", "--recipe", out / "recipe.yaml", "-o", tmp_path / "again")
    assert again.code == 0 and "ships onnxruntime int8" in again.stdout
    plan = edgeml("compress", "--recipe", out / "recipe.yaml", "--batch", 4, "--plan")
    assert plan.code == 0 and "measure     batch 4" in plan.stdout
    refused = edgeml("compress", "--recipe", out / "recipe.yaml", "-o", out)
    assert refused.code == 2 and "exists; remove it" in refused.said[0]


def test_what_a_users_code_prints_does_not_reach_stdout(inside, edgeml, tmp_path):
    args = ("compress", "net.onnx", "--task", "task.py:Good", *SHORT)
    run = edgeml(*args, "-o", tmp_path / "out", "--json", "-")
    assert run.code == 0
    table = json.loads(run.stdout)
    assert table["primary"] == "right" and table["rows"][0]["shipped"]


def test_json_goes_to_a_file_beside_the_table(inside, edgeml, tmp_path):
    args = ("compress", "net.onnx", "--data", "npz:good.npz", *SHORT, "-o", tmp_path / "out")
    run = edgeml(*args, "--json", tmp_path / "result.json")
    assert "← shipped" in run.stdout
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert {row["id"] for row in rows} >= {"onnxruntime-fp32"}


def test_a_missed_budget_keeps_the_nearest_and_exits_3(inside, edgeml, tmp_path):
    args = ("--runtime", "onnxruntime", "--int8", "--max-drop", "0", "--strict")
    run = edgeml("compress", "net.onnx", "--data", "npz:good.npz", *args, "-o", tmp_path / "out")
    assert run.code == 3 and run.said == []
    assert "budget missed" in run.stdout
    assert open_bundle(tmp_path / "out").manifest.shipped


def test_skipped_samples_are_counted_and_folded_preprocessing_runs(inside, edgeml, tmp_path):
    how = ("--resize", 16, "--crop", 16, "--fold-preprocess", "--on-bad-sample", "skip")
    args = ("compress", "net.onnx", "--data", "imagefolder:damaged", *how, *SHORT)
    run = edgeml(*args, "-o", tmp_path / "out", "--json", "-")
    assert run.code == 0, run.said
    assert "samples left out: 2 unreadable" in json.loads(run.stdout)["warnings"]
    manifest = open_bundle(tmp_path / "out").manifest
    assert manifest.inputs[0]["dtype"] == "uint8"


def test_calibrating_on_noise_marks_the_result(inside, edgeml, tmp_path):
    args = (
        "compress",
        "net.onnx",
        "--allow-random-calibration",
        "--runtime",
        "onnxruntime",
        "--int8",
    )
    run = edgeml(*args, "-o", tmp_path / "out")
    assert run.code == 0, run.said
    assert "random calibration" in run.stdout and "not measured" in run.stdout
    recipe = open_bundle(tmp_path / "out").manifest.recipe
    assert recipe["steps"][0]["random_calibration"] is True


def test_images_without_labels_are_judged_by_agreement(inside, edgeml, tmp_path):
    args = ("compress", "net.onnx", "--data", "images:photos", "--resize", 16, "--crop", 16, *SHORT)
    run = edgeml(*args, "-o", tmp_path / "out")
    assert run.code == 0, run.said
    assert any("has no labels" in line for line in run.progress)
    assert "agreement" in run.stdout


def test_a_network_of_a_fixed_batch_is_calibrated_in_batches(inside, edgeml, tmp_path):
    args = ("compress", "batch8.onnx", "--data", "npz:good.npz", "--batch", 8, *SHORT)
    run = edgeml(*args, "-o", tmp_path / "out", "--json", "-")
    assert run.code == 0, run.said
    rows = json.loads(run.stdout)["rows"]
    assert {row["status"] for row in rows} <= {"measured", "reference", "screened"}, rows


def test_an_operator_that_one_runtime_lacks_costs_its_rows_only(inside, edgeml, tmp_path):
    args = ("compress", "unpool.onnx", "--data", "npz:good.npz", "--max-drop", 60)
    run = edgeml(*args, "-o", tmp_path / "out", "--json", "-")
    assert run.code == 0, run.said
    rows = {row["id"]: row for row in json.loads(run.stdout)["rows"]}
    assert rows["openvino-fp32"]["status"] == "failed"
    assert "operations: MaxUnpool" in rows["openvino-fp32"]["reason"]
    assert any(row["shipped"] and row["runtime"] == "onnxruntime" for row in rows.values())


def test_the_plan_runs_nothing_and_names_what_is_missing(inside, edgeml):
    run = edgeml("compress", "net.py:raises", "--data", "npz:gone.npz", "--int8", "--plan")
    assert run.code == 0 and run.said == [] and run.progress == []
    assert run.stdout.splitlines()[0].startswith("export      torch → ONNX")
    assert run.stdout.splitlines()[-1] == "MISSING     data: nothing at gone.npz"
