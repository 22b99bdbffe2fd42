"""What a sweep chooses from, and the recipe that each choice is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..artifact.machine import usable_threads
from ..artifact.recipe import FinetuneStep, PruneStep, QuantizeStep, Recipe

# Shares of plain INT8's p50 that networks are pruned to. Below 0.4 ResNet-56 lost more than 5 points.
SHARES = tuple(round(0.95 - 0.05 * i, 2) for i in range(12))
# The original as it is: no trial, its engines are the baselines.
WHOLE = 1.0
KINDS = {
    "channels": ("channels", "heads", "hidden", "rnn_hidden"),
    "block": ("block",),
    "channels+block": ("channels", "heads", "hidden", "rnn_hidden", "block"),
}
RUNGS = ("quantization only", "short fine-tuning", "long fine-tuning")
# Of all epochs, in the short rung.
SHORT = 0.15


@dataclass(frozen=True)
class Engine:
    """One way to run a network, as `candidates.Candidate.id` names it."""

    id: str
    runtime: str
    precision: str
    route: str | None


@dataclass(frozen=True)
class Choice:
    """One configuration.

    Attributes:
        share: of plain INT8's p50 that the network is pruned to; None: not pruned.
        kinds: of `KINDS`.
        engine: the candidate's id.
        distil: whether the original teaches.
        threads: of the engine.
        rung: of `RUNGS`.
    """

    share: float | None
    kinds: str
    engine: str
    distil: bool
    threads: int
    rung: int = 0

    @cached_property
    def network(self) -> tuple[Any, ...]:
        """What must be trained anew: choices that share it differ in the engine alone."""
        taught = self.distil if self.rung else None
        return self.share, self.kinds, self.threads, taught, self.rung

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """Two choices of one key are the same work."""
        return (*self.network, self.engine)

    def params(self, engines: Mapping[str, Engine], epochs: int) -> dict[str, Any]:
        """As a row's ``params`` tell it."""
        engine = engines.get(self.engine)
        return {
            "latency": self.share,
            "kinds": self.kinds if self.share is not None else None,
            "engine": self.engine,
            "precision": engine.precision if engine else None,
            "runtime": engine.runtime if engine else None,
            "route": engine.route if engine else None,
            "distil": self.distil if self.rung else None,
            "threads": self.threads,
            "epochs": epochs,
        }


def threads_tried(recipe: Recipe) -> tuple[int, ...]:
    """All that may be used, and one: a small network is faster without the others."""
    most = usable_threads(recipe.threads)
    return (most,) if recipe.threads is not None or most == 1 else (most, 1)


def epochs_of(recipe: Recipe, rung: int) -> int:
    """Of all fine-tuning in a rung."""
    total = (recipe.step("finetune") or FinetuneStep()).epochs
    return (0, min(total, max(1, round(SHORT * total))), total)[rung]


def recipe_of(base: Recipe, choice: Choice) -> Recipe:
    """The recipe of a choice: by itself ``edgeml compress --recipe`` prunes, trains and ships the same.

    One round: rungs share the structure, and the long one starts from it anew.
    """
    tune = base.step("finetune") or FinetuneStep()
    quantize = base.quantize_step or QuantizeStep()
    steps: list[Any] = []
    if choice.share is not None:
        steps.append(PruneStep(kinds=KINDS[choice.kinds], rounds=1))
        taught = tune.alpha if choice.distil else 0.0
        update = {"epochs": epochs_of(base, choice.rung), "alpha": taught}
        steps.append(tune.model_copy(update=update))
    limits = dict.fromkeys(("latency", "latency_p99", "max_size", "max_energy", "time_s"))
    limits["latency"] = None if choice.share is None else f"{100 * choice.share:g}%"
    return base.model_copy(
        update={
            "steps": (*steps, quantize),
            **limits,
            "threads": choice.threads,
            "precisions": None,
            "engine": choice.engine,
        }
    )


def rungs_of(recipe: Recipe) -> tuple[int, ...]:
    """Rungs that differ: with few epochs the short fine-tuning is the long one."""
    epochs = [epochs_of(recipe, rung) for rung in range(len(RUNGS))]
    return (0, *(r for r in range(1, len(RUNGS)) if epochs[r] > epochs[r - 1]))


def every_choice(
    engines: Sequence[str],
    threads: Sequence[int],
    rungs: Sequence[int],
    shares: Sequence[float] = SHARES,
) -> list[Choice]:
    """All that a sweep may try; without training a teacher is none."""
    return [
        Choice(share, kinds, engine, distil, count, rung)
        for share in shares
        for kinds in KINDS
        for rung in rungs
        for distil in ((True, False) if rung else (True,))
        for count in threads
        for engine in engines
    ]


def distributions(engines: Sequence[str], threads: Sequence[int]) -> dict[str, Any]:
    """The space as Optuna knows it, the original in it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    return {
        "share": FloatDistribution(SHARES[-1], WHOLE, step=0.05),
        "kinds": CategoricalDistribution(list(KINDS)),
        "engine": CategoricalDistribution(list(engines)),
        "distil": CategoricalDistribution([True, False]),
        "threads": CategoricalDistribution(list(threads)),
        "rung": IntDistribution(0, len(RUNGS) - 1),
    }
