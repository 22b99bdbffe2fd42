"""The verdict on a device's engine: built anew there several times, each build timed beside plain INT8's."""

from __future__ import annotations

from typing import Any

from ..errors import BuildError
from ..runtime.remote_bench import RemoteMeter
from .budget_parts import median_ratio
from .build_engines import Trial
from .job import Job, batched
from .stages import Stages
from .target_times import content_of, model_to_time

# The fewest of which a bound can be told that is worth the device's minutes. None is the plan of the bench, which
# was chosen because it was fast.
BUILDS = 3
LEAST_BUILDS = 2
BUILD_SECONDS = 1.0


def measure_builds_on_device(
    job: Job, baseline: Trial | None, shipped: Trial, meter: RemoteMeter, stages: Stages
) -> tuple[dict[str, list[float]], list[str]]:
    """As `budget_parts.measure_builds`, on the device: a plan of its own, a process of its own and interleaved
    blocks for each build of the pair.

    Args:
        baseline: what percentages are of; None where there are none, or it is what ships.

    Returns:
        p50 and p99 in ms and as ratios, a value a build, and the device's warnings, a build that failed among
        them.

    Raises:
        BuildError: fewer than `LEAST_BUILDS` ran; a resumed run tries those that failed again.
        DeviceError: the link is lost.
    """
    pair = {"shipped": shipped} | ({"baseline": baseline} if baseline else {})
    models = {name: model_to_time(t.file, t.row) for name, t in pair.items() if t.file}
    feed, seed = batched(job.sample, job.recipe.batch), job.recipe.seed
    device = str(meter.describe()["device"])

    def build(number: int) -> dict[str, Any]:
        # trtexec times one engine after the other: a device that warms favours none by its place.
        order = reversed(models.items()) if number % 2 else models.items()
        found = meter.bench(
            dict(order), feed, duration_s=BUILD_SECONDS, seed=seed + number, build=number + 1
        )
        for why in found.failed.values():
            raise BuildError(why)
        own = found["shipped"]
        values = {"p50": own.p50_ms.value, "p99": own.p99_ms.value}
        if baseline is not None:
            values["p50 ratio"] = median_ratio(own, found["baseline"])
            values["p99 ratio"] = own.p99_ms.value / found["baseline"].p99_ms.value
        return {"values": values, "warnings": list(found.warnings)}

    values: dict[str, list[float]] = {"p50": [], "p99": [], "p50 ratio": [], "p99 ratio": []}
    warnings: list[str] = []
    for number in range(BUILDS):
        key = {
            "run": stages.run_id,
            "device": meter.state(),
            "engines": {name: content_of(model) for name, model in models.items()},
            "build": number,
            "seconds": BUILD_SECONDS,
        }
        line = f"build {number + 1} of {BUILDS} for the verdict on {device}"
        try:
            found = stages.values("device-build", key, line, lambda n=number: build(n))
        except BuildError as e:
            warnings.append(f"{line}: {e}")
            continue
        warnings += found["warnings"]
        for name, value in found["values"].items():
            values[name].append(value)
    if len(values["p50"]) < LEAST_BUILDS:
        raise BuildError(f"no bound can be told of {len(values['p50'])} builds: {warnings[-1]}")
    return values, warnings
