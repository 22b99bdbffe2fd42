"""Example 2: a detector judged by the overlap of its boxes, through the commands of its README."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from edgeml.train.load_task import load_task

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "02_text_detection"


@pytest.fixture
def task(rapidocr, monkeypatch):
    monkeypatch.delitem(sys.modules, "drawn_pages", raising=False)  # it reads the variables once
    monkeypatch.setenv("EXAMPLE_SAMPLES", "30")
    monkeypatch.setenv("EXAMPLE_SIDE", "160")
    return load_task(f"{FOLDER / 'detection_task.py'}:Task")


def test_the_task_file_has_at_most_40_lines():
    assert len((FOLDER / "detection_task.py").read_text().splitlines()) <= 40


def test_pages_are_the_same_every_time_and_in_one_split_only(task):
    splits = {name: list(task.samples(name)) for name in ("train", "validation", "test")}
    pages = [inputs["x"].tobytes() for samples in splits.values() for inputs, _ in samples]
    assert len(pages) == len(set(pages)) == 90
    inputs, boxes = next(task.samples("test"))
    assert np.array_equal(inputs["x"], splits["test"][0][0]["x"]) and boxes == splits["test"][0][1]
    assert inputs["x"].shape == (3, 160, 160) and inputs["x"].dtype == np.float32
    assert all(boxes for samples in splits.values() for _, boxes in samples)


def test_boxes_are_cut_out_of_the_map_and_grown(task):
    seen = np.zeros((1, 64, 64), np.float32)
    seen[0, 10:14, 5:25] = seen[0, 10:14, 40:60] = seen[0, 40:44, 5:25] = 0.9
    grown = 20 * 4 * 1.6 / 48
    boxes = task.decode({"sigmoid": seen})
    corners = [(5, 10), (5, 40), (40, 10)]
    assert np.array([box[:2] for box in sorted(boxes)]) + grown == pytest.approx(np.array(corners))
    assert task.decode({"sigmoid": np.zeros((1, 64, 64), np.float32)}) == []


def test_the_score_is_the_mean_over_pages_and_counts_boxes_too_many(task):
    box, half, far = (0, 0, 10, 10), (0, 0, 10, 5), (50, 50, 60, 60)
    values = [task.per_sample(found, [box]) for found in ([box], [half], [box, far], [far], [])]
    assert values == [1, 0.5, 0.5, 0, 0]
    score = task.score([[box], [half], []], [[box]] * 3)
    assert score == {"IoU": pytest.approx(0.5), "pages below 0.5": pytest.approx(1 / 3)}


def test_the_quick_command_of_the_readme_keeps_its_budget(rapidocr, run_block, tmp_path):
    done = run_block("02_text_detection", 1, tmp_path)
    assert done.returncode == 0, done.stderr
    head = done.stdout.splitlines()[0].split()
    assert head[:2] == ["engine", "IoU"] and "flips" not in head
    assert "lower is better" not in done.stdout
    assert re.search(
        r"^test \(n = 12, read once\): reference IoU .* (proven|plausible)$", *_lines(done)
    )
    assert re.search(r"^ships onnxruntime int8 \(onnxruntime minmax\): the only one", *_lines(done))

    result = json.loads((tmp_path / "det-quick" / "results.json").read_text())
    assert not result["lower_is_better"] and result["settings"]["max_drop_points"] == 8
    (shipped,) = [row for row in result["rows"] if row["shipped"]]
    assert shipped["metrics"]["IoU"]["low"] < shipped["metrics"]["IoU"]["value"]
    assert "pages below 0.5" in shipped["metrics"]
    assert shipped["change_points"]["method"] == "paired t, skewness-corrected"
    assert shipped["verdict"] in ("proven", "plausible") and shipped["flips"] is None


@pytest.mark.slow  # six INT8 engines and three of floats: 128 s on two busy cores
def test_the_readme_ships_an_int8_engine(rapidocr, run_block, tmp_path):
    small = {"EXAMPLE_SAMPLES": "30", "EXAMPLE_SIDE": "160"}
    done = run_block("02_text_detection", 0, tmp_path, **small)
    assert done.returncode == 0, done.stderr
    assert "largest difference from the recorded outputs: 0" in done.stdout
    assert re.search(r"^ships openvino int8", *_lines(done))
    result = json.loads((tmp_path / "det-out" / "results.json").read_text())
    (shipped,) = [row for row in result["rows"] if row["shipped"]]
    assert shipped["precision"] == "int8" and shipped["verdict"] in ("proven", "plausible")
    assert result["final"]["n"] == 30


def _lines(done):
    """The output and the flag that makes ^ and $ match at its lines."""
    return done.stdout, re.M
