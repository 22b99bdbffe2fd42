"""What a model is for: samples and a score. A task is a plain object; there is nothing to inherit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

Inputs = dict[str, np.ndarray]
Outputs = dict[str, np.ndarray]
SPLITS = ("train", "validation", "test")


@runtime_checkable
class Task(Protocol):
    """The contract of a task.

    Attributes:
        primary: the metric of `score` that budgets speak of.
        lower_is_better: its direction (True for an error rate).

    Optional members, looked up by name (docs/tasks.md has examples):
        ``decode(output) -> Any``: what the network says of one sample (a text, boxes), made from its
        outputs as soon as they are there. Then `score`, `per_sample` and `answer` get that, and the
        outputs themselves are not kept: a recogniser's are 1 MB a sample and engine.
        ``per_sample(output, target) -> float``: the primary metric of one sample, such that its mean
        over the set is the metric; gives tighter, paired intervals. Without it, intervals come from
        a paired bootstrap of `score`.
        ``answer(output) -> Any``: what counts as the answer; where two engines' differ is a flip.
        ``points_per_unit``: how many points one unit of the metric is; 100 (the default) for
        fractions, 1 for a metric that is already in points (perplexity …).
        ``loss(model, batch, teacher=None)``: only for steps that train.
    """

    primary: str
    lower_is_better: bool

    def samples(self, split: str) -> Iterator[tuple[Inputs, Any]]:
        """Yield ``(inputs, target)`` of one of the splits train, validation, test, always in the
        same order. `inputs` maps the network's input names to arrays WITHOUT the batch axis, typed
        as the network takes them. A split that does not exist yields nothing."""

    def score(self, outputs: Sequence[Outputs], targets: Sequence[Any]) -> dict[str, float]:
        """Metrics over the whole set. `outputs` holds, a sample, the network's outputs by name
        WITHOUT the batch axis, or what `decode` made of them."""
