"""Pruning to a budget, in rounds: prune a part, fine-tune a little, measure the engine, go on.

The original network is the teacher throughout. Each round re-reads the importances from the network
as it is by then, solves against the latency table, and settles on the real engine before anything is
trained: weights change no time. The last round puts back what the budget does not need gone.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..artifact.atomic_file import write_json
from ..artifact.content_hash import hash_json
from ..artifact.recipe import FinetuneStep, PruneStep
from ..errors import DiskFull, EdgemlError, InputError, OutOfReach
from ..train.checkpoint import weights_of
from ..train.evaluate import evaluate, score_rows
from ..train.prune_history import Entry, read_history, replay, write_history
from ..train.settings import TrainSettings
from ..train.trained_bundle import HISTORY, WEIGHTS
from ..train.weights import write_safetensors
from .feature_distil import first_output
from .job import Job, batched, student_job
from .latency_table import LatencyTable
from .prune_groups import Group, find_groups
from .stage_keys import data_key
from .stages import Stages
from .steer_data import FinetuneData, finetune_settings, open_finetune_data
from .steer_engine import SETTLING_BUILDS, Measured, Meter
from .steer_solve import Worth, lowest
from .steer_structure import comparable, find_structure
from .steer_table import OpenTable, open_table
from .steer_train import finetune

# Batches that importances are read from: more move the order of channels no further.
IMPORTANCE_BATCHES = 4
# Of all epochs, for each round before the last: enough to heal, as Molchanov et al. 2019 (section
# 4.1) prune a part at a time between short trainings.
ROUND_SHARE = 0.1
PROGRESS_SAMPLES = 1000
ROUND = "round.json"


@dataclass(frozen=True)
class Goal:
    """What the engine must reach.

    Attributes:
        ratio: its p50 / that of the plain INT8 engine, at most; None for no limit.
        max_bytes: of its files; None for no limit.
        text: the budget as the user gave it.
    """

    ratio: float | None
    max_bytes: float | None
    text: str


@dataclass(frozen=True)
class Steered:
    """What steering gave.

    Attributes:
        job: of the student; its teacher is the original.
        folder: of `WEIGHTS` and `HISTORY`.
        rounds: a row a round: what it reached, gave and cost.
        removed: a row a group, over all rounds.
        failed: why fine-tuning ended early; None: it did not.
    """

    job: Job
    folder: Path
    rounds: list[dict[str, Any]]
    removed: list[dict[str, Any]]
    failed: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Run:
    """What every round needs."""

    job: Job
    goal: Goal
    prune: PruneStep | None
    tune: FinetuneStep
    settings: TrainSettings
    data: FinetuneData
    teacher: nn.Module
    meter: Meter
    open_table: OpenTable
    stages: Stages
    count: int
    times: dict[str, float] = field(default_factory=dict)


def steer(
    job: Job, meter: Meter, goal: Goal, stages: Stages, open_table: OpenTable = open_table
) -> Steered:
    """Prune and fine-tune the job's network until its engine meets the goal.

    Args:
        meter: builds and times the student's engines against the original's plain INT8 one.
        open_table: gives the latency table of a network where those engines run.

    Raises:
        OutOfReach: nothing can be pruned, or by the table no network meets the goal; before anything
            is trained.
    """
    recipe = job.recipe
    prune, tune = recipe.step("prune"), recipe.step("finetune") or FinetuneStep(epochs=0)
    notes: list[str] = []
    if prune and _is_met(goal, meter):
        prune, note = None, f"the original is within {goal.text}: nothing was pruned"
        notes.append(note)
        stages.log(f"note: {note}")
    settings, augment = finetune_settings(job, tune, pruned=prune is not None)
    run = _Run(
        job,
        goal,
        prune,
        tune,
        settings,
        open_finetune_data(job, settings, augment),
        copy.deepcopy(job.module).eval(),
        meter,
        open_table,
        stages,
        _rounds(prune, tune),
    )
    state = Steered(job, Path(), [], [], notes=notes)
    for number in range(1, run.count + 1):
        if 1 < number < run.count and stages.out_of_time():
            continue  # the last round alone: its structure meets the budget, trained or not
        state = _round(run, state, number)
    return replace(state, job=student_job(job, state.job.module, state.folder.name, stages))


def _round(run: _Run, before: Steered, number: int) -> Steered:
    """Remove, fine-tune, look at what was reached: two stages, each resumed after a kill."""
    stages = run.stages
    module = copy.deepcopy(before.job.module).eval()
    history = read_history(before.folder / HISTORY) if before.rounds else []
    # All that a structure depends on and no more: trials of a sweep share a run, not a recipe.
    key = {
        "model": run.job.onnx_key,
        "data": data_key(run.job, stages),
        "seed": run.job.recipe.seed,
        "goal": asdict(run.goal),
        "prune": run.prune.model_dump(mode="json") if run.prune else None,
        "batches": run.tune.model_dump(mode="json", include={"batch", "augment"}),
        "engine": run.meter.key,
        "run": stages.run_id,
        "round": [number, run.count],
        "before": before.folder.name,
    }
    found: dict[str, Any] = {"history": [], "removed": [], "notes": []}
    if run.prune:
        line = f"round {number} of {run.count}: what to prune"
        found = stages.values("structure", key, line, lambda: _structure(run, module, number, key))
        run.times.update(found.get("times", {}))
        replay(module, found["history"])
    history += found["history"]
    epochs = _epochs(run.tune.epochs, number, run.count)
    # Zeros of a round before the last one would stay when a further cut moves the groups of four.
    tune = run.tune if number == run.count else run.tune.model_copy(update={"sparse_2to4": False})
    reached = _reached(found, run.goal)
    checkpoint = stages.part / f"finetune-{number}.safetensors"
    whole = {
        **key,
        "entries": hash_json(found["history"]),
        "finetune": tune.model_dump(mode="json"),
        "epochs": epochs,
    }

    def make(directory: Path) -> None:
        why, began, trained = None, time.monotonic(), epochs
        try:
            trained = finetune(
                module,
                run.teacher,
                run.data,
                tune,
                run.settings,
                epochs,
                checkpoint,
                whole,
                stages,
                lambda: reached,
            )
        except (InputError, DiskFull):
            raise
        except EdgemlError as e:  # it diverged; what was good of it is kept
            why = str(e)
        _save(module, history, directory)
        told = {"metric": _score(run, module), "failed": why, "epochs": trained}
        told["seconds"] = time.monotonic() - began
        write_json(directory / ROUND, told)

    line = f"round {number} of {run.count}: fine-tuning{reached}"
    folder = stages.run("round", whole, line, make)
    checkpoint.unlink(missing_ok=True)
    told = json.loads((folder / ROUND).read_text(encoding="utf-8"))
    row = {
        "round": number,
        "ratio": found.get("ratio"),
        "over": found.get("over"),
        "table_errors": found.get("errors", []),
        # Of a device's table: measured, wanted.
        "table_shapes": found.get("table_shapes"),
        "epochs": told["epochs"],
        "metric": told["metric"],
        # As they were spent, also where a resumed run takes them from the cache.
        "seconds": round(found.get("seconds", 0.0) + told["seconds"], 1),
    }
    return Steered(
        replace(before.job, module=load_student(run.job.module, folder)),
        folder,
        [*before.rounds, row],
        [*before.removed, *({"round": number, **r} for r in found["removed"])],
        told["failed"] or before.failed,
        list(dict.fromkeys([*before.notes, *found["notes"]])),
    )


def load_student(original: nn.Module, folder: Path) -> nn.Module:
    """The pruned network of a finished round, from the original and what the round left."""
    from ..train.weights import load_weights

    module = replay(copy.deepcopy(original), read_history(folder / HISTORY))
    load_weights(module, folder / WEIGHTS)
    return module.eval()


def _structure(run: _Run, module: nn.Module, number: int, key: dict[str, Any]) -> dict[str, Any]:
    """What one round removes, as plain values."""
    began = time.monotonic()
    meter, goal, stages = run.meter, run.goal, run.stages
    notes: list[str] = []
    groups = _groups(run, module, notes, number)
    for note in notes:
        stages.log(f"note: {note}")
    table = run.open_table(run.job, module, groups, run.times, stages)
    notes.extend(table.notes)
    last = number == run.count
    builds = SETTLING_BUILDS if last else 1
    # Of the whole network the first bench knows the time, where it ships as the baseline does.
    now = Measured(1.0, meter.baseline_bytes)

    def measure(pruned: nn.Module, what: dict[str, Any], builds: int = 1) -> Measured:
        measured = meter.measure(pruned, {**key, **what}, builds)
        notes.extend(measured.warnings)
        return measured

    if number > 1 or not meter.is_baseline:
        now = measure(module, {"history": []})
    table.correct({}, now.ratio * meter.baseline_ms)
    whole_bytes = now.size_bytes
    if number == 1:
        _refuse_impossible(table, goal, meter, whole_bytes)
    share = number / run.count
    ratio = None if goal.ratio is None else goal.ratio**share
    worth = Worth(comparable(groups, table.groups))
    if goal.max_bytes is not None:
        sizes = table.sizes(whole_bytes)
        worth = replace(worth, max_bytes=_bytes(goal, meter, share), sizes=sizes)
    found = find_structure(
        module,
        groups,
        table,
        worth,
        float("inf") if ratio is None else ratio * meter.baseline_ms,
        lambda pruned, what: measure(pruned, what, builds),
        meter.baseline_ms,
        last=last,
        log=stages.log,
    )
    seconds = time.monotonic() - began
    told = {"target": ratio, "notes": notes, "times": table.times, "seconds": seconds}
    return {**asdict(found), **told, "table_shapes": table.coverage}


def _groups(run: _Run, module: nn.Module, notes: list[str], number: int) -> list[Group]:
    """What may be removed in a round; nothing more where a later one finds none.

    Raises:
        OutOfReach: the original network has nothing that can be pruned.
    """
    batches = list(islice(run.data.batches.epoch(run.job.recipe.seed), IMPORTANCE_BATCHES))
    inputs = {n: torch.as_tensor(a) for n, a in batched(run.job.sample, 2).items()}
    try:
        return find_groups(
            module,
            inputs,
            importance=run.prune.importance,
            loss=_importance_loss(run.data, run.teacher),
            batches=batches,
            kinds=run.prune.kinds,
            log=notes.append,
        )
    except InputError as e:
        if number == 1:
            raise
        notes.append(f"round {number}: {e}")  # what the rounds before it gave is kept
        return []


def _importance_loss(data: FinetuneData, teacher: nn.Module) -> Any:
    """The task's loss; without labels that of the teacher's own answers, because what a student
    that still equals its teacher loses to it has no gradient."""
    if data.task_loss is not None:
        return data.task_loss

    def loss(model: nn.Module, inputs: dict[str, Any], targets: Any) -> Any:
        outputs = first_output(model(**inputs)).float()
        if data.labels:
            return F.cross_entropy(outputs, targets)
        if outputs.dim() == 2 and outputs.shape[1] > 1:
            with torch.no_grad():
                answers = first_output(teacher(**inputs)).argmax(1)
            return F.cross_entropy(outputs, answers)
        return outputs.square().mean()

    return loss


def _is_met(goal: Goal, meter: Meter) -> bool:
    """Whether the plain INT8 engine, which is what ships, is within the limits as it is: another part
    of the budget is missed then, which pruning does not bring nearer."""
    fast = goal.ratio is None or goal.ratio >= 1
    return meter.is_baseline and fast and meter.baseline_bytes <= (goal.max_bytes or float("inf"))


def _refuse_impossible(table: LatencyTable, goal: Goal, meter: Meter, whole_bytes: int) -> None:
    """Before anything is trained.

    Raises:
        OutOfReach: by the table, even the least network is slower or larger than the goal.
    """
    least = lowest(table)
    ms, size = table.predict(least), table.sizes(whole_bytes).predict(least)
    if goal.ratio is not None and ms > goal.ratio * meter.baseline_ms:
        raise OutOfReach(
            f"{goal.text} cannot be met: the lowest that the table thinks possible is {ms:.3g} ms, "
            f"{ms / meter.baseline_ms:.0%} of plain INT8 ({meter.baseline_ms:.3g} ms; a call alone takes "
            f"{table.fixed_ms:.3g}); give a larger budget",
            ms / meter.baseline_ms,
        )
    if goal.max_bytes is not None and size > goal.max_bytes:
        raise OutOfReach(
            f"{goal.text} cannot be met: the lowest that the table thinks possible is {size:,.0f} bytes "
            f"of plain INT8's {meter.baseline_bytes:,}; give a larger budget"
        )


def _bytes(goal: Goal, meter: Meter, share: float) -> float | None:
    if goal.max_bytes is None:
        return None
    return meter.baseline_bytes * (goal.max_bytes / meter.baseline_bytes) ** share


def _rounds(prune: PruneStep | None, tune: FinetuneStep) -> int:
    """As the recipe says, but no more than there are epochs: a round heals before the next one looks."""
    if prune is None:
        return 1
    return prune.rounds if tune.hook else min(prune.rounds, max(1, tune.epochs))


def _epochs(total: int, number: int, count: int) -> int:
    """A small share for each round before the last, the rest for that."""
    early = max(1, round(ROUND_SHARE * total)) if total >= count else 0
    return early if number < count else total - early * (count - 1)


def _reached(entries: Mapping[str, Any], goal: Goal) -> str:
    if entries.get("ratio") is None:
        return ""
    return f" ({entries['ratio']:.0%} of plain INT8 so far, {goal.text})"


def _score(run: _Run, module: nn.Module) -> float | None:
    """The primary metric of the float network on some validation samples; without labels its
    agreement with the original."""
    from ..runtime.torch_engine import TorchEngine

    job, task = run.job, run.job.opened.task
    names = [spec.name for spec in job.info.outputs]
    modules = {"student": module}
    if getattr(task, "targets_from_reference", False):
        modules = {"original": run.teacher, **modules}
    engines = {
        name: TorchEngine(m, batched(job.sample, 1), names, job.options)
        for name, m in modules.items()
    }
    reference = next(iter(engines))
    evaluation = evaluate(
        engines,
        task,
        "validation",
        batch=job.recipe.batch,
        limit=PROGRESS_SAMPLES,
        reference_id=reference,
    )
    metric = score_rows(evaluation, task, reference)["student"].metrics.get(task.primary)
    return None if metric is None else metric.value


def _save(module: nn.Module, history: list[Entry], folder: Path) -> None:
    write_safetensors({n: t.contiguous() for n, t in weights_of(module).items()}, folder / WEIGHTS)
    write_history(folder / HISTORY, history)
