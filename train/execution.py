"""Precision, memory format and threads of a training: chosen once, by measuring, and stored."""

from __future__ import annotations

import copy
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EdgemlError
from .batches import Batch
from .losses import Loss
from .settings import TrainSettings

STEPS = 3  # timed, after one that warms up …
ENOUGH_S = 1.0  # … but no more once so many seconds were spent on one way
# What a variant must gain over the plain one to be worth its rounding: bf16 with channels_last
# gains 2.2-2.6 × on CPUs that have AVX512_BF16, and loses on those that emulate it.
WORTH = 1.1


@dataclass(frozen=True)
class Execution:
    """How steps run.

    Attributes:
        precision: ``fp32``, or ``bf16`` autocast (weights and optimizer stay fp32).
        channels_last: 2-D convolutions see NHWC memory.
        threads: torch's intra-operator threads.
    """

    precision: str
    channels_last: bool
    threads: int

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def place_module(self, module: nn.Module) -> None:
        if self.channels_last:
            module.to(memory_format=torch.channels_last)

    def place_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.channels_last:
            return inputs
        return {
            name: tensor.contiguous(memory_format=torch.channels_last)
            if tensor.dim() == 4
            else tensor
            for name, tensor in inputs.items()
        }

    def values(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return asdict(self)

    def __str__(self) -> str:
        layout = ", channels last" if self.channels_last else ""
        return f"{self.precision}{layout}, {self.threads} threads"


def choose_execution(
    module: nn.Module, loss: Loss, batch: Batch, settings: TrainSettings
) -> Execution:
    """The fastest way to run a step of `module`, among those that `settings` leaves open.

    Each is timed for a few forward and backward passes on a copy, so the module is not changed.
    """
    threads = torch.get_num_threads()
    convolves = any(isinstance(part, nn.Conv2d) for part in module.modules())
    formats = [False, True] if settings.channels_last is None and convolves else []
    precisions = ["fp32", "bf16"] if settings.precision == "auto" else [settings.precision]
    ways = [
        Execution(precision, channels_last, threads)
        for precision in precisions
        for channels_last in formats or [bool(settings.channels_last)]
    ]
    chosen = _fastest(module, loss, batch, ways)
    if settings.threads is None and threads > 1:
        # Small networks, and machines with other work on their cores, are faster with one.
        chosen = _fastest(module, loss, batch, [chosen, replace(chosen, threads=1)])
    return chosen


def _fastest(module: nn.Module, loss: Loss, batch: Batch, ways: list[Execution]) -> Execution:
    """The first, unless another is faster by a margin that is worth it."""
    if len(ways) == 1:
        return ways[0]
    seconds = {way: _time_step(module, loss, batch, way) for way in ways}
    best = min(ways, key=seconds.__getitem__)
    return best if seconds[best] * WORTH < seconds[ways[0]] else ways[0]


def _time_step(module: nn.Module, loss: Loss, batch: Batch, way: Execution) -> float:
    """Mean seconds of a few steps; infinite where a step fails or gives no number."""
    inputs, targets = batch
    copied = copy.deepcopy(module)
    way.place_module(copied)
    copied.train()
    threads = torch.get_num_threads()
    torch.set_num_threads(way.threads)
    total, count = 0.0, 0
    try:
        for step in range(1 + STEPS):
            start = time.perf_counter()
            with way.autocast():
                value = loss(copied, way.place_inputs(inputs), targets)
            value.backward()
            if not value.isfinite():
                return float("inf")
            seconds = time.perf_counter() - start
            if step or seconds > ENOUGH_S:
                total, count = total + seconds, count + 1
            if total > ENOUGH_S:
                break
    except (RuntimeError, EdgemlError):
        # An operator without a bf16 form, in the network or a task's loss; the plain way raises it again, where
        # it is told.
        return float("inf")
    finally:
        torch.set_num_threads(threads)
    return total / count
