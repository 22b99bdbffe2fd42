"""The part of a run that prunes and fine-tunes: from the original's rows to the student's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact.recipe import Recipe
from ..artifact.result_row import ResultTable
from ..artifact.target import find_target
from ..errors import EdgemlError, InputError, MissingPart
from .budget import Budget, choose, may_ship
from .budget_parts import Baseline, has_limits, measure_energy_of, parts_line, with_limits
from .build_engines import Trial, close, trial_of
from .candidates import QAT_ROUTES, Candidate
from .job import Job
from .place import Here, Place
from .plan_training import lacking_parts, onnx_alone, sparsity_refused
from .search import BENCH_SECONDS, judge_all, measure_speed, score
from .stages import Stages

if TYPE_CHECKING:
    from .steer import Goal, Steered


@dataclass(frozen=True)
class Improved:
    """What a run goes on with.

    Attributes:
        job: the student's, or the original's where nothing was trained.
        original: the job of the original network.
        trials: the reference first; the original's plain INT8 engine among them.
        baseline: that engine; None where no INT8 engine was built.
        steered: None where nothing was trained.
    """

    job: Job
    original: Job
    trials: list[Trial]
    baseline: Trial | None
    steered: Steered | None = None
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path | None:
        """Where the student's weights and history lie."""
        return self.steered.folder if self.steered else None


def refuse_untrainable(recipe: Recipe, on_device: bool = False) -> None:
    """Say before any work which steps cannot be run, rather than leave them out.

    Args:
        on_device: a meter times the engines of a target that is not this machine.

    Raises:
        MissingPart: pruning's libraries are not installed.
        InputError: weights of an ONNX file, pruning without a limit to prune to, QAT without
            samples or OpenVINO, features with the user's own loop, or folded preprocessing or another
            machine's target where weights are trained.
    """
    tune, prune, qat = recipe.step("finetune"), recipe.step("prune"), recipe.step("qat")
    trained = prune or tune or qat
    if lacking := lacking_parts(recipe):
        raise MissingPart(lacking[0])
    if trained and recipe.model.endswith(".onnx"):
        raise InputError(
            f"step {trained.step}: {recipe.model} is an ONNX file; pruning, distillation and QAT train "
            "weights and need the torch module (net.py:build --weights); quantize works on ONNX alone"
        )
    target = find_target(recipe.target)
    elsewhere = not target.this_machine
    if (prune or tune) and elsewhere and not on_device:
        raise InputError(
            f"step {(prune or tune).step}: it is steered by times, and {recipe.target} is not this machine; give "
            "the device itself (--target ssh://USER@HOST), or compress for cpu first"
        )
    if recipe.table_time_s is not None and not on_device:
        raise InputError(
            "--table-time bounds a device's latency table (--target ssh://USER@HOST); this machine's takes "
            "at most a few minutes: leave it out"
        )
    if qat and onnx_alone(recipe.model):
        raise InputError(
            f"step qat: {recipe.model} holds a graph, and QAT trains the torch module; leave it out"
        )
    if qat and recipe.precisions and "int8" not in recipe.precisions:
        raise InputError(
            "step qat: it makes INT8 engines, which the precisions leave out; add int8, or leave out qat"
        )
    if qat and elsewhere and not target.by_tensorrt:
        raise InputError(
            f"step qat: for {target.name} it is not made from here; leave it out, or run this for cpu there"
        )
    if prune and not has_limits(recipe):
        raise InputError(
            "step prune has nothing to prune to; give a limit, as in --latency 60% or --max-size 400KB"
        )
    if qat and not (recipe.data or recipe.task):
        raise InputError("step qat: it trains on samples; give --data or --task")
    if qat and not elsewhere and "openvino" not in (recipe.runtimes or ("openvino",)):
        raise InputError(
            "step qat: it makes engines of openvino, which --runtime leaves out; add it, or leave out qat"
        )
    if tune is not None and tune.hook and (tune.features or tune.sparse_2to4):
        word = "features" if tune.features else "sparse_2to4"
        raise InputError(
            f"step finetune: {word} belongs to our loop, which hook replaces; leave out one"
        )
    if tune is not None and tune.sparse_2to4 and not tune.epochs:
        raise InputError("step finetune: sparse_2to4 needs epochs, in which its masks are trained")
    if tune is not None and tune.features and not tune.alpha:
        raise InputError(
            "step finetune: features are learnt from the teacher, whose part is alpha: 0"
        )
    if reason := sparsity_refused(recipe):
        raise InputError(f"step finetune: {reason}")
    if recipe.fold_preprocess and trained:
        raise InputError(
            "--fold-preprocess does not go with steps that train; compress first, then fold with "
            "`edgeml compress OUT/model.onnx --fold-preprocess`"
        )


def plain_int8(trials: list[Trial], job: Job, budget: Budget) -> Trial | None:
    """What plain ``edgeml compress --int8`` ships of these rows, or keeps as the nearest."""
    rows = [trial.row for trial in trials if trial.row.route not in QAT_ROUTES]
    choice = choose(rows, Budget(budget.max_drop_points), {"int8"}, scored=job.opened is not None)
    return trial_of(choice.row, trials)


def _unscreen_int8(trials: list[Trial], job: Job, budget: Budget, stages: Stages) -> None:
    """Score and time in full the INT8 engines that the search left behind because they lose too much:
    another precision may ship, but they are what limits are measured against."""
    late = [
        t
        for t in trials
        if t.row.status == "screened" and t.row.precision == "int8" and t.engine is not None
    ]
    if not late:
        return
    for trial in late:
        trial.row.status, trial.row.reason = "measured", None
    score(job, [trials[0], *late], stages, None, "score")
    judge_all(trials, budget)
    measure_speed(job, trials, stages, BENCH_SECONDS, "bench")


def improve(
    job: Job, trials: list[Trial], budget: Budget, stages: Stages, place: Place | None = None
) -> Improved:
    """Prune and fine-tune where the recipe says so and the budget needs it.

    Args:
        trials: of the original network, the reference first.
        place: where engines are built and timed; None is this machine.

    Raises:
        InputError: weights must be trained and an ONNX file has none, nothing can be pruned, or the
            budget is out of reach by the latency table.
    """
    recipe, place = job.recipe, place or Here()
    baseline = plain_int8(trials, job, budget)
    if not (recipe.step("prune") or recipe.step("finetune")) and not has_limits(recipe):
        return Improved(job, job, trials, baseline)
    if baseline is None:
        _unscreen_int8(trials, job, budget, stages)
        baseline = plain_int8(trials, job, budget)
    if baseline is None:
        why = next(
            (t.row.reason for t in trials if t.row.precision == "int8" and t.row.reason), None
        )
        raise EdgemlError(
            "no INT8 engine of the original network was built, which pruning and fine-tuning are "
            f"measured against: {why or 'the recipe has no quantize step'}"
        )
    if recipe.max_energy:
        measure_energy_of(job, baseline, stages)
    limits = with_limits(budget, recipe, Baseline(baseline.row))
    allowed = set(recipe.precisions or ()) or None
    rows = may_ship([t.row for t in trials], recipe)
    meets = choose(rows, limits, allowed, scored=job.opened is not None)
    frugal = recipe.max_energy is None or _energy_ratio(recipe, baseline) >= 1
    if has_limits(recipe) and meets.exit_code == 0 and frugal:
        note = "an engine of the original network meets the budget: nothing was pruned"
        stages.log(note)
        return Improved(job, job, trials, baseline, notes=(note,))
    goal = goal_of(recipe, baseline)
    if job.module is None:
        raise InputError(_onnx_line(recipe, trials, goal))
    if not (recipe.step("prune") or recipe.step("finetune")):
        return Improved(job, job, trials, baseline)
    if recipe.engine:  # as a sweep prunes, whichever engine it then takes
        candidate = baseline.candidate
    elif allowed and "int8" not in allowed and meets.nearest is not None:
        candidate = trial_of(meets.nearest, trials).candidate
    else:
        candidate = _fastest(trials, baseline, goal, budget, allowed, job.opened is not None)
    candidate = _of_any_network(candidate, trials)
    from .steer import steer  # it needs torch, as only a run that prunes does

    meter = place.engine_meter(job, baseline, candidate, stages)
    steered = steer(job, meter, goal, stages, place.open_table)
    close([trial for trial in trials if trial is not baseline])
    baseline.stays = True
    baseline.row = baseline.row.model_copy(
        update={
            "id": f"original-{baseline.row.id}",
            "mark": "plain INT8 of the original",
            "status": "measured",
            "reason": None,
        }
    )
    # However late it is: what was trained is worth nothing until its engines are built and judged.
    students = place.search(
        steered.job, stages.unbounded(), Budget(budget.max_drop_points), [baseline]
    )
    if baseline.row.status == "failed":  # a share of nothing would be met by anything
        raise EdgemlError(
            "plain INT8 of the original, which limits are measured against, could not be timed beside "
            f"the student: {baseline.row.reason}"
        )
    return Improved(steered.job, job, students, baseline, steered, tuple(steered.notes))


def _fastest(
    trials: list[Trial],
    baseline: Trial,
    goal: Goal,
    budget: Budget,
    allowed: set[str] | None,
    scored: bool,
) -> Candidate:
    """What the student's engines are built as while it is pruned: as what may ship of the original
    and is faster than plain INT8, where time is short; more would be pruned than it needs else."""
    if goal.ratio is None or goal.ratio >= 1:
        return baseline.candidate
    choice = choose([t.row for t in trials], Budget(budget.max_drop_points), allowed, scored=scored)
    best = trial_of(choice.row, trials)
    usable = choice.exit_code == 0 and best is not None and best.candidate is not None
    if usable and best.row.latency_p50_ms.value < baseline.row.latency_p50_ms.value:
        return best.candidate
    return baseline.candidate


def _of_any_network(candidate: Candidate, trials: list[Trial]) -> Candidate:
    """A candidate without the layers that were put back into float: they are told by their names in the
    original's graph, which a pruned one does not share."""
    steps = {
        t.candidate.route: t.candidate.step
        for t in trials
        if t.candidate is not None and t.candidate.step is not None and not t.row.put_back
    }
    if candidate.step is None or candidate.route in steps:
        return candidate
    bases = [route for route in steps if candidate.route.startswith(f"{route} ")]
    return replace(candidate, step=steps[max(bases, key=len)]) if bases else candidate


def goal_of(recipe: Recipe, baseline: Trial) -> Goal:
    """The budget against the plain INT8 engine.

    Limits of the p99 and of the energy are steered by the p50, of which they are taken to be the
    same share as the baseline's; they are judged by themselves.
    """
    base, ratios, texts = Baseline(baseline.row), [], []
    for part in ("latency", "latency_p99"):
        limit = recipe.limit(part)
        if limit is not None:
            ratios.append(limit.absolute(base.of(part)) / base.of(part))
            texts.append(f"--{part.replace('_', '-')} {limit.text}")
    if recipe.max_energy:
        ratios.append(_energy_ratio(recipe, baseline))
        texts.append(f"--max-energy {recipe.max_energy}")
    size = recipe.limit("max_size")
    if size is not None:
        texts.append(f"--max-size {size.text}")
    from .steer import Goal

    return Goal(
        min(1.0, *ratios) if ratios else None,
        None if size is None else size.absolute(base.of("max_size")),
        ", ".join(texts) or "no limit",
    )


def _energy_ratio(recipe: Recipe, baseline: Trial) -> float:
    """The energy limit as a fraction of what the plain INT8 engine needs."""
    limit, base = recipe.limit("max_energy"), Baseline(baseline.row).of("max_energy")
    return limit.absolute(base) / base


def _onnx_line(recipe: Recipe, trials: list[Trial], goal: Goal) -> str:
    times = [
        t.row.latency_p50_ms.value
        for t in trials
        if t.row.latency_p50_ms is not None and t.row.latency_p50_ms.value is not None
    ]
    fastest = f"; the fastest engine of this file takes {min(times):.3g} ms" if times else ""
    return (
        f"{goal.text} cannot be met by quantization alone{fastest}: {recipe.model} is an ONNX file, "
        "and pruning, distillation and QAT train weights, which needs the torch module (net.py:build "
        "--weights, a training's directory); quantize and --max-drop work on ONNX alone"
    )


def steps_told(improved: Improved, reference: Trial, shipped: Trial) -> list[dict[str, Any]]:
    """What each step gave and cost, for the result: the original's engines, a row a round (metric of
    the float network), and the student's engine."""

    def engine(name: str, trial: Trial) -> dict[str, Any]:
        p50 = trial.row.latency_p50_ms
        task = improved.job.opened.task if improved.job.opened else None
        score = trial.row.metrics.get(task.primary) if task else None
        return {
            "step": name,
            "latency_p50_ms": None if p50 is None else p50.value,
            "metric": None if score is None else score.value,
            "size_bytes": trial.row.size_bytes,
        }

    rows = [engine("original", reference)]
    if improved.baseline is not None:
        rows.append(engine("original, plain INT8", improved.baseline))
    for row in improved.steered.rounds if improved.steered else []:
        rows.append({"step": f"round {row['round']}: prune, fine-tune", **row})
    if shipped is not improved.baseline:
        rows.append(engine("quantize", shipped))
    return rows


def _estimated(steered: Steered) -> list[str]:
    """What a device's table that is partly estimated is told by, once, of the last round that read it."""
    shapes = [row["table_shapes"] for row in steered.rounds if row.get("table_shapes")]
    if not shapes:
        return []
    from .device_layer_times import coverage_note

    note = coverage_note(*shapes[-1])
    return [note] if note else []


def tell_budget(
    table: ResultTable,
    improved: Improved,
    reference: Trial,
    shipped: Trial,
    parts: list[dict[str, Any]],
) -> None:
    """What was removed, what each step gave, and the verdict on each limit of the shipped engine, into
    the result's table."""
    if improved.steered:
        table.steps = steps_told(improved, reference, shipped)
        table.removed = improved.steered.removed
        table.warnings += _estimated(improved.steered)
        if improved.steered.failed:
            table.warnings.append(improved.steered.failed)
        if shipped is improved.baseline:
            table.warnings.append(
                "the bundle holds the original network's engine: what was removed is of the student, "
                "which is farther from the budget"
            )
    if parts:
        table.budget = parts
        table.verdict_line = f"{table.verdict_line}; {parts_line(parts)}"
