"""The main way for a target that is not this machine: from a job to a bundle that the device builds from."""

from __future__ import annotations

from pathlib import Path

from ..artifact.atomic_file import disk_errors
from ..artifact.machine import describe_machine
from ..artifact.result_row import ResultTable
from ..artifact.target import Target
from ..artifact.work_directory import WorkDirectory
from ..errors import EdgemlError
from ..runtime.remote_bench import RemoteMeter
from .budget import Budget, best_first, choose
from .budget_parts import Baseline, needs_baseline, with_limits
from .build_engines import Trial, close, trial_of
from .device_place import OnDevice
from .explain_miss import explain_miss
from .fairness import group_warnings, on_groups, unfair
from .final_test import explained, final_test, on_test
from .job import Job
from .stages import Stages
from .steer_run import Improved, improve, tell_budget
from .target_candidates import target_version
from .target_choice import beside, choose_for_target
from .target_search import search_for_target
from .target_times import parts_on_device
from .write_bundle import write_bundle


def run_for_target(
    job: Job,
    target: Target,
    budget: Budget,
    output: Path,
    work: WorkDirectory,
    stages: Stages,
    notes: list[str],
    meter: RemoteMeter | None = None,
) -> tuple[ResultTable, int]:
    """Make and score the engines of `target`, choose by accuracy, and write the bundle.

    Args:
        notes: what the user was told before any number.
        meter: times the engines on the device itself, and steers pruning there; None measures no latency.

    Returns:
        The table, and the exit code: 3 where a part of the budget is missed, 1 where fine-tuning diverged.
        Without a meter latency is not measured, so that no limit of it decides.

    Raises:
        EdgemlError: no engine could be made at all.
    """
    recipe = job.recipe
    device = None if meter is None else OnDevice(target, meter, recipe.table_time_s)
    if device is None:
        improved = Improved(job, job, search_for_target(job, target, stages, budget), None)
    else:
        improved = Improved(job, job, device.search(job, stages, budget), None)
        # Limits in ms and bytes alone are judged as they are.
        if needs_baseline(recipe):
            improved = improve(job, improved.trials, budget, stages, device)
    original, baseline = job, improved.baseline
    job, trials = improved.job, improved.trials
    rows = [trial.row for trial in trials]
    allowed = set(recipe.precisions) if recipe.precisions else None
    scored = job.opened is not None
    if device is None:
        choice = choose_for_target(rows, budget, target, allowed, recipe.strict, scored=scored)
    else:
        notes = [*notes, *improved.notes, *dict.fromkeys(device.warnings)]
        limits = with_limits(budget, recipe, baseline and Baseline(baseline.row))
        choice = choose(rows, limits, allowed, recipe.strict, scored=scored)
    if choice.row is None:
        raise EdgemlError(choice.line)
    shipped = trial_of(choice.row, trials)
    if shipped is baseline:
        job = original
    # Of one network: the original's engine, timed beside a student's, is of another.
    others = (
        beside([t for t in trials if not t.stays], shipped, target) if job is improved.job else []
    )
    parts = [] if device is None else parts_on_device(recipe, shipped, baseline)
    if choice.exit_code == 0:
        choice.row.shipped = True
    else:
        choice.row.mark = ", ".join(filter(None, [choice.row.mark, "nearest, kept in the bundle"]))
    final = final_test(job, trials[0], shipped, budget, stages)
    final = explained(original, trials[0], shipped, final, stages)
    line = choice.line + on_test(final, choice, budget) + on_groups(final)
    line += _beside_and_speed(others, target) if meter is None else _beside(others)
    tested = (final or {}).get("verdict")
    missed = choice.exit_code == 3 or tested == "missed" or unfair(final, recipe.strict)
    missed = missed or any(part["verdict"] == "missed" for part in parts)
    if recipe.strict:
        missed = missed or tested not in (None, "proven")
        missed = missed or any(part["verdict"] != "proven" for part in parts)
    version = target_version(recipe, target)
    task = job.opened.task if job.opened else None
    table = ResultTable(
        command="compress",
        primary=task.primary if task else None,
        lower_is_better=task.lower_is_better if task else False,
        points_per_unit=getattr(task, "points_per_unit", 100.0),
        rows=best_first(rows, choice),
        verdict_line=line,
        final=final,
        machine=describe_machine() if meter is None else meter.describe(),
        settings={
            "model": recipe.model,
            "data": recipe.data or recipe.task,
            "batch": recipe.batch,
            "target": target.name,
            "tensorrt": version.name if version else None,
            "max_drop_points": recipe.max_drop_points,
        },
        warnings=[*group_warnings(final), *notes],
    )
    tell_budget(table, improved, trials[0], shipped, parts)
    table.advice = explain_miss(job, shipped, output, stages) if missed else []
    with disk_errors(work.part):
        write_bundle(
            job,
            shipped,
            trials[0],
            table,
            work,
            stages,
            beside=others,
            target=target,
            student=None if shipped is baseline else improved.folder,
        )
    close(trials)
    if improved.steered and improved.steered.failed:
        return table, 1
    return table, 3 if missed else 0


def _beside(others: list[Trial]) -> str:
    return f"; {' and '.join(t.row.precision for t in others)} beside it" if others else ""


def _beside_and_speed(others: list[Trial], target: Target) -> str:
    told = _beside(others)
    how = "numerics by onnxruntime" if target.by_tensorrt else "numerics here"
    return f"{told}; {how}, latency not measured: edgeml deploy times them on the device"
