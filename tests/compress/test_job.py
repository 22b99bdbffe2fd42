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
