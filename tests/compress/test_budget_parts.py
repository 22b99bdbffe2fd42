"""The budget's limits on the engine: bounds over builds, verdicts, and energy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from edgeml.artifact.recipe import build_recipe
from edgeml.artifact.stage_cache import StageCache
from edgeml.compress.budget_parts import judge_parts, parts_line, upper_bound
from edgeml.compress.run_recipe import run_recipe
from edgeml.errors import InputError
from edgeml.runtime.engine import EngineOptions


def recipe_of(**limits):
    steps = [{"step": "prune"}, {"step": "finetune"}, {"step": "quantize"}]
    return build_recipe({"model": "net.py:build", "data": "digits", "steps": steps, **limits})


def test_energy_without_a_meter_is_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="--max-energy 5mJ: energy cannot be measured here"):
        run_recipe(recipe_of(max_energy="5mJ"), tmp_path / "out")


def test_energy_is_judged_where_there_is_a_meter(tmp_path, monkeypatch):
    from edgeml.artifact.result_row import EngineRow
    from edgeml.artifact.work_directory import WorkDirectory
    from edgeml.compress.budget_parts import Baseline, measure_energy_of
    from edgeml.compress.stages import Stages
    from edgeml.compress.steer_run import goal_of
    from edgeml.runtime import bench_energy
    from edgeml.runtime.energy.meter import EnergyReading

    def reading(mj):
        fields = {
            "gross_mj": mj,
            "gross_mj_low": mj - 0.1,
            "gross_mj_high": mj + 0.1,
            "windows": 5,
            "window_s": 10.0,
            "net_mj": mj - 1,
        }
        return lambda *a, **n: EnergyReading("x", "counter", "cpu", "hardware", [], [], **fields)

    def trial(name):
        row = EngineRow(id=name, runtime="null", precision="int8", size_bytes=1)
        engine = SimpleNamespace(device="cpu")
        return SimpleNamespace(row=row, engine=engine, file=tmp_path / name / "model.xml")

    recipe = recipe_of(max_energy="60%")
    job = SimpleNamespace(
        recipe=recipe, sample={"x": np.zeros(1)}, options=EngineOptions(), onnx=None
    )
    baseline, shipped = trial("baseline"), trial("shipped")
    with WorkDirectory(tmp_path / "out", "energy") as work:
        stages = Stages(StageCache(tmp_path / "cache"), work, lambda line: None, None)
        for one, mj in ((baseline, 10.0), (shipped, 5.5)):
            monkeypatch.setattr(bench_energy, "measure_energy", reading(mj))
            measure_energy_of(job, one, stages)
    assert goal_of(recipe, baseline).ratio == pytest.approx(0.6)
    (part,) = judge_parts(recipe, shipped, Baseline(baseline.row), {})
    assert part["verdict"] == "proven" and part["value"] == pytest.approx(0.55)
    assert "energy 55 % of plain INT8" in parts_line([part])


def test_a_bound_widens_with_what_builds_differ_by():
    assert upper_bound([0.5] * 5) == pytest.approx(0.5)
    assert 0.5 < upper_bound([0.49, 0.5, 0.51]) < upper_bound([0.45, 0.5, 0.55])


def test_parts_are_proven_plausible_or_missed():
    recipe = recipe_of(latency="60%", max_size="1KB")

    class Row:
        size_bytes = 2000

    class Trial:
        row = Row()

    def verdicts(ratios):
        rows = judge_parts(recipe, Trial, None, {"p50": [1.0] * 3, "p50 ratio": ratios})
        assert "size 2,000 bytes (at most 1KB): missed" in parts_line(rows)
        return [row["verdict"] for row in rows]

    assert verdicts([0.5, 0.51, 0.5]) == ["proven", "missed"]
    assert verdicts([0.57, 0.62, 0.58]) == ["plausible", "missed"]
    assert verdicts([0.61, 0.62, 0.63]) == ["missed", "missed"]
