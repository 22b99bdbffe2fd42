"""What a run works on is refused before any work where nothing could come of it."""

from __future__ import annotations

import numpy as np
import pytest
from edgeml.artifact.recipe import build_recipe
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.compress.run_recipe import run_recipe
from edgeml.errors import DataError, InputError


def test_data_that_leaves_nothing_to_test_on_is_refused_before_any_work(small, tmp_path, cache):
    np.savez(tmp_path / "one.npz", x=np.zeros((1, 3, 16, 16), np.float32))
    values = {
        "model": small["model"],
        "data": f"npz:{tmp_path / 'one.npz'}",
        "precisions": ["fp32"],
    }
    lines: list[str] = []
    with pytest.raises(DataError, match="too few samples: none is left for test"):
        run_recipe(build_recipe(values), tmp_path / "out", log=lines.append, cache=cache)
    assert lines == []


def test_the_scored_samples_do_not_calibrate():
    flags = {"model": "m.onnx", "data": "digits", "calibration_data": "digits"}
    with pytest.raises(InputError, match="is --data itself"):
        recipe_values({}, flags)


def test_what_a_quantization_has_to_say_is_in_its_row_from_the_cache_too(
    small, tmp_path, fresh_cache, monkeypatch
):
    from edgeml.compress import step

    monkeypatch.setattr(step, "SMALL_BYTES", 0)
    monkeypatch.setattr(step, "SAME_SIZE", 0.0)
    fields = {
        "steps": [{"routes": ["nncf"], "calibration_samples": 20}],
        "precisions": ["int8"],
        "runtimes": ["openvino"],
    }
    for out in ("a", "b"):
        result = run_recipe(build_recipe({**small, **fields}), tmp_path / out, cache=fresh_cache)
        told = [w for row in result.table.rows for w in row.warnings]
        assert any(w.startswith("nncf mixed: the file is ") for w in told)


def test_a_demo_that_could_not_be_written_trains_nothing(tmp_path):
    from edgeml.compress.demo import run_demo

    lines: list[str] = []
    with pytest.raises(InputError, match="does not exist"):
        run_demo(tmp_path / "nowhere" / "deeper" / "out", log=lines.append)
    assert lines == []
