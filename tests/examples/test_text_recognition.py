"""Example 1: a recogniser judged by its character error rate, through the commands of its README."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from edgeml.cli import main
from edgeml.errors import TaskError
from edgeml.train.load_task import load_task

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "01_text_recognition"
TASK = f"{FOLDER / 'ocr_task.py'}:Task"


@pytest.fixture
def task(rapidocr, monkeypatch):
    monkeypatch.delitem(sys.modules, "drawn_lines", raising=False)  # it reads the variable once
    monkeypatch.setenv("EXAMPLE_SAMPLES", "40")
    return load_task(TASK)


def test_the_task_file_has_at_most_40_lines():
    assert len((FOLDER / "ocr_task.py").read_text().splitlines()) <= 40


def test_samples_are_the_same_every_time_and_in_one_split_only(task):
    splits = {name: list(task.samples(name)) for name in ("train", "validation", "test")}
    texts = [text for samples in splits.values() for _, text in samples]
    assert len(texts) == len(set(texts)) >= 120
    again = list(task.samples("test"))
    assert [text for _, text in again] == [text for _, text in splits["test"]]
    assert np.array_equal(again[3][0]["x"], splits["test"][3][0]["x"])
    inputs, _ = again[0]
    assert inputs["x"].shape == (3, 48, 320) and inputs["x"].dtype == np.float32


def test_decoding_drops_blanks_and_repetitions(task):
    characters = sys.modules[type(task).__module__].CHARACTERS
    steps = ["", "A", "A", "", "A", "B", "B", " ", ""]
    scores = np.zeros((len(steps), len(characters)), np.float32)
    scores[np.arange(len(steps)), [characters.index(step) for step in steps]] = 1
    assert task.decode({"softmax": scores}) == "AAB"


def test_the_error_rate_counts_edits_over_characters(task):
    assert task.score(["ABC", "AXC", "AB", "ABCD"], ["ABC"] * 4) == {"CER": 3 / 12}
    assert not task.score(["ABC"], ["ABC"])["CER"]


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TaskError, match="rapidocr-onnxruntime is missing"):
        load_task(TASK)


def test_a_missed_budget_exits_3_and_keeps_the_nearest(rapidocr, run_block, tmp_path):
    done = run_block("01_text_recognition", 1, tmp_path)
    assert done.returncode == 3, done.stderr
    head = done.stdout.splitlines()[0].split()
    assert head[:2] == ["engine", "CER"] and "flips" in head
    missed = (
        r"^budget missed: none of \d+ keeps the drop below 1\.0 points; nearest is onnxruntime int8"
    )
    assert re.search(missed, done.stdout, re.M)
    assert "CER: lower is better; a negative change is worse" in done.stdout

    result = json.loads((tmp_path / "ocr-missed" / "results.json").read_text())
    assert result["lower_is_better"] and result["primary"] == "CER"
    (row,) = [row for row in result["rows"] if (row["mark"] or "").startswith("nearest")]
    (reference,) = [row for row in result["rows"] if row["status"] == "reference"]
    worse = row["metrics"]["CER"]["value"] - reference["metrics"]["CER"]["value"]
    assert worse > 0.02
    assert row["drop_points"]["value"] == pytest.approx(100 * worse)
    assert row["change_points"]["value"] == pytest.approx(-100 * worse)
    assert row["change_points"]["low"] < row["change_points"]["value"]
    assert "bootstrap" in row["change_points"]["method"]
    assert row["verdict"] == "missed" and row["flips"]["value"] > 0


@pytest.mark.parametrize(
    ("name", "says"),
    [("Tusk", "has no Tusk, did you mean Task?"), ("MODEL", "has no method samples")],
)
def test_what_is_no_task_exits_2_and_writes_nothing(task, tmp_path, capsys, name, says):
    model = sys.modules[type(task).__module__].MODEL
    arguments = ["compress", str(model), "--task", f"{FOLDER / 'ocr_task.py'}:{name}"]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--int8", "-o", str(tmp_path / "out")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("edgeml: ") and says in error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # six INT8 engines and three of floats: 106 s on two busy cores
def test_the_readme_ships_a_proven_or_plausible_engine(rapidocr, run_block, tmp_path):
    done = run_block("01_text_recognition", 0, tmp_path, EXAMPLE_SAMPLES="30")
    assert done.returncode == 0, done.stderr
    assert "largest difference from the recorded outputs: 0" in done.stdout
    assert re.search(r"^ships openvino int8.*\(nncf (mixed|performance)\): ", done.stdout, re.M)
    result = json.loads((tmp_path / "ocr-out" / "results.json").read_text())
    (shipped,) = [row for row in result["rows"] if row["shipped"]]
    assert shipped["precision"] == "int8" and shipped["verdict"] in ("proven", "plausible")
    assert result["final"]["n"] == 30 and result["final"]["reads"] == 1
    assert result["final"]["engine"]["metrics"]["CER"]["low"] is not None
