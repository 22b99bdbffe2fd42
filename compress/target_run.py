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
from .budget_parts import with_limits
from .build_engines import Trial, trial_of
from .explain_miss import explain_miss
from .fairness import group_warnings, on_groups, unfair
from .final_test import explained, final_test, on_test
from .job import Job
from .stages import Stages
from .target_candidates import target_version
from .target_choice import beside, choose_for_target
from .target_search import search_for_target
from .target_times import time_on_device
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
        meter: times the engines on the device itself; None measures no latency.

    Returns:
        The table, and the exit code: 3 where a part of the budget is missed. Without a meter latency is not
        measured, so that no limit of it decides.

    Raises:
        EdgemlError: no engine could be made at all.
    """
    recipe = job.recipe
    trials = search_for_target(job, target, stages, budget)
    rows = [trial.row for trial in trials]
    allowed = set(recipe.precisions) if recipe.precisions else None
    scored = job.opened is not None
    if meter is None:
        choice = choose_for_target(rows, budget, target, allowed, recipe.strict, scored=scored)
    else:
        notes = [*notes, *time_on_device(job, trials, target, meter, stages)]
        limits = with_limits(budget, recipe, None)
        choice = choose(rows, limits, allowed, recipe.strict, scored=scored)
    if choice.row is None:
        raise EdgemlError(choice.line)
    shipped = trial_of(choice.row, trials)
    others = beside(trials, shipped, target)
    if choice.exit_code == 0:
        choice.row.shipped = True
    else:
        choice.row.mark = ", ".join(filter(None, [choice.row.mark, "nearest, kept in the bundle"]))
    final = final_test(job, trials[0], shipped, budget, stages)
    final = explained(job, trials[0], shipped, final, stages)
    line = choice.line + on_test(final, choice, budget) + on_groups(final)
    line += _beside_and_speed(others, target) if meter is None else _beside(others)
    tested = (final or {}).get("verdict")
    missed = choice.exit_code == 3 or tested == "missed" or unfair(final, recipe.strict)
    if recipe.strict and tested is not None:
        missed = missed or tested != "proven"
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
        warnings=[*group_warnings(final), *notes, *_left_out(job, target)],
    )
    table.advice = explain_miss(job, shipped, output, stages) if missed else []
    with disk_errors(work.part):
        write_bundle(job, shipped, trials[0], table, work, stages, beside=others, target=target)
    for trial in trials:
        if trial.engine is not None:
            trial.engine.close()
    return table, 3 if missed else 0


def _beside(others: list[Trial]) -> str:
    return f"; {' and '.join(t.row.precision for t in others)} beside it" if others else ""


def _beside_and_speed(others: list[Trial], target: Target) -> str:
    told = _beside(others)
    how = "numerics by onnxruntime" if target.by_tensorrt else "numerics here"
    return f"{told}; {how}, latency not measured: edgeml deploy times them on the device"


def _left_out(job: Job, target: Target) -> list[str]:
    """Steps of the recipe that train, which is not done for a target elsewhere."""
    trains = [step.step for step in job.recipe.steps if step.step != "quantize"]
    return [f"left out for {target.name}: {', '.join(trains)}"] if trains else []
