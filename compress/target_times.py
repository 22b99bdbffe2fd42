"""Times of a target's engines, taken on the device itself: `edgeml compress --target ssh://…`."""

from __future__ import annotations

from typing import Any

from ..artifact.content_hash import hash_file
from ..artifact.measurement import Measurement
from ..artifact.recipe import Recipe
from ..artifact.target import Target
from ..errors import EdgemlError, InputError
from ..export.model_files import model_files
from ..runtime.remote_bench import ModelFile, RemoteBench, RemoteMeter
from .build_engines import Trial, fail
from .job import Job, batched
from .stages import Stages

SECONDS = 2.0
PARTS = ("latency_p50_ms", "latency_p90_ms", "latency_p99_ms")


def refuse_for_device(recipe: Recipe) -> None:
    """Say before any work which parts of the budget a device does not measure within `compress`.

    Raises:
        InputError: a percentage, energy, or pruning by a latency table.
    """
    for part in ("latency", "latency_p99", "max_size"):
        limit = recipe.limit(part)
        if limit is not None and limit.relative:
            raise InputError(
                f"--{part.replace('_', '-')} {limit.text}: on a device give a limit with its unit, as in 5ms"
            )
    for name in ("prune", "finetune"):
        if recipe.step(name):
            raise InputError(
                f"step {name}: it is steered by times of this machine; compress for cpu first, and that "
                "bundle for the device"
            )
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
        name: ModelFile(
            tuple(model_files(trial.file)),
            trial.row.runtime,
            trial.row.precision,
            trial.row.execution,
        )
        for name, trial in timed.items()
        if trial.file is not None
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
        "engines": {
            name: [model.runtime, model.precision, model.execution, *map(hash_file, model.files)]
            for name, model in models.items()
        },
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
        for part in PARTS:
            setattr(row, part, Measurement.model_validate(values[part]))
        # Of the plan, which a limit is about: the graph may be twice as large.
        row.size_bytes = found["sizes"].get(name, row.size_bytes)
    return list(found["warnings"])


def _plain(found: RemoteBench) -> dict[str, Any]:
    """What of a bench becomes rows, as JSON."""
    times = {
        name: {
            part: measured.model_dump(mode="json")
            for part, measured in zip(PARTS, (t.p50_ms, t.p90_ms, t.p99_ms), strict=True)
        }
        for name, t in found.timings.items()
    }
    return {
        "times": times,
        "failed": found.failed,
        "sizes": found.sizes,
        "warnings": list(found.warnings),
    }
