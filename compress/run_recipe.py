"""The main way: from a recipe to a bundle with a proven engine, read from top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifact.atomic_file import disk_errors
from ..artifact.machine import cpu_times, describe_machine, noise_warning
from ..artifact.recipe import Recipe
from ..artifact.result_row import EngineRow, ResultTable
from ..artifact.stage_cache import StageCache
from ..artifact.target import find_target
from ..artifact.work_directory import WorkDirectory
from ..errors import EdgemlError
from ..runtime.remote_bench import RemoteMeter
from .budget import Budget, Choice, best_first, by_builds, choose, may_ship
from .budget_parts import (
    Baseline,
    has_limits,
    judge_parts,
    measure_builds,
    measure_energy_of,
    refuse_unmeasurable,
    with_limits,
)
from .build_engines import Trial, close, trial_of
from .explain_miss import advice_on, is_missed
from .fairness import check_groups, group_warnings, on_groups
from .final_test import explained, final_test, on_test
from .job import Job, open_job
from .layer_rows import layer_rows
from .search import search, unprovable
from .stages import Stages
from .steer_run import Improved, improve, refuse_untrainable, tell_budget
from .target_run import run_for_target
from .target_times import refuse_for_device
from .train_split import with_train_split
from .write_bundle import write_bundle


@dataclass(frozen=True)
class CompressResult:
    """What `run_recipe` gives back.

    Attributes:
        table: every row, the verdict, the test result.
        bundle: the directory that was written; None when nothing could ship at all.
        exit_code: 0, or 3 when the budget was missed.
    """

    table: ResultTable
    bundle: Path | None
    exit_code: int


def run_recipe(
    recipe: Recipe,
    output: Path,
    *,
    log: Callable[[str], None] = lambda line: None,
    trust_code: bool = False,
    cache: StageCache | None = None,
    meter: RemoteMeter | None = None,
) -> CompressResult:
    """Compress a network: try, verify, score and time engines, and write the best one's bundle.

    Args:
        recipe: what to do with what.
        output: the bundle's directory; must not exist. Unfinished work lies in ``OUTPUT.part``, and
            the same call goes on where a killed one stopped.
        log: called with a line when something begins.
        trust_code: run the user code that a bundle names.
        meter: times engines of a target that is not this machine, on the device itself.

    Raises:
        InputError: model, data, task or output cannot be used.
        EdgemlError: no engine could be built at all.
    """
    budget = Budget(recipe.max_drop_points)
    refuse_untrainable(recipe, on_device=meter is not None)
    if meter is None:
        refuse_unmeasurable(recipe)
    else:
        refuse_for_device(recipe, meter)
    recipe = with_train_split(recipe)
    with WorkDirectory(output, recipe.hash) as work:
        stages = Stages(cache or StageCache(), work, log, recipe.time_s)
        noise = cpu_times()
        job = open_job(recipe, stages, trust_code)
        check_groups(recipe, job.opened and job.opened.task)
        notes = _tell(job, budget, log)
        target = find_target(recipe.target)
        if not target.this_machine:
            table, code = run_for_target(job, target, budget, output, work, stages, notes, meter)
            return CompressResult(table, output, code)
        improved = improve(job, search(job, stages, budget), budget, stages)
        job, trials, baseline = improved.job, improved.trials, improved.baseline
        notes += improved.notes
        rows = [trial.row for trial in trials]
        allowed = set(recipe.precisions) if recipe.precisions else None
        choice = choose(
            may_ship(rows, recipe),
            with_limits(budget, recipe, baseline and Baseline(baseline.row)),
            allowed,
            recipe.strict,
            scored=job.opened is not None,
            objective=recipe.objective,
        )
        if choice.row is None:
            reasons = "; ".join(f"{r.id}: {r.reason}" for r in rows if r.reason)
            raise EdgemlError(f"no engine that may ship was built: {reasons}")
        shipped = trial_of(choice.row, trials)
        parts = _judged_parts(improved, shipped, stages) if has_limits(recipe) else []
        choice = by_builds(choice, budget, parts, recipe.strict, scored=job.opened is not None)
        if choice.exit_code == 0:
            choice.row.shipped = True
        else:
            choice.row.mark = "nearest, kept in the bundle"
        if shipped is baseline:
            job = improved.original
        final = final_test(job, trials[0], shipped, budget, stages)
        final = explained(improved.original, trials[0], shipped, final, stages)
        table = _table(job, rows, choice, final, notes, noise_warning(noise, cpu_times()))
        tell_budget(table, improved, trials[0], shipped, parts)
        table.layers = layer_rows(job, shipped, stages)
        missed = is_missed(choice, final, parts, recipe.strict)
        if missed:
            table.advice = advice_on(job, shipped, final, parts, budget, output, stages)
        with disk_errors(work.part):
            write_bundle(
                job,
                shipped,
                trials[0],
                table,
                work,
                stages,
                student=None if shipped is baseline else improved.folder,
            )
        close(trials)
    if improved.steered and improved.steered.failed:
        return CompressResult(table, output, 1)
    return CompressResult(table, output, 3 if missed else 0)


def _judged_parts(improved: Improved, shipped: Trial, stages: Stages) -> list[dict[str, Any]]:
    """The verdict on each limit of the engine: what was built anew several times has the last word."""
    recipe = improved.job.recipe
    baseline = None if shipped is improved.baseline else improved.baseline
    builds = measure_builds(improved.job, baseline, shipped, stages)
    if recipe.max_energy:
        measure_energy_of(improved.job, shipped, stages)
    if baseline is None and improved.baseline is not None:  # it is the measure itself
        builds["p50 ratio"] = builds["p99 ratio"] = [1.0] * len(builds["p50"])
    base = improved.baseline and Baseline(improved.baseline.row)
    return judge_parts(recipe, shipped, base, builds)


def _tell(job: Job, budget: Budget, log: Callable[[str], None]) -> list[str]:
    """What the user should read before any number: assumptions, and budgets that no sample can prove."""
    notes = list(job.notes)
    if job.opened is not None:
        warning = unprovable(job, budget)
        notes += [warning] if warning else []
    for note in notes:
        log(f"note: {note}")
    return notes


def _table(
    job: Job,
    rows: list[EngineRow],
    choice: Choice,
    final: dict[str, Any] | None,
    notes: list[str],
    noise: str | None,
) -> ResultTable:
    task = job.opened.task if job.opened else None
    return ResultTable(
        command="compress",
        primary=task.primary if task else None,
        lower_is_better=task.lower_is_better if task else False,
        points_per_unit=getattr(task, "points_per_unit", 100.0),
        rows=best_first(rows, choice),
        verdict_line=choice.line
        + on_test(final, choice, Budget(job.recipe.max_drop_points))
        + on_groups(final),
        final=final,
        machine=describe_machine(),
        settings={
            "model": job.recipe.model,
            "data": job.recipe.data or job.recipe.task,
            "batch": job.recipe.batch,
            "threads": job.options.threads,
            "objective": job.recipe.objective,
            "max_drop_points": job.recipe.max_drop_points,
        },
        warnings=[*group_warnings(final), *notes, *_bad_samples(task), *([noise] if noise else [])],
    )


def _bad_samples(task: Any) -> list[str]:
    report = getattr(task, "report", None)
    counts = report() if report else {}
    told = [f"{n} {kind}" for kind, n in counts.items() if kind != "duplicate"]
    return [f"samples left out: {', '.join(told)}"] if told else []
