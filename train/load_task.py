"""A task of the user's own file, held to the contract of `train.task.Task`."""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..artifact.tensor_spec import TensorSpec
from ..errors import EdgemlError, TaskError, one_line
from .task import Inputs, Outputs, Task
from .user_code import user_attribute, user_code_runs


def load_task(reference: str) -> Task:
    """The task that ``file.py:NAME`` names: an object, or a class or function that makes one.

    Naming the file RUNS it.

    Raises:
        TaskError: no such file or name, it raises, or a member of the contract is missing.
    """
    found, file = user_attribute(reference, TaskError)
    if inspect.isclass(found) or inspect.isfunction(found):
        with user_code_runs(reference, file, file.resolve().parent, TaskError):
            found = found()
    for name in ("samples", "score"):
        if not callable(getattr(found, name, None)):
            raise TaskError(f"{reference} has no method {name}; see docs/tasks.md")
    if not isinstance(getattr(found, "primary", None), str):
        raise TaskError(f"{reference} has no primary: the name of the metric that budgets speak of")
    if not isinstance(getattr(found, "lower_is_better", None), bool):
        raise TaskError(f"{reference} has no lower_is_better: True for an error rate, else False")
    scale = getattr(found, "points_per_unit", 100)
    if not isinstance(scale, (int, float)) or not math.isfinite(scale) or scale <= 0:
        raise TaskError(f"{reference}: points_per_unit is {scale!r}; give a number above 0")
    return found


def check_samples(
    task: Task, split: str, specs: Sequence[TensorSpec], names_only: bool = False
) -> Inputs:
    """Look at the first sample of a split, so that what does not fit is told before any work.

    Args:
        names_only: shapes and types of `specs` are not known.

    Returns:
        The sample's inputs.

    Raises:
        TaskError: there is none, or its names, shapes or types are not what the network takes.
    """
    from .evaluate import read_samples

    sample = next(read_samples(task, split, 1), None)
    if sample is None:
        use = "calibrates on train" if split == "train" else "needs validation and test"
        raise TaskError(f"the task yields no {split} samples; edgeml {use}")
    inputs, _ = sample
    names = [spec.name for spec in specs]
    if set(inputs) != set(names):
        raise TaskError(
            f"samples({split!r}) gives inputs {', '.join(inputs) or 'nothing'}; "
            f"the network takes {', '.join(names)}"
        )
    for spec in () if names_only else specs:
        array = inputs[spec.name]
        if array.dtype != spec.dtype:
            raise TaskError(
                f"samples({split!r}): input {spec.name!r} is {array.dtype}, "
                f"the network takes {spec.dtype}"
            )
        want = spec.shape[1:]
        if len(want) != array.ndim or any(
            n is not None and n != m for n, m in zip(want, array.shape, strict=True)
        ):
            shown = "×".join("?" if n is None else str(n) for n in want)
            seen = "×".join(map(str, array.shape))
            raise TaskError(
                f"samples({split!r}): input {spec.name!r} has shape {seen}, the network takes "
                f"{shown} (samples come without the batch axis)"
            )
    return inputs


def safe_score(task: Task, outputs: Sequence[Outputs], targets: Sequence[Any]) -> dict[str, float]:
    """The task's metrics over a set; all are numbers, and the primary one is finite.

    Raises:
        TaskError: `score` raises, gives no mapping of numbers, or no finite primary metric.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = task.score(outputs, targets)
    except EdgemlError:
        raise
    except (Exception, SystemExit) as e:
        raise TaskError(f"the task's score raises {type(e).__name__}: {one_line(e)}") from e
    if not isinstance(found, Mapping):
        raise TaskError(f"the task's score gives {type(found).__name__}, not {{metric: value}}")
    if task.primary not in found:
        have = ", ".join(map(str, found)) or "nothing"
        raise TaskError(
            f"the task's score gives {have}, but not its primary metric {task.primary!r}"
        )
    metrics = {}
    for name, value in found.items():
        if not isinstance(value, (int, float, np.number)):
            raise TaskError(f"the task's score gives {name} = {value!r}, which is no number")
        metrics[str(name)] = float(value)
    if not math.isfinite(metrics[task.primary]):
        raise TaskError(f"the task's score gives {task.primary} = {metrics[task.primary]}")
    # Metrics beside the primary one may be undefined (a class that does not occur): left out.
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
