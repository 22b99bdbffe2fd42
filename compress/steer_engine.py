"""The real engine of a pruned network, and its time against the plain INT8 engine of the original."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from ..artifact.content_hash import hash_json
from ..artifact.machine_lock import machine_lock
from ..errors import EdgemlError
from .budget_parts import bench_build, median_ratio
from .build_engines import Trial, build
from .candidates import Candidate
from .job import Job, batched, student_job
from .stages import Stages

# Seconds an engine and build: at 2 ms an inference still 180 calls, in the fewest blocks that `bench` takes.
MEASURE_SECONDS = 0.36
# Of the structure that is settled on, and of the baseline each time anew: builds of one file differ by
# 2 %, which is all the margin that the verdict leaves.
SETTLING_BUILDS = 3
# A structure is timed, not scored: its ranges may be rough.
CALIBRATION_SAMPLES = 16


@dataclass(frozen=True)
class Measured:
    """One engine that was built and timed.

    Attributes:
        ratio: its p50 / that of the plain INT8 engine, the geometric mean over builds.
        size_bytes: of its files.
        warnings: what disturbed the timing.
    """

    ratio: float
    size_bytes: int
    warnings: tuple[str, ...] = ()


class Meter(Protocol):
    """What steering asks: it never knows where engines are built and timed.

    Attributes:
        is_baseline: what is built is of the baseline's kind, so that of the whole network its time is known.
        key: what is built, how and where, for the keys of stages.
        baseline_ms, baseline_bytes: p50 and size of the original's plain INT8 engine.
    """

    is_baseline: bool
    key: dict[str, Any]
    baseline_ms: float
    baseline_bytes: int

    def measure(self, module: Any, identity: dict[str, Any], builds: int = 1) -> Measured:
        """Build and time a pruned network; see `EngineMeter.measure`."""
        ...


class EngineMeter:
    """Builds pruned networks as they would ship and times them here against the baseline.

    Args:
        job: of the original network.
        baseline: its plain INT8 engine, loaded and timed by the run.
        candidate: route, runtime and types of the engines that are built.
    """

    def __init__(self, job: Job, baseline: Trial, candidate: Candidate, stages: Stages) -> None:
        self._job = roughly_calibrated(job)
        self._baseline, self._candidate, self._stages = baseline, candidate, stages
        self.is_baseline = candidate == baseline.candidate
        self.key = {"candidate": candidate.id, "options": asdict(job.options)}
        # The baseline's p50 and size, as the run's first bench has them.
        self.baseline_ms = float(baseline.row.latency_p50_ms.value)
        self.baseline_bytes = int(baseline.row.size_bytes or 0)

    def measure(self, module: Any, identity: dict[str, Any], builds: int = 1) -> Measured:
        """Export, quantize, load and time a network.

        Args:
            module: the pruned torch module; its weights need not be trained, they change no time.
            identity: stands for structure and weights.
            builds: how often it and the baseline are compiled and timed.

        Raises:
            EdgemlError: it cannot be built; the message says why.
        """
        quiet = self._stages.unbounded().quiet()  # no structure is found without its engines
        student = student_job(self._job, module, hash_json(identity), quiet)
        (trial,) = build(student, [self._candidate], quiet)
        if trial.engine is None:
            raise EdgemlError(f"the pruned network's engine was not built: {trial.row.reason}")
        pair = {"pruned": trial, "baseline": self._baseline}
        feed, logs = batched(self._job.sample, self._job.recipe.batch), []
        with contextlib.closing(trial.engine), machine_lock("timing", self._stages.log):
            for number in range(builds):
                result = bench_build(pair, feed, MEASURE_SECONDS, self._job.recipe.seed + number)
                logs.append(math.log(median_ratio(result["pruned"], result["baseline"])))
        return Measured(math.exp(sum(logs) / builds), int(trial.row.size_bytes or 0))


def roughly_calibrated(job: Job) -> Job:
    """The job with few calibration samples."""
    steps = tuple(
        step.model_copy(update={"calibration_samples": CALIBRATION_SAMPLES})
        if step.step == "quantize"
        else step
        for step in job.recipe.steps
    )
    return replace(job, recipe=job.recipe.model_copy(update={"steps": steps}))
