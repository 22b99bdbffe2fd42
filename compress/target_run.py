"""The main way for a target that is not this machine: from a job to a bundle that the device builds from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..artifact.atomic_file import disk_errors
from ..artifact.boards import BOARDS, build_memory_bytes
from ..artifact.machine import describe_machine
from ..artifact.result_row import EngineRow, ResultTable
from ..artifact.target import Target
from ..artifact.work_directory import WorkDirectory
from ..errors import EdgemlError
from ..runtime.remote_bench import RemoteMeter
from .budget import Budget, Choice, best_first, by_builds, choose, may_ship
from .budget_parts import Baseline, judge_parts, needs_baseline, with_limits
from .build_engines import Trial, close, trial_of
from .device_builds import measure_builds_on_device
from .device_place import OnDevice
from .explain_miss import advice_on, is_missed
from .fairness import group_warnings, on_groups
from .final_test import explained, final_test, on_test
from .job import Job
from .stages import Stages
from .steer_run import Improved, improve, tell_budget
from .target_candidates import target_version
from .target_choice import beside, choose_for_target
from .target_search import search_for_target
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
    improved = _improved(job, target, budget, stages, device)
    baseline, trials = improved.baseline, improved.trials
    # Nothing is chosen by times of a machine that stands in for the device.
    timed = device is not None and not device.meter.describe().get("emulated")
    choice = _choice(improved, target, budget, timed)
    shipped = trial_of(choice.row, trials)
    student = None if shipped is baseline else improved.folder
    of = job if shipped is baseline else improved.job
    parts: list[dict[str, Any]] = []
    if device is None:
        notes = [*notes, *_memory_note(target, shipped)]
    else:
        parts = _judged_parts(improved, shipped, device, stages)
        choice = by_builds(choice, budget, parts, recipe.strict, scored=job.opened is not None)
        notes = list(dict.fromkeys([*notes, *improved.notes, *device.warnings]))
    if choice.exit_code == 0:
        choice.row.shipped = True
    else:
        choice.row.mark = ", ".join(filter(None, [choice.row.mark, "nearest, kept in the bundle"]))
    # Of one network: the original's engine, timed beside a student's, is of another.
    others = (
        beside([t for t in trials if not t.stays], shipped, target) if of is improved.job else []
    )
    final = final_test(of, trials[0], shipped, budget, stages)
    final = explained(job, trials[0], shipped, final, stages)
    missed = is_missed(choice, final, parts, recipe.strict)
    told = choice.line + on_test(final, choice, budget) + on_groups(final)
    told += _beside_and_speed(others, target) if meter is None else _beside(others)
    if meter is not None and not timed:
        told += "; the device is emulated: its times decide nothing"
    table = _table(of, target, best_first([t.row for t in trials], choice), told, final, notes)
    if meter is not None:
        table.machine = meter.describe()
    tell_budget(table, improved, trials[0], shipped, parts)
    if missed:
        table.advice = advice_on(of, shipped, final, parts, budget, output, stages)
    with disk_errors(work.part):
        write_bundle(
            of,
            shipped,
            trials[0],
            table,
            work,
            stages,
            beside=others,
            target=target,
            student=student,
        )
    close(trials)
    if improved.steered and improved.steered.failed:
        return table, 1
    return table, 3 if missed else 0


def _improved(
    job: Job, target: Target, budget: Budget, stages: Stages, device: OnDevice | None
) -> Improved:
    """Every engine of the target, and where a device times them, of the network that was pruned to its limits."""
    if device is None:
        return Improved(job, job, search_for_target(job, target, stages, budget), None)
    trials = device.search(job, stages, budget)
    # Limits in ms and bytes alone are judged as they are.
    if not needs_baseline(job.recipe):
        return Improved(job, job, trials, None)
    return improve(job, trials, budget, stages, device)


def _choice(improved: Improved, target: Target, budget: Budget, timed: bool) -> Choice:
    """The row that ships, by the device's times or, without them, by precision.

    Raises:
        EdgemlError: none may.
    """
    recipe, baseline = improved.job.recipe, improved.baseline
    rows = may_ship([trial.row for trial in improved.trials], recipe)
    allowed = set(recipe.precisions) if recipe.precisions else None
    scored = improved.job.opened is not None
    if timed:
        limits = with_limits(budget, recipe, baseline and Baseline(baseline.row))
        choice = choose(rows, limits, allowed, recipe.strict, scored=scored)
    else:
        choice = choose_for_target(rows, budget, target, allowed, recipe.strict, scored=scored)
    if choice.row is None:
        raise EdgemlError(choice.line)
    return choice


def _judged_parts(
    improved: Improved, shipped: Trial, device: OnDevice, stages: Stages
) -> list[dict[str, Any]]:
    """The verdict on each limit: of times by several builds on the device."""
    recipe, baseline = improved.job.recipe, improved.baseline
    limits = [limit for part in ("latency", "latency_p99") if (limit := recipe.limit(part))]
    builds: dict[str, list[float]] = {}
    if limits:
        relative = any(limit.relative for limit in limits)
        other = baseline if relative and shipped is not baseline else None
        builds, warnings = measure_builds_on_device(
            improved.job, other, shipped, device.meter, stages
        )
        device.warnings += warnings
        if other is None:  # it is the measure itself
            builds["p50 ratio"] = builds["p99 ratio"] = [1.0] * len(builds["p50"])
    return judge_parts(recipe, shipped, baseline and Baseline(baseline.row), builds)


def _table(
    job: Job,
    target: Target,
    rows: list[EngineRow],
    line: str,
    final: dict[str, Any] | None,
    notes: list[str],
) -> ResultTable:
    version = target_version(job.recipe, target)
    task = job.opened.task if job.opened else None
    return ResultTable(
        command="compress",
        primary=task.primary if task else None,
        lower_is_better=task.lower_is_better if task else False,
        points_per_unit=getattr(task, "points_per_unit", 100.0),
        rows=rows,
        verdict_line=line,
        final=final,
        machine=describe_machine(),
        settings={
            "model": job.recipe.model,
            "data": job.recipe.data or job.recipe.task,
            "batch": job.recipe.batch,
            "target": target.name,
            "tensorrt": version.name if version else None,
            "max_drop_points": job.recipe.max_drop_points,
        },
        warnings=[*group_warnings(final), *notes],
    )


def _memory_note(target: Target, shipped: Trial) -> list[str]:
    """Where the smallest module of a board may lack the memory to build the engine; a device tells its own."""
    board, size = BOARDS.get(target.board or ""), shipped.row.size_bytes
    if board is None or not size or not board.memory_gb:
        return []
    need, least = build_memory_bytes(size) / 1e9, board.memory_gb[0]
    if need <= least:
        return []
    return [
        f"building {shipped.row.id} takes about {need:.1f} GB of free memory; the smallest {board.title} has {least} "
        "GB in all (believed)"
    ]


def _beside(others: list[Trial]) -> str:
    return f"; {' and '.join(t.row.precision for t in others)} beside it" if others else ""


def _beside_and_speed(others: list[Trial], target: Target) -> str:
    told = _beside(others)
    how = "numerics by onnxruntime" if target.by_tensorrt else "numerics here"
    return f"{told}; {how}, latency not measured: edgeml deploy times them on the device"
