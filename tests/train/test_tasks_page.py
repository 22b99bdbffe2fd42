"""docs/tasks.md: its code runs as it stands, and its numbers are those of the code."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from edgeml.cli import main
from edgeml.runtime.engine import EngineOptions, load_file
from edgeml.train import paired_interval
from edgeml.train.data_source import open_source
from edgeml.train.task import Task

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
BLOCKS = {
    re.match(r"# (\w+\.py)", block)[1]: block
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.M | re.S)
}


@pytest.fixture
def folder(tmp_path, monkeypatch, conv_onnx):
    """The page's files, a network, and readings that are its own answers with some noise."""
    for name, block in BLOCKS.items():
        (tmp_path / name).write_text(block)
    (tmp_path / "gauge.onnx").write_bytes(conv_onnx.read_bytes())
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(460, 3, 16, 16)) + rng.normal(size=(460, 3, 1, 1))).astype(np.float32)
    with load_file(conv_onnx, "onnxruntime", EngineOptions(batch=460)) as engine:
        bar = engine.run({"x": x})["y"][:, 0]
    np.savez(tmp_path / "gauges.npz", x=x, bar=bar + rng.normal(0, 0.2, 460))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_minimal_task_is_short_and_compresses_to_a_verdict(folder, capsys, monkeypatch):
    monkeypatch.setattr("edgeml.compress.search.SCREEN_SECONDS", 0.05)
    monkeypatch.setattr("edgeml.compress.search.BENCH_SECONDS", 0.1)
    monkeypatch.setattr("edgeml.runtime.latency.BLOCK_S", 0.006)
    lines = [line for line in BLOCKS["gauge_task.py"].splitlines() if line and line[0] != "#"]
    assert len(lines) <= 15
    (command,) = re.findall(r"^edgeml (compress gauge\.onnx .*)$", PAGE, flags=re.M)
    one = ["--runtime", "onnxruntime", "--route", "onnxruntime", "--json", "result.json"]
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), *one])
    assert stopped.value.code == 0
    table = capsys.readouterr().out
    assert "error_bar: lower is better; a negative change is worse" in table
    assert re.search(r"^test \(n = 200, read once\): .* (proven|plausible)$", table, re.M)
    assert "%" not in table.splitlines()[1].replace("95 %", "")  # bar, no percentage

    result = json.loads((folder / "result.json").read_text())
    assert result["points_per_unit"] == 1
    (shipped,) = [row for row in result["rows"] if row["shipped"]]
    (reference,) = [row for row in result["rows"] if row["status"] == "reference"]
    assert reference["metrics"]["error_bar"]["value"] == pytest.approx(0.16, abs=0.03)
    assert shipped["drop_points"]["value"] == pytest.approx(
        shipped["metrics"]["error_bar"]["value"] - reference["metrics"]["error_bar"]["value"]
    )


def test_the_factory_gives_a_source(folder):
    source = open_source("blobs.py:samples")
    assert len(source) == 500 and source.read(0).shape == (3, 16, 16)
    assert [source.splits.count(name) for name in ("train", "validation", "test")] == [
        100,
        200,
        200,
    ]


def test_looking_at_outputs_shows_readings_near_their_targets(folder, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "gauge_task", raising=False)
    runpy.run_path("look.py")
    rows = [[float(word) for word in line.split()] for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 5
    for reading, true, error in rows:
        assert error == pytest.approx(abs(reading - true), abs=1e-4) and error < 1


def test_the_table_of_members_is_the_contract():
    told = set(re.findall(r"^\| `(\w+)", PAGE, flags=re.M)) - {"per_sample of"}
    documented = set(re.findall(r"^\s*``(\w+)", Task.__doc__, flags=re.M))
    required = {"samples", "score", "primary", "lower_is_better"}
    assert told == documented | required


def test_the_numbers_of_the_bootstrap_are_those_of_the_code():
    assert f"up to {paired_interval.RESAMPLES:,} sets" in PAGE
    assert f"not before {paired_interval.LEAST_RESAMPLES} sets" in PAGE
