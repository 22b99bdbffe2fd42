"""Times of a target's engines, taken on the device itself: `edgeml compress --target ssh://…`."""

from __future__ import annotations

from collections.abc import Callable
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
from .build_engines import Trial, fail
from .candidates import Candidate
from .job import Job, batched
from .stages import Stages

SECONDS = 2.0
TIMES = ("latency_p50_ms", "latency_p90_ms", "latency_p99_ms")


def refuse_for_device(recipe: Recipe, meter: RemoteMeter) -> None:
    """Say before any work which parts of the budget a device does not measure within `compress`.

    Raises:
        InputError: energy; or the device is emulated, and a step or a limit goes by its times.
    """
    if recipe.max_energy is not None:
        raise InputError(
            f"--max-energy {recipe.max_energy}: compress measures no energy on a device; edgeml deploy does"
        )
    told = meter.describe()
    asked = [f"--{part.replace('_', '-')}" for part in PARTS if getattr(recipe, part)]
    asked += [f"step {name}" for name in ("prune", "finetune") if recipe.step(name)]
    if told.get("emulated") and asked:
        raise InputError(
            f"{told['device']} is emulated: its times mean nothing, and nothing is pruned or judged by them; "
            f"leave out {asked[0]}"
        )


def time_on_device(
    job: Job, trials: list[Trial], target: Target, meter: RemoteMeter, stages: Stages
) -> list[str]:
    """Build and time every engine that is left, in interleaved blocks there; rows get their latency.

    Args:
        trials: engines that the device does not build or run become failed rows with its reason.

    A resumed run takes its times from the cache where files and the device's state are the same. Where an engine
    had failed and the run ended at that, all are timed again; a run that went on from those times keeps them,
    because its pruning and training are by them.

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
    found = _last_attempt(stages, key, line, measure)
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


def _last_attempt(
    stages: Stages, key: dict[str, Any], line: str, measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The bench of this run: from the cache, or measured; anew where an engine failed (it may have been for want of
    memory) and nothing was made of the others' times since."""
    name, attempt, now = "device-times", dict(key), []
    while True:
        found = stages.values(name, attempt, line, lambda: now.append(True) or measure())
        following = {**key, "again": attempt.get("again", 0) + 1}
        if now or not found["failed"]:
            return found
        if stages.find(name, following) is None and stages.went_on_after(name, attempt):
            return found
        attempt = following


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
