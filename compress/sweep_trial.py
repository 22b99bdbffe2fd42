"""One trial of a sweep, in a process of its own: ``python -m edgeml.compress.sweep_trial FOLDER``.

It reads FOLDER/request.json, does its work by the functions that `compress` uses, and leaves
FOLDER/result.json as the last act: rows and bundles of what it measured, or the reason why there is
nothing. Only the last request, of kind ``final``, reads the test split.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..artifact.atomic_file import disk_errors, read_json, write_json
from ..artifact.machine import describe_machine
from ..artifact.machine_lock import machine_lock
from ..artifact.recipe import Recipe, build_recipe
from ..artifact.result_row import ResultTable
from ..artifact.stage_cache import StageCache
from ..artifact.sweep_directory import BUNDLES, REQUEST, RESULT
from ..artifact.work_directory import WorkDirectory
from ..errors import EdgemlError, InputError, ModelError, OutOfReach, one_line
from . import search
from .budget_parts import measure_energy_of
from .build_engines import Trial, build, verify
from .candidates import Candidate, float_candidates, int8_candidates, quantization_steps
from .job import Job, open_job
from .search import measure_speed, open_reference, read_profiles, score
from .stages import Stages
from .steer_engine import EngineMeter
from .steer_run import goal_of, plain_int8
from .sweep_space import Choice
from .sweep_table import OUT_OF_REACH, REFERENCE
from .write_bundle import write_bundle

if TYPE_CHECKING:
    from .steer import Steered

_PR_SET_PDEATHSIG = 1


class Changed(ModelError):
    """The model or the data are others than when the sweep began."""


class SharedWork(WorkDirectory):
    """A trial's own folder with the sweep's run id: finished stages of one trial serve the others."""

    def __init__(self, out: Path, recipe_hash: str, run_id: str) -> None:
        super().__init__(out, recipe_hash)
        self._shared = run_id

    def __enter__(self) -> SharedWork:
        super().__enter__()
        self.run_id = self._shared
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is None:  # all that is worth keeping lies in the cache
            shutil.rmtree(self.part, ignore_errors=True)


@dataclass(frozen=True)
class Opened:
    """What every kind of work begins with.

    Attributes:
        request: as the driver wrote it.
        reference: scored on the first samples only; its engine has the sweep's own thread count.
        samples: that engines are verified on.
    """

    request: dict[str, Any]
    folder: Path
    recipe: Recipe
    job: Job
    stages: Stages
    reference: Trial
    samples: list[dict]


@contextlib.contextmanager
def opened(request: dict[str, Any], folder: Path, log: Callable[[str], None]) -> Iterator[Opened]:
    """Open the job and its reference; the machine is held with other trials, and let go to time."""
    recipe = build_recipe(request["recipe"], "the sweep's recipe")
    with (
        machine_lock("the trial", log, shared=True) as hold,
        SharedWork(folder / "work", recipe.hash, request["id"]) as work,
    ):

        def told(line: str) -> None:  # a stage begins: between two of them others may time
            hold.pause()
            log(line)

        # Without a bound: fewer epochs would be kept as the stage's for good; the driver ends what is late.
        stages = Stages(StageCache(), work, told, None)
        job = open_job(recipe, stages, bool(request["trust_code"]))
        if job.opened is None:
            raise InputError("a sweep scores its engines: --data SOURCE or --task FILE.py:NAME")
        _refuse_changed(job, request)
        anchor = replace(job, options=replace(job.options, threads=request["threads"]))
        reference, samples = open_reference(anchor, stages)
        reference.row.id = REFERENCE
        try:
            yield Opened(request, folder, recipe, job, stages, reference, samples)
        finally:
            reference.engine.close()


def _refuse_changed(job: Job, request: dict[str, Any]) -> None:
    """A sweep that is resumed must find the model and data that it began with."""
    there = {"model_sha256": job.onnx_key, "data": job.opened.fingerprint}
    for name, value in (request.get("facts") or {}).items():
        if name in there and value is not None and there[name] != value:
            word = "model" if name == "model_sha256" else "data"
            named = request["recipe"]["model" if word == "model" else "data"]
            raise Changed(
                f"the {word} {named} changed since the sweep began; start another with -o"
            )


def candidates_of(job: Job) -> list[Candidate]:
    """Every way to run the job's network here."""
    steps, _ = quantization_steps(job.settings, job.info.op_counts) if job.settings else ([], [])
    return float_candidates(job.recipe) + int8_candidates(job.recipe, steps)


def measure(
    given: Opened, job: Job, candidates: Sequence[Candidate]
) -> tuple[list[Trial], list[str]]:
    """Build, verify, score in full and time engines beside the reference; their energy where it is an
    objective.

    Returns:
        The engines' trials, and what the bench warned of, which stands in their rows, too.
    """
    stages, reference = given.stages, given.reference
    trials = build(job, list(candidates), stages)
    verify(job, trials, job.own_engine(reference.engine), given.samples)
    score(job, [reference, *trials], stages, None, "score")
    read_profiles(job, trials, stages)
    told = {trial.row.id: set(trial.row.warnings) for trial in trials}
    measure_speed(job, [reference, *trials], stages, search.BENCH_SECONDS, "bench")
    noise = {line for t in trials for line in t.row.warnings if line not in told[t.row.id]}
    if "energy" in given.request["objectives"]:
        for trial in trials:
            if trial.engine is not None:
                measure_energy_of(job, trial, stages)
    return trials, sorted(noise)


def keep_bundles(
    given: Opened, job: Job, trials: Sequence[Trial], student: Path | None = None
) -> None:
    """Write the engines' bundles.

    Args:
        student: the folder of a pruned network's history and weights.
    """
    for trial in trials:
        if trial.engine is not None:
            _keep_bundle(given, job, trial, student)


def _keep_bundle(given: Opened, job: Job, trial: Trial, student: Path | None) -> None:
    """The trial's engine as a bundle: what is timed, scored and copied later needs no torch."""
    folder = given.folder / BUNDLES
    folder.mkdir(exist_ok=True)
    out = folder / trial.row.id
    shutil.rmtree(out, ignore_errors=True)  # of a trial that was killed after it
    task = job.opened.task
    row = trial.row.model_copy(update={"shipped": True})
    table = ResultTable(
        command="sweep",
        primary=task.primary,
        lower_is_better=task.lower_is_better,
        points_per_unit=getattr(task, "points_per_unit", 100.0),
        rows=[row, given.reference.row],
        machine=describe_machine(),
        settings={"model": given.recipe.model, "threads": job.options.threads},
    )
    quiet = given.stages.quiet()
    with SharedWork(out, given.recipe.hash, given.request["id"]) as work, disk_errors(work.part):
        write_bundle(job, trial, given.reference, table, work, quiet, student=student)


def run_baselines(given: Opened) -> dict[str, Any]:
    """Every engine of the original network."""
    job = given.job
    trials, noise = measure(given, job, candidates_of(job))
    if "energy" in given.request["objectives"]:
        measure_energy_of(job, given.reference, given.stages)
    keep_bundles(given, job, trials)
    plain = plain_int8([given.reference, *trials], job, search.Budget())
    return {
        "rows": [_row(given.reference), *map(_row, trials)],
        "plain_int8": plain.row.id if plain is not None else None,
        "trainable": job.module is not None,
        "facts": {"model_sha256": job.onnx_key, "data": job.opened.fingerprint},
        "task": {
            "primary": job.opened.task.primary,
            "lower_is_better": job.opened.task.lower_is_better,
            "points_per_unit": getattr(job.opened.task, "points_per_unit", 100.0),
        },
        "machine": describe_machine(),
        "notes": list(job.notes),
        "noise": noise,
    }


def prune_and_train(given: Opened) -> Steered:
    """The network of the request's recipe, pruned against the plain INT8 engine that it names."""
    from .steer import steer

    job, stages = given.job, given.stages
    known = {c.id: c for c in candidates_of(job)}
    (plain,) = build(job, [known[given.request["plain_int8"]]], stages)
    if plain.engine is None:
        raise EdgemlError(f"plain INT8 was not built: {plain.row.reason}")
    measure_speed(job, [plain], stages, search.BENCH_SECONDS, "bench")
    meter = EngineMeter(job, plain, plain.candidate, stages)
    steered = steer(job, meter, goal_of(given.recipe, plain), stages)
    plain.engine.close()
    return steered


def run_choice(given: Opened) -> dict[str, Any]:
    """Prune and fine-tune as the choice says, then measure its one engine."""
    choice = Choice(**given.request["choice"])
    steered = prune_and_train(given)
    student = steered.job
    wanted = [c for c in candidates_of(student) if c.id == choice.engine]
    (trial,), noise = measure(given, student, wanted)
    keep_bundles(given, student, [trial], steered.folder)
    if steered.failed:
        trial.row.warnings.append(steered.failed)
    trial.row.warnings += steered.notes
    if trial.engine is None:
        raise EdgemlError(trial.row.reason or "no engine was built")
    return {
        "rows": [_row(trial)],
        "epochs": sum(int(row["epochs"] or 0) for row in steered.rounds),
        "removed": steered.removed,
        "steps": steered.rounds,
        "noise": noise,
    }


def _row(trial: Trial) -> dict[str, Any]:
    if trial.engine is not None and trial.row.id != REFERENCE:
        trial.engine.close()
    return trial.row.model_dump(mode="json")


def main(folder: Path) -> int:
    """Do what the folder's request says; see the module."""
    request = read_json(folder / REQUEST)
    if request is None:
        return 2
    _die_with(int(request["driver"]))
    search.BENCH_SECONDS = float(request["bench_seconds"])
    began = time.monotonic()

    def log(line: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {line}", flush=True)

    try:
        work = _works()[request["kind"]]
        with opened(request, folder, log) as given:
            found = {"state": "done", "reason": None, **work(given)}
    except MemoryError:
        found = {"state": "out of memory", "reason": "out of memory"}
    except Changed as e:
        found = {"state": "failed", "reason": str(e), "refused": True}
    except OutOfReach as e:
        found = {"state": OUT_OF_REACH, "reason": str(e), "least": e.least}
    except EdgemlError as e:
        found = {"state": "failed", "reason": str(e), "bad_input": isinstance(e, InputError)}
    except RuntimeError as e:
        memory = "memory" in str(e).lower() and "alloc" in str(e).lower()  # torch's, OpenVINO's
        state = "out of memory" if memory else "failed"
        found = {"state": state, "reason": f"{type(e).__name__}: {one_line(e)}"}
    except Exception as e:  # a trial that fails keeps its reason, and the sweep goes on
        found = {"state": "failed", "reason": f"{type(e).__name__}: {one_line(e)}"}
    if found["state"] != "done":
        log(f"{found['state']}: {found['reason']}")
    found["seconds"] = round(time.monotonic() - began, 3)
    write_json(folder / RESULT, found)  # the last act: without it the trial did not finish
    return 0


def _works() -> dict[str, Callable[[Opened], dict[str, Any]]]:
    """Kind of request → who does it."""
    from .sweep_final import run_final

    return {"baselines": run_baselines, "choice": run_choice, "final": run_final}


def _die_with(driver: int) -> None:
    """End with the driver, however it ends (prctl(2), PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:  # it ended before the line above
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
