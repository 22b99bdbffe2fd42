"""What the results of a stage depend on, as plain values for its key: a resumed run may find that
the user has changed the model, the task or the machine under the same names since it was killed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..artifact.machine import describe_machine
from .build_engines import Trial
from .job import Job
from .stages import Stages


def engines_key(job: Job, trials: list[Trial]) -> dict[str, Any]:
    """Row ids with the content of the engines' files, and how they are compiled."""
    return {
        "engines": [(t.row.id, _content(job, t)) for t in trials],
        "options": asdict(job.options),
    }


def data_key(job: Job, stages: Stages) -> str:
    """Stands for what is scored, and how; a user's own task is scored anew by every run."""
    opened = job.opened
    return opened.fingerprint or f"{stages.run_id}:{opened.facts.get('task_sha256')}"


def machine_key() -> dict[str, Any]:
    """The CPU, whose kernels round in their own ways, and the libraries."""
    machine = describe_machine()
    return {name: machine[name] for name in ("cpu", "isa", "tools")}


def _content(job: Job, trial: Trial) -> str:
    if trial.file is None or trial.file == job.onnx:
        return job.onnx_key
    return trial.file.parent.name
