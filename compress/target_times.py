"""Times of a target's engines, taken on the device itself: `edgeml compress --target ssh://…`."""

from __future__ import annotations

from ..artifact.measurement import Measurement
from ..artifact.recipe import Recipe
from ..artifact.target import Target
from ..errors import EdgemlError, InputError
from ..export.model_files import model_files
from ..runtime.remote_bench import ModelFile, RemoteMeter
from .build_engines import Trial, fail
from .job import Job, batched
from .stages import Stages

SECONDS = 2.0
# An engine that the device has to build first; its own bound is the meter's.
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
    stages.log(f"building and timing {len(models)} engines on {device}")
    feed = batched(job.sample, job.recipe.batch)
    found = meter.bench(models, feed, duration_s=SECONDS, seed=job.recipe.seed)
    for name, reason in found.failed.items():
        fail(timed[name], f"on {device}: {reason}")
    if not found.timings:
        raise EdgemlError(
            f"{device} runs none of {len(models)} engines: {next(iter(found.failed.values()))}"
        )
    for name, timing in found.timings.items():
        row = timed[name].row
        values: tuple[Measurement, ...] = (timing.p50_ms, timing.p90_ms, timing.p99_ms)
        for part, measured in zip(PARTS, values, strict=True):
            setattr(row, part, measured)
        # Of the plan, which a limit is about: the graph may be twice as large.
        row.size_bytes = found.sizes.get(name, row.size_bytes)
    return list(found.warnings)
