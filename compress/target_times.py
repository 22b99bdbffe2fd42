"""Times of a target's engines, taken on the device itself: `edgeml compress --target ssh://…`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..artifact.budget_limit import PARTS
from ..artifact.content_hash import hash_file
from ..artifact.measurement import Measurement
from ..artifact.recipe import Recipe
from ..artifact.result_row import EngineRow
from ..artifact.target import Target
from ..errors import EdgemlError, InputError
from ..export.model_files import model_files
from ..runtime.remote_bench import ModelFile, RemoteBench, RemoteMeter
from .budget_parts import FIELDS, verdict_row
from .build_engines import Trial, fail
from .candidates import Candidate
from .job import Job, batched
from .stages import Stages

SECONDS = 2.0
TIMES = ("latency_p50_ms", "latency_p90_ms", "latency_p99_ms")


def refuse_for_device(recipe: Recipe) -> None:
    """Say before any work which parts of the budget a device does not measure within `compress`.

    Raises:
        InputError: energy.
    """
    if recipe.max_energy is not None:
        raise InputError(
            f"--max-energy {recipe.max_energy}: compress measures no energy on a device; edgeml deploy does"
        )


def time_on_device(
    job: Job, trials: list[Trial], target: Target, meter: RemoteMeter, stages: Stages
) -> list[str]:
    """Build and time every engine that is left, in interleaved blocks there; rows get their latency.

    Args:
        trials: engines that the device does not build or run become failed rows with its reason.

    A resumed run takes its times from the cache where files and the device's state are the same.

    Returns:
        Warnings of the device.

    Raises:
        EdgemlError: the link is lost, or not one engine runs there.
    """
    device = str(meter.describe()["device"])
    timed = {
        trial.row.id: trial
        for trial in trials
        if trial.file is not None
        and trial.file.suffix == ".onnx"
        and trial.row.status in ("measured", "reference")
        and trial.row.runtime in target.runtimes
    }
    models = {
        name: model_to_time(trial.file, trial.row) for name, trial in timed.items() if trial.file
    }
    if not models:
        return []
    feed = batched(job.sample, job.recipe.batch)
    seed = job.recipe.seed

    def measure() -> dict[str, Any]:
        return _plain(meter.bench(models, feed, duration_s=SECONDS, seed=seed))

    # Keyed by the run too, as every timing: a resumed run has its own times, never another run's.
    key = {
        "run": stages.run_id,
        "device": meter.state(),
        "engines": {name: content_of(model) for name, model in models.items()},
        "inputs": {name: [list(array.shape), str(array.dtype)] for name, array in feed.items()},
        "seconds": SECONDS,
        "seed": seed,
    }
    line = f"building and timing {len(models)} engines on {device}"
    made: list[bool] = []
    found = stages.values("device-times", key, line, lambda: made.append(True) or measure())
    if found["failed"] and not made:  # it may have been for want of memory: tried again
        stages.log(line)
        found = measure()
    for name, reason in found["failed"].items():
        fail(timed[name], f"on {device}: {reason}")
    if not found["times"]:
        raise EdgemlError(
            f"{device} runs none of {len(models)} engines: {next(iter(found['failed'].values()))}"
        )
    for name, values in found["times"].items():
        row = timed[name].row
        for part in TIMES:
            setattr(row, part, Measurement.model_validate(values[part]))
        # Of the plan, which a limit is about: the graph may be twice as large.
        row.size_bytes = found["sizes"].get(name, row.size_bytes)
    return list(found["warnings"])


def parts_on_device(recipe: Recipe, shipped: Trial, baseline: Trial | None) -> list[dict[str, Any]]:
    """A row a limit, as `budget_parts.judge_parts` gives them, from the one bench there: the bound is the upper
    end of the p50's interval, of a percentage over the lower end of plain INT8's."""
    rows = []
    for part in PARTS:
        limit = recipe.limit(part)
        if limit is None:
            continue
        value, _, bound = _interval(shipped.row, part)
        if limit.relative and shipped is baseline:
            value = bound = 1.0
        elif limit.relative and baseline is not None:
            base, low, _ = _interval(baseline.row, part)
            value, bound = value / base, bound / low
        rows.append(verdict_row(part, limit, value, bound))
    return rows


def _interval(row: EngineRow, part: str) -> tuple[float, float, float]:
    """Value, lower and upper end; infinite where it was not measured."""
    if part == "max_size":
        return (float(row.size_bytes or math.inf),) * 3
    measured = getattr(row, FIELDS[part])
    if measured is None or measured.value is None:
        return (math.inf,) * 3
    low, high = measured.low or measured.value, measured.high or measured.value
    return measured.value, low, high


def model_to_time(file: Path, kind: EngineRow | Candidate) -> ModelFile:
    """What the device builds an engine from: a file of the kind that a row or a candidate tells."""
    return ModelFile(tuple(model_files(file)), kind.runtime, kind.precision, kind.execution)


def content_of(model: ModelFile) -> list[str]:
    """What stands for it in the key of a stage."""
    return [model.runtime, model.precision, model.execution, *map(hash_file, model.files)]


def _plain(found: RemoteBench) -> dict[str, Any]:
    """What of a bench becomes rows, as JSON."""
    times = {
        name: {
            part: measured.model_dump(mode="json")
            for part, measured in zip(TIMES, (t.p50_ms, t.p90_ms, t.p99_ms), strict=True)
        }
        for name, t in found.timings.items()
    }
    return {
        "times": times,
        "failed": found.failed,
        "sizes": found.sizes,
        "warnings": list(found.warnings),
    }
