"""A run on a device: engines are made and scored here, built and timed there, and steered by its times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact.content_hash import hash_json
from ..artifact.target import Target
from ..errors import EdgemlError
from ..runtime.remote_bench import RemoteMeter
from .budget import Budget
from .budget_parts import median_ratio
from .build_engines import Trial, model_file
from .candidates import Candidate
from .device_layer_times import open_device_table
from .job import Job, batched, student_job
from .latency_table import LatencyTable
from .stages import Stages
from .steer_engine import Measured, roughly_calibrated
from .target_candidates import target_candidates, target_version
from .target_search import search_for_target, typed_model
from .target_times import content_of, model_to_time, time_on_device

if TYPE_CHECKING:
    from .prune_groups import Group

# Of a pruned network and of the baseline, in one build each: a build takes a device minutes.
MEASURE_SECONDS = 1.0
# Of the latency table unless --table-time says otherwise; TensorRT takes a minute or two a network on a
# small board [not measured by us].
TABLE_SECONDS = 1800.0


class OnDevice:
    """A `Place`: the device behind `meter`.

    Args:
        target: what the device is.
        table_time_s: bound of the first latency table; None takes `TABLE_SECONDS`.

    Attributes:
        warnings: of the device, over all that was timed.
    """

    def __init__(
        self, target: Target, meter: RemoteMeter, table_time_s: float | None = None
    ) -> None:
        self.target, self.meter = target, meter
        self.warnings: list[str] = []
        self._table_time_s = table_time_s or TABLE_SECONDS

    @property
    def runtime(self) -> str:
        """What builds and times engines there."""
        return "tensorrt" if self.target.by_tensorrt else "onnxruntime"

    def search(
        self, job: Job, stages: Stages, budget: Budget, others: Sequence[Trial] = ()
    ) -> list[Trial]:
        """Every candidate for the target, scored here and timed there."""
        trials = search_for_target(job, self.target, stages, budget, others)
        self.warnings += time_on_device(job, trials, self.target, self.meter, stages)
        return trials

    def engine_meter(
        self, job: Job, baseline: Trial, candidate: Candidate, stages: Stages
    ) -> DeviceEngineMeter:
        """What times a pruned network's engines there."""
        where = {"device": self.meter.state(), "table_time_s": self._table_time_s}
        return DeviceEngineMeter(job, baseline, candidate, stages, self.target, self.meter, where)

    def open_table(
        self,
        job: Job,
        module: Any,
        groups: list[Group],
        times: Mapping[str, float],
        stages: Stages,
    ) -> LatencyTable:
        """The network's latency table there; measured once, later rounds add their own layers' shapes."""
        from .steer_table import layers_and_groups  # it needs torch, as only a run that prunes does

        layers, prunable = layers_and_groups(job, module, groups)
        return open_device_table(
            layers, prunable, self.meter, self.runtime, stages, self._table_time_s, times
        )


class DeviceEngineMeter:
    """A `steer_engine.Meter`: engines of pruned networks are made here, built and timed there.

    Args:
        job: of the original network.
        baseline: its plain INT8 engine, timed there by the run.
        candidate: the kind of engine that is built.
        where: the device's state, for the keys of stages.
    """

    def __init__(
        self,
        job: Job,
        baseline: Trial,
        candidate: Candidate,
        stages: Stages,
        target: Target,
        meter: RemoteMeter,
        where: Mapping[str, Any],
    ) -> None:
        self._job, self._stages, self._target = roughly_calibrated(job), stages, target
        self._meter, self._baseline = meter, model_to_time(baseline.file, baseline.row)
        self._wanted = _made_of_any_network(job, target, candidate)
        self.is_baseline = self._wanted == baseline.candidate.id
        self.key = {"candidate": self._wanted, "options": asdict(job.options), "where": dict(where)}
        self.baseline_ms = float(baseline.row.latency_p50_ms.value)
        self.baseline_bytes = int(baseline.row.size_bytes or 0)

    def measure(self, module: Any, identity: dict[str, Any], builds: int = 1) -> Measured:
        """As `steer_engine.EngineMeter.measure`; a run that was killed times nothing again.

        Args:
            builds: not looked at; see `MEASURE_SECONDS`.

        Raises:
            EdgemlError: it cannot be built; the message says why.
            DeviceError: the link is lost.
        """
        quiet = self._stages.unbounded().quiet()  # no structure is found without its engines
        student = student_job(self._job, module, hash_json(identity), quiet)
        (candidate,) = [c for c in _candidates(student, self._target) if c.id == self._wanted]
        pruned = model_to_time(self._file(student, candidate, quiet), candidate)
        models = {"pruned": pruned, "baseline": self._baseline}
        job = self._job
        feed = batched(job.sample, job.recipe.batch)

        def make() -> dict[str, Any]:
            found = self._meter.bench(
                models, feed, duration_s=MEASURE_SECONDS, seed=job.recipe.seed
            )
            if found.failed:
                name, why = next(iter(found.failed.items()))
                raise EdgemlError(f"the {name} network's engine: {why}")
            ratio = median_ratio(found["pruned"], found["baseline"])
            size = found.sizes.get("pruned")
            return {"ratio": ratio, "size_bytes": size, "warnings": list(found.warnings)}

        key = {
            "run": quiet.run_id,
            "device": self._meter.state(),
            "engines": {name: content_of(model) for name, model in models.items()},
            "seconds": MEASURE_SECONDS,
        }
        found = quiet.values("pruned-on-device", key, "timing a pruned network", make)
        size = found["size_bytes"] or sum(path.stat().st_size for path in pruned.files)
        return Measured(found["ratio"], int(size), tuple(found.get("warnings", ())))

    def _file(self, job: Job, candidate: Candidate, stages: Stages) -> Path:
        version = target_version(job.recipe, self._target)
        if version is None:
            return model_file(job, candidate, stages)[0]
        return typed_model(job, candidate, version, stages)[0]


def _candidates(job: Job, target: Target) -> list[Candidate]:
    """What can be made of this network; ModelOpt's steps hold the torch module that they quantize."""
    words = (job.recipe, target, job.info.op_counts)
    return [
        c for late in (False, True) for c in target_candidates(*words, late, job.module).engines
    ]


def _made_of_any_network(job: Job, target: Target, candidate: Candidate) -> str:
    """The candidate's id, or of one whose layers were chosen for the original network the id of the first
    of its precision: which layers stay in float is told by that network's own names."""
    found = _candidates(job, target)
    if any(c.id == candidate.id for c in found):
        return candidate.id
    like = (candidate.runtime, candidate.precision)
    return next(c.id for c in found if (c.runtime, c.precision) == like)
