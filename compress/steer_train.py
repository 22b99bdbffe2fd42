"""Fine-tuning between and after pruning rounds: the original network is the teacher."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..artifact.machine_lock import machine_lock
from ..artifact.recipe import FinetuneStep
from ..errors import EdgemlError, InputError, MissingPart, one_line
from ..train.checkpoint import Checkpoint, weights_of
from ..train.settings import TrainSettings
from ..train.training_loop import fit
from ..train.user_code import user_attribute, user_code_runs
from .distil import distillation_loss
from .feature_distil import feature_student
from .sparsity_2to4 import covered_layers, finish_2to4, sparsify_2to4
from .stages import Stages
from .steer_data import FinetuneData
from .teacher_logits import with_stored_logits

# Of the time that is left: engines are still to be built, scored and timed.
TRAINING_SHARE = 0.7
TIMED_STEPS = 3


def epochs_in_time(
    module: nn.Module,
    data: FinetuneData,
    loss: Any,
    wanted: int,
    seconds: float | None,
) -> int:
    """As many epochs as fit into the time, at most `wanted`; judged by a few steps on a copy."""
    if seconds is None or wanted == 0:
        return wanted
    trial, batches = copy.deepcopy(module).train(), iter(data.batches.epoch(0))
    begin, count = time.perf_counter(), 0
    for _, (inputs, targets) in zip(range(TIMED_STEPS), batches, strict=False):
        loss(trial, inputs, targets).backward()
        count += 1
    each = (time.perf_counter() - begin) / max(1, count) * len(data.batches)
    return max(0, min(wanted, int(seconds * TRAINING_SHARE / each)))


def finetune(
    module: nn.Module,
    teacher: nn.Module,
    data: FinetuneData,
    step: FinetuneStep,
    settings: TrainSettings,
    epochs: int,
    checkpoint: Path,
    identity: dict[str, Any],
    stages: Stages,
    told: Callable[[], str] = lambda: "",
) -> int:
    """Train `module` in place, for so many epochs, on the labels and the teacher's outputs.

    Args:
        epochs: 0 trains nothing; less is trained where ``--time`` is short.
        checkpoint: where the training goes on from after a kill.
        told: the end of each epoch's line: best so far, the budget.

    Returns:
        The epochs that were trained (of a hook those that were asked for); the module is in eval mode.

    Raises:
        EdgemlError: it diverged; the module has the weights of its last good epoch.
        InputError: a hook of the user's own gives no network that fits.
    """
    if step.hook is not None:
        _by_hook(step.hook, module, teacher, checkpoint.with_suffix(""), stages)
        return epochs
    alpha = step.alpha if data.labels else 1.0
    teacher = teacher.eval()
    student = _sparse(module, stages) if step.sparse_2to4 and epochs else module
    trained, plain = student, data
    if step.features and epochs:
        trained = _with_features(student, teacher, data, settings, stages)
    elif epochs and alpha:
        data = replace(data, batches=with_stored_logits(data.batches, teacher, epochs, stages))
    loss = distillation_loss(teacher, step.temperature, alpha, data.task_loss)
    allowed = epochs
    if stages.seconds_left() is not None:
        allowed = stages.values(
            "epochs",
            {**identity, "epochs": epochs, "run": stages.run_id},
            "timing a training step",
            # Of plain batches: the first epoch's teacher may be stored, that of the others is not.
            lambda: epochs_in_time(trained, plain, loss, epochs, stages.seconds_left()),
        )
    if not allowed:
        if epochs:
            stages.log("no time is left for fine-tuning")
        if student is not module:
            raise EdgemlError("no time was left to train the 2:4 masks: the weights are dense")
        module.eval()
        return 0
    settings = settings.model_copy(update={"epochs": allowed})
    state = Checkpoint(checkpoint, {**identity, "settings": settings.model_dump(mode="json")})
    before = weights_of(trained)

    def line(text: str) -> None:
        left = stages.seconds_left()
        time_left = "" if left is None else f", {left / 60:.0f} min left"
        stages.log(f"fine-tuning, {text}{told()}{time_left}")

    try:
        with machine_lock("fine-tuning", stages.log, shared=True) as hold:
            fit(
                trained,
                data.batches,
                settings,
                loss=loss,
                checkpoint=state,
                log=line,
                on_step=lambda *_: hold.pause(),
            )
    except InputError as e:
        if "loss became" not in str(e):
            raise
        kept = state.load()
        trained.load_state_dict(kept[1] if kept else before, strict=False)
        _take_over(module, student)
        raise EdgemlError(f"fine-tuning diverged, the last good epoch is kept: {e}") from e
    # A training leaves NHWC weights behind where that was faster; files and exports know one order.
    student.to(memory_format=torch.contiguous_format)
    _take_over(module, student)
    return allowed


def _sparse(module: nn.Module, stages: Stages) -> nn.Module:
    """A copy with 2:4 masks; `module` itself where pruning left no layer that they cover, which is told."""
    try:
        sparse = sparsify_2to4(module)
    except MissingPart:
        raise
    except InputError as e:
        stages.log(f"note: {e}")
        return module
    stages.log(f"2:4: the weights of {len(covered_layers(sparse))} layers are masked")
    return sparse


def _take_over(module: nn.Module, student: nn.Module) -> None:
    """The trained weights, the zeros of 2:4 among them, into the network itself."""
    if student is not module:
        module.load_state_dict(finish_2to4(student).state_dict(), strict=False)
    module.eval()


def _with_features(
    module: nn.Module,
    teacher: nn.Module,
    data: FinetuneData,
    settings: TrainSettings,
    stages: Stages,
) -> nn.Module:
    """`module` with its blocks matched; as it is where pruning left none of them, which is told."""
    inputs, _ = next(iter(data.batches.epoch(settings.seed)))
    try:
        wrapped = feature_student(module, teacher, inputs)
    except InputError as e:
        stages.log(f"note: {e}")
        return module
    stages.log(f"features: the outputs of {len(wrapped.blocks)} blocks are learnt from")
    return wrapped


def _by_hook(hook: str, module: nn.Module, teacher: nn.Module, out: Path, stages: Stages) -> None:
    """``fn(model, teacher, out, deadline_s) -> model`` of the user's own."""
    function, file = user_attribute(hook, InputError)
    out.mkdir(parents=True, exist_ok=True)
    left = stages.seconds_left()
    deadline = float("inf") if left is None else left * TRAINING_SHARE
    stages.log(f"fine-tuning by {hook}")
    with (
        machine_lock("fine-tuning", stages.log),
        user_code_runs(hook, file, file.resolve().parent, InputError),
    ):
        result = function(module, teacher, out, deadline)
    if not isinstance(result, nn.Module):
        raise InputError(
            f"{hook} returned {type(result).__name__}; it must return the trained torch.nn.Module"
        )
    wanted = {name: tuple(tensor.shape) for name, tensor in weights_of(module).items()}
    got = {name: tuple(tensor.shape) for name, tensor in weights_of(result).items()}
    if wanted != got:
        name = next(n for n in {**wanted, **got} if wanted.get(n) != got.get(n))
        raise InputError(
            f"{hook} returned another network: {name} is {got.get(name)}, the pruned one's "
            f"{wanted.get(name)}"
        )
    try:
        module.load_state_dict(result.state_dict(), strict=False)
    except RuntimeError as e:
        raise InputError(f"{hook}: {one_line(e)}") from e
    module.eval()
