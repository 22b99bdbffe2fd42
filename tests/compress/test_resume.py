"""A run that was killed and whose files changed before it went on shows nothing of the old ones."""

from __future__ import annotations

import onnx
import pytest
from edgeml.artifact.recipe import build_recipe
from edgeml.compress import run_recipe as whole
from onnx import numpy_helper

TASK = """
import numpy as np

class Task:
    primary, lower_is_better, points_per_unit = "distance", True, 1
    def samples(self, split):
        rng = np.random.default_rng(["train", "validation", "test"].index(split))
        for _ in range(12):
            yield {"x": rng.standard_normal((3, 16, 16)).astype(np.float32)}, np.zeros(4)
    def score(self, outputs, targets):
        return {"distance": SCALE * float(np.mean([np.abs(o["y"]).mean() for o in outputs]))}
"""


@pytest.fixture
def resumed(tmp_path, cache, monkeypatch):
    """A function: run the recipe until all is measured, change a file, run it to its end."""

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    def run(change, **fields):
        fields = {"precisions": ["fp32"], "runtimes": ["onnxruntime"], **fields}
        recipe, lines = build_recipe({"max_drop_points": 50, **fields}), []
        with monkeypatch.context() as patch:
            patch.setattr(whole, "write_bundle", killed)
            with pytest.raises(KeyboardInterrupt):
                whole.run_recipe(recipe, tmp_path / "out", cache=cache)
        change()
        result = whole.run_recipe(recipe, tmp_path / "out", log=lines.append, cache=cache)
        return result.table, lines

    return run


def test_an_unchanged_run_takes_all_from_the_cache(resumed, small):
    table, lines = resumed(lambda: None, **small)
    assert sum("from the cache" in line for line in lines) >= 4
    assert table.final["reads"] == 1


def test_another_network_under_the_same_name_is_timed_and_tested_itself(resumed, small, tmp_path):
    file = tmp_path / "net.onnx"
    model = onnx.load(small["model"])
    onnx.save(model, file)

    def turn_the_head_round():
        head = next(t for t in model.graph.initializer if t.name == "w3")
        head.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(head), "w3"))
        onnx.save(model, file)

    table, lines = resumed(turn_the_head_round, model=str(file), data=small["data"])
    assert not any("from the cache" in line for line in lines)
    assert table.final["reference"]["metrics"]["accuracy"]["value"] < 0.5
    assert table.final["reads"] == 2  # and the manifest says so


def test_a_task_that_was_edited_scores_anew(resumed, small, tmp_path):
    file = tmp_path / "task.py"
    file.write_text(TASK.replace("SCALE", "1"))
    table, _ = resumed(
        lambda: file.write_text(TASK.replace("SCALE", "1000")),
        model=small["model"],
        task=f"{file}:Task",
    )
    (reference,) = (row for row in table.rows if row.status == "reference")
    assert reference.metrics["distance"].value > 100
    assert table.final["reference"]["metrics"]["distance"]["value"] > 100
