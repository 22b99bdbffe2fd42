"""The layers of the engine that ships: which really ran, in what type, and for how long."""

from __future__ import annotations

import statistics
from typing import Any

from ..artifact.machine_lock import machine_lock
from ..errors import one_line
from .build_engines import Trial
from .job import Job, batched
from .stages import Stages

# Profiles, of which a layer's median counts: OpenVINO gives whole microseconds.
PROFILES = 3


def layer_rows(job: Job, trial: Trial, stages: Stages) -> list[dict[str, Any]]:
    """Every layer that the engine's own profile names, in the order they run.

    Returns:
        ``name``, ``kind`` (the runtime's word), ``executed`` (the type its kernel computed in, the
        runtime's word), ``precision`` (the same in ours, null without arithmetic), ``time_ms`` (median
        of `PROFILES` profiles of one inference), ``macs``. Empty where the runtime gives no profile.
    """
    if trial.engine is None:
        return []
    try:
        with machine_lock("the layers' profile"):
            profiles = [
                trial.engine.profile(batched(job.sample, job.recipe.batch)) for _ in range(PROFILES)
            ]
    except Exception as e:  # a profile is a look on top; without it nothing else is lost
        stages.log(f"no profile of the layers: {one_line(e)}")
        return []
    times: dict[str, list[float]] = {}
    for profile in profiles:
        for layer in profile:
            times.setdefault(layer.name, []).append(layer.time_ms)
    return [
        {
            "name": layer.name,
            "kind": layer.kind,
            "executed": layer.executed,
            "precision": layer.precision,
            "time_ms": statistics.median(times[layer.name]),
            "macs": layer.macs,
        }
        for layer in profiles[-1]
    ]
