"""Example 3: from data to an engine, through the commands of its README."""

from __future__ import annotations

import json

import pytest


@pytest.mark.slow
def test_the_commands_of_its_readme_train_and_ship_an_int8_engine(run_block, tmp_path):
    cache = str(tmp_path / "cache")
    done = run_block("03_train_and_compress", 0, tmp_path, EDGEML_CACHE=cache)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "digits-run" / "scores.json").read_text())
    assert scores["test"]["accuracy"] > 0.95
    manifest = json.loads((tmp_path / "digits-int8" / "manifest.json").read_text())
    assert "int8" in manifest["shipped"]
    assert "reference inputs, largest difference from the recorded outputs" in done.stdout
