"""`compress --target ssh://`: the device's own times choose, and its limits decide."""

from __future__ import annotations

import asyncio
import os
import site
from pathlib import Path

import pytest
from edgeml.artifact.recipe import build_recipe
from edgeml.artifact.stage_cache import StageCache
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.compress.run_recipe import run_recipe
from edgeml.deploy.meter import DeviceMeter
from edgeml.errors import InputError


@pytest.fixture
def here(make_device):
    return make_device(
        environment={"PYTHONPATH": os.pathsep.join(site.getsitepackages()), "OMP_NUM_THREADS": "1"}
    )


def _recipe(model: Path, target: str, **flags):
    values = {"model": str(model), "data": "digits", "target": target, "precisions": ["int8"]}
    values |= {"runtimes": ["onnxruntime"], "calibration_samples": 16, "max_drop": 5.0, **flags}
    return build_recipe(recipe_values({}, values))


def test_engines_are_timed_and_judged_on_the_device(
    run_async, serving, here, digits_model: Path, tmp_path: Path, monkeypatch, host_cache: Path
) -> None:
    monkeypatch.setattr("edgeml.compress.target_times.SECONDS", 0.2)

    def compress():
        with DeviceMeter(here.address) as meter:
            good = run_recipe(
                _recipe(digits_model, meter.target, latency="1s"),
                tmp_path / "out",
                cache=StageCache(host_cache),
                meter=meter,
            )
            missed = run_recipe(
                _recipe(digits_model, meter.target, latency="1us"),
                tmp_path / "missed",
                cache=StageCache(host_cache),
                meter=meter,
            )
            return good, missed

    async def go():
        async with serving(here):
            return await asyncio.to_thread(compress)

    good, missed = run_async(go(), 180)
    assert good.exit_code == 0, good.table.verdict_line
    shipped = next(row for row in good.table.rows if row.shipped)
    assert shipped.runtime == "onnxruntime"
    assert shipped.latency_p50_ms.how == "measured"
    assert shipped.latency_p50_ms.value > 0
    assert good.table.machine["device"] == "orin1"
    assert "latency not measured" not in good.table.verdict_line
    assert missed.exit_code == 3
    assert "bench" in here.requests


def test_a_percentage_is_refused_before_any_work(digits_model: Path, tmp_path: Path) -> None:
    recipe = _recipe(digits_model, "arm64", latency="60%")
    with pytest.raises(InputError, match="give a limit with its unit"):
        run_recipe(recipe, tmp_path / "out", meter=object())
