"""Score engines on a task: one pass over the samples, every engine on each, all paired."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..artifact.measurement import Measurement
from ..errors import DataError, EdgemlError, InputError, ModelError, TaskError, one_line
from ..runtime.engine import Engine
from .paired_interval import (
    CONFIDENCE,
    PairedChange,
    bootstrap_scores,
    is_right_or_wrong,
    mean_interval,
    mean_mismatch,
    sample_values,
    scores_change,
    tango_interval,
    values_change,
    wilson_interval,
)
from .task import Inputs, Outputs, Task


@dataclass
class Evaluation:
    """What every engine gave on the same samples.

    Attributes:
        n: how many samples were run.
        targets: [n] what the task yields beside the inputs.
        outputs: by engine id, [n] mappings of output name to array without the batch axis, or what
            the task's `decode` made of them; engines that failed are not in it.
        failed: by engine id, why it could not be scored, in one line.
        split_hash: sha256 of all inputs and targets, in their order.
    """

    task: Task
    n: int
    targets: list[Any]
    outputs: dict[str, list[Any]]
    failed: dict[str, str]
    split_hash: str
    _metrics: dict[str, dict[str, float]] = field(default_factory=dict, repr=False)

    def metrics(self, engine_id: str) -> dict[str, float]:
        """The task's metrics of one engine over all samples.

        Raises:
            TaskError: the task's `score` raises or gives no finite primary metric.
            EdgemlError: that engine failed; the message says why.
        """
        if engine_id in self.failed:
            raise EdgemlError(f"{engine_id} was not scored: {self.failed[engine_id]}")
        if engine_id not in self._metrics:
            from .load_task import safe_score

            self._metrics[engine_id] = safe_score(self.task, self.outputs[engine_id], self.targets)
        return self._metrics[engine_id]

    def by_class(self, task: Task, reference_id: str, engine_id: str) -> list[dict[str, Any]]:
        """The change of each class, worst first: compression often hurts the rare ones.

        Returns:
            ``{"class", "n", "change_points": Measurement as JSON, "significant"}`` a class; empty
            for tasks that are not right/wrong with a class as their target. `significant`: the
            interval of Bonferroni's confidence 1 − 0.05/classes leaves out zero; the one given is
            at 95 %.
        """
        return _change_by_class(self, task, reference_id, engine_id)


class Scored(BaseModel):
    """One engine's scores, in the fields of `artifact.result_row.EngineRow`.

    The reference's own row has metrics only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: dict[str, Measurement] = Field(default_factory=dict)
    change_points: Measurement | None = None
    drop_points: Measurement | None = None
    flips: Measurement | None = None


@dataclass
class _Lane:
    """One engine on its way through the samples: what waits for a full batch, what came out."""

    engine: Engine
    batch: int
    pads: bool
    decode: Callable[[Outputs], Any] | None = None
    waiting: list[Inputs] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    def flush(self) -> None:
        """Run what waits as one batch; a static batch is padded with its last sample."""
        count = len(self.waiting)
        rows = self.waiting + [self.waiting[-1]] * (self.batch - count if self.pads else 0)
        self.waiting = []
        first = len(self.outputs)
        found: list[Outputs] = [{} for _ in range(count)]
        for name, array in self.engine.run(_stacked(rows)).items():
            if array.ndim == 0 or array.shape[0] != len(rows):
                shape = "×".join(map(str, array.shape)) or "a scalar"
                raise ModelError(f"output {name!r} is {shape}, without batch axis {len(rows)}")
            for index in range(count):
                row = np.array(array[index])
                if row.dtype.kind == "f" and not np.isfinite(row).all():
                    word = "NaN" if np.isnan(row).any() else "infinite"
                    raise ModelError(f"outputs {word} at sample {first + index} (output {name!r})")
                found[index][name] = row
        self.outputs += found if self.decode is None else map(self._decoded, found)

    def _decoded(self, outputs: Outputs) -> Any:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                return self.decode(outputs)
        except (Exception, SystemExit) as e:
            raise TaskError(f"the task's decode raises {type(e).__name__}: {one_line(e)}") from e


def evaluate(
    engines: Mapping[str, Engine],
    task: Task,
    split: str,
    *,
    batch: int = 1,
    limit: int | None = None,
    reference_id: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run every engine over a split in one pass: each sample is made once.

    An engine that raises, or gives NaN, is recorded as failed and the others go on.

    Args:
        engines: by row id.
        batch: samples at once, for engines whose batch axis is open; the others take their own.
        limit: stop after so many samples.
        reference_id: the engine without which the others mean nothing: its failure is raised.
        progress: called with the number of samples done.

    Raises:
        DataError: the split has no sample.
        TaskError: the task's `samples` raises or yields something else than (inputs, target).
        InputError: no engine takes the samples, or the reference does not.
    """
    decode = getattr(task, "decode", None)
    lanes = {name: _lane(engine, batch, decode) for name, engine in engines.items()}
    failed: dict[str, str] = {}
    targets: list[Any] = []
    digest = hashlib.sha256()
    for inputs, target in read_samples(task, split, limit):
        _digest_sample(digest, inputs, target)
        targets.append(target)
        for name, lane in list(lanes.items()):
            lane.waiting.append(inputs)
            if len(lane.waiting) == lane.batch:
                _guarded_flush(name, lanes, failed, reference_id)
        if progress:
            progress(len(targets))
    if not targets:
        raise DataError(f"the task yields no {split} samples; there is nothing to score")
    for name, lane in list(lanes.items()):
        if lane.waiting:
            _guarded_flush(name, lanes, failed, reference_id)
    outputs = {name: lane.outputs for name, lane in lanes.items()}
    if getattr(task, "targets_from_reference", False) and reference_id in outputs:
        targets = list(outputs[reference_id])
    return Evaluation(task, len(targets), targets, outputs, failed, digest.hexdigest())


def score_rows(
    evaluation: Evaluation,
    task: Task,
    reference_id: str,
    *,
    time_limit_s: float = 20.0,
    seed: int = 0,
) -> dict[str, Scored]:
    """Metrics with intervals, and each engine's paired change against the reference.

    Args:
        time_limit_s: bound of each engine's bootstrap, where the task has no `per_sample` (at least
            200 resamples are drawn).

    Returns:
        A `Scored` for every engine that did not fail, the reference's first.

    Raises:
        ModelError: the reference failed.
        TaskError: `score`, `per_sample` or `answer` breaks the task's contract.
    """
    if reference_id not in evaluation.outputs:
        reason = evaluation.failed.get(reference_id, "it was not run")
        raise ModelError(f"the reference {reference_id} cannot be scored: {reason}")
    evaluation.metrics(reference_id)  # a score that breaks the contract is not resampled first
    others = [name for name in evaluation.outputs if name != reference_id]
    limits = {"time_limit_s": time_limit_s, "seed": seed}
    reference = _replicas(evaluation, task, reference_id, limits)
    answers = _answers(evaluation, task, reference_id)
    metrics = _metric_intervals(evaluation, task, reference_id, reference)
    scored = {reference_id: Scored(metrics=metrics)}
    for name in others:
        replicas = _replicas(evaluation, task, name, limits, plain=reference.values is None)
        if replicas.values is None and reference.values is not None:
            # This engine's per_sample does not give its metric: both are resampled instead.
            reference = _replicas(evaluation, task, reference_id, limits, plain=True)
        change = _change(evaluation, task, reference_id, name, reference, replicas, seed)
        scored[name] = Scored(
            metrics=_metric_intervals(evaluation, task, name, replicas),
            change_points=change.change,
            drop_points=change.drop,
            flips=_flips(answers, _answers(evaluation, task, name)),
        )
    return scored


def near_chance(metric: float, classes: int, n: int) -> bool:
    """Whether an accuracy (a fraction) tells no more than guessing among `classes` would.

    True when Wilson's interval reaches down to chance level, or when less than a tenth of the way
    from chance to perfect is gone: with a wrong preprocessing a network of 1,000 classes may score
    3 %, far above chance by any test and still useless.

    >>> near_chance(0.03, 1000, 5000), near_chance(0.75, 1000, 5000), near_chance(0.55, 2, 50)
    (True, False, True)
    """
    if classes < 2 or n < 1:
        return False
    chance = 1 / classes
    low, _ = wilson_interval(min(max(metric, 0.0), 1.0) * n, n)
    return low <= chance or (metric - chance) / (1 - chance) < 0.1


def _change_by_class(
    evaluation: Evaluation, task: Task, reference_id: str, engine_id: str
) -> list[dict[str, Any]]:
    if not hasattr(task, "answer"):
        return []
    before = sample_values(task, evaluation.outputs[reference_id], evaluation.targets)
    after = sample_values(task, evaluation.outputs[engine_id], evaluation.targets)
    labels = [class_label(target) for target in evaluation.targets]
    if before is None or after is None or None in labels:
        return []
    if not (is_right_or_wrong(before) and is_right_or_wrong(after)):
        return []
    scale = getattr(task, "points_per_unit", 100.0)
    better = -1 if task.lower_is_better else 1
    groups: dict[Any, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label, []).append(index)
    found = []
    for label, indices in groups.items():
        step = better * (after[indices] - before[indices])
        gains, losses, n = int((step > 0).sum()), int((step < 0).sum()), len(indices)
        low, high = tango_interval(gains, losses, n)
        strict = tango_interval(gains, losses, n, 1 - (1 - CONFIDENCE) / len(groups))
        change = Measurement(
            value=(gains - losses) / n * scale,
            unit="points",
            n=n,
            low=low * scale,
            high=high * scale,
            method="tango",
        )
        found.append(
            {
                "class": class_name(task, label),
                "n": n,
                "change_points": change.model_dump(mode="json"),
                "significant": strict[0] > 0 or strict[1] < 0,
            }
        )
    return sorted(found, key=lambda entry: entry["change_points"]["value"])


@dataclass(frozen=True)
class _Replicas:
    """What the intervals of one engine are made from: values a sample, or resampled scores."""

    values: np.ndarray | None
    scores: np.ndarray | None
    note: str | None = None


def _replicas(
    evaluation: Evaluation, task: Task, name: str, limits: dict[str, Any], plain: bool = False
) -> _Replicas:
    note = None
    if not plain:
        values = sample_values(task, evaluation.outputs[name], evaluation.targets)
        if values is not None:
            note = mean_mismatch(values, evaluation.metrics(name)[task.primary])
            if note is None:
                return _Replicas(values, None)

    def score(outputs: Sequence[Outputs], targets: Sequence[Any]) -> float:
        return task.score(outputs, targets)[task.primary]

    scores = bootstrap_scores(score, evaluation.outputs[name], evaluation.targets, **limits)
    return _Replicas(None, scores, note)


def _change(
    evaluation: Evaluation,
    task: Task,
    reference_id: str,
    name: str,
    before: _Replicas,
    after: _Replicas,
    seed: int,
) -> PairedChange:
    how = {
        "lower_is_better": task.lower_is_better,
        "points_per_unit": getattr(task, "points_per_unit", 100.0),
    }
    if before.values is not None and after.values is not None:
        return values_change(before.values, after.values, **how)
    metrics = [evaluation.metrics(engine)[task.primary] for engine in (reference_id, name)]
    note = before.note or after.note
    how |= {"note": note, "seed": seed}
    return scores_change(*metrics, before.scores, after.scores, evaluation.n, **how)


def _metric_intervals(
    evaluation: Evaluation, task: Task, name: str, replicas: _Replicas
) -> dict[str, Measurement]:
    """Every metric; the primary one with its interval."""
    n = evaluation.n
    found = {
        metric: Measurement(value=value, unit="metric", n=n)
        for metric, value in evaluation.metrics(name).items()
    }
    value = evaluation.metrics(name)[task.primary]
    fraction = getattr(task, "points_per_unit", 100.0) == 100
    low = high = method = None
    if replicas.values is not None and is_right_or_wrong(replicas.values):
        (low, high), method = wilson_interval(float(replicas.values.sum()), n), "wilson"
    elif replicas.values is not None:
        reach = float(np.ptp(replicas.values)) or (1.0 if fraction else abs(value) or 1.0)
        (low, high), method = mean_interval(replicas.values, reach), "t, skewness-corrected"
    elif replicas.scores is not None:
        there = replicas.scores[np.isfinite(replicas.scores)]
        if len(there) >= max(len(replicas.scores) // 2, 2) and np.ptp(there) > 0:
            low, high = (float(end) for end in np.quantile(there, [0.025, 0.975]))
            method = f"bootstrap, {len(there)} resamples"
    found[task.primary] = Measurement(
        value=value,
        unit="fraction" if fraction else "metric",
        n=n,
        low=None if low is None else min(low, value),
        high=None if high is None else max(high, value),
        method=method,
        note=replicas.note,
    )
    return found


def _answers(evaluation: Evaluation, task: Task, name: str) -> list[Any] | None:
    answer = getattr(task, "answer", None)
    if answer is None:
        return None
    try:
        return [answer(output) for output in evaluation.outputs[name]]
    except Exception as e:
        raise TaskError(f"the task's answer fails: {type(e).__name__}: {one_line(e)}") from e


def _flips(before: list[Any] | None, after: list[Any] | None) -> Measurement | None:
    if before is None or after is None:
        return None
    n = len(before)
    changed = sum(bool(a != b) for a, b in zip(before, after, strict=True))
    low, high = wilson_interval(changed, n)
    return Measurement(value=changed / n, unit="fraction", n=n, low=low, high=high, method="wilson")


def class_label(target: Any) -> Any:
    """The target as a class, or None where it is none."""
    if isinstance(target, np.generic) or (isinstance(target, np.ndarray) and target.ndim == 0):
        target = target.item()
    return target if isinstance(target, (int, str)) else None


def class_name(task: Task, label: Any) -> str:
    names = getattr(task, "classes", None)
    if names and isinstance(label, int) and 0 <= label < len(names):
        return str(names[label])
    return str(label)


def _lane(engine: Engine, batch: int, decode: Callable[[Outputs], Any] | None) -> _Lane:
    axis = engine.input_specs[0].shape[0] if engine.input_specs[0].shape else None
    return _Lane(engine, axis or batch, pads=axis is not None, decode=decode)


def _guarded_flush(
    name: str, lanes: dict[str, _Lane], failed: dict[str, str], reference_id: str | None
) -> None:
    """Run what waits for engine `name`; on failure take it out, unless nothing is left then."""
    try:
        lanes[name].flush()
    except Exception as e:
        reason = one_line(e) if isinstance(e, EdgemlError) else f"{type(e).__name__}: {one_line(e)}"
        if name == reference_id:
            raise _as_input_error(e, f"the reference {name} cannot be scored: {reason}") from e
        del lanes[name]
        failed[name] = reason
        if not lanes:
            raise _as_input_error(e, f"no engine can be scored; {name}: {reason}") from e


def _as_input_error(error: Exception, message: str) -> EdgemlError:
    return type(error)(message) if isinstance(error, InputError) else EdgemlError(message)


def samples_at(task: Task, split: str, places: Collection[int]) -> dict[int, Inputs]:
    """The inputs at some places of a split, by place, in the split's order."""
    stream = read_samples(task, split, max(places, default=-1) + 1)
    return {place: inputs for place, (inputs, _) in enumerate(stream) if place in places}


def read_samples(task: Task, split: str, limit: int | None) -> Iterator[tuple[Inputs, Any]]:
    """The task's samples, with whatever it does wrong told as the task's fault."""
    index, iterator = 0, None
    while limit is None or index < limit:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                iterator = iter(task.samples(split)) if iterator is None else iterator
                sample = next(iterator)
        except StopIteration:
            return
        except EdgemlError:
            raise
        except (Exception, SystemExit) as e:
            reason = f"{type(e).__name__}: {one_line(e)}"
            raise TaskError(f"samples({split!r}) fails at sample {index}: {reason}") from e
        try:
            inputs, target = sample
        except (TypeError, ValueError) as e:
            kind = type(sample).__name__
            raise TaskError(f"samples({split!r}) yields {kind}, not (inputs, target)") from e
        arrays = inputs.values() if isinstance(inputs, Mapping) else [None]
        if not all(isinstance(array, np.ndarray) for array in arrays):
            raise TaskError(
                f"samples({split!r}): the inputs of sample {index} are not numpy arrays by name"
            )
        yield inputs, target
        index += 1


def _stacked(rows: list[Inputs]) -> dict[str, np.ndarray]:
    if len(rows) == 1:
        return {name: np.ascontiguousarray(array)[None] for name, array in rows[0].items()}
    try:
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    except (KeyError, ValueError) as e:
        raise DataError(
            f"samples of different names or shapes do not stack to a batch of {len(rows)} "
            f"({one_line(e)}); use --batch 1"
        ) from e


def _digest_sample(digest: Any, inputs: Inputs, target: Any) -> None:
    for name in sorted(inputs):
        array = np.ascontiguousarray(inputs[name])
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.tobytes())
    if isinstance(target, np.ndarray):
        # repr of a large array leaves out its middle.
        digest.update(f"{target.dtype.str} {target.shape};".encode() + target.tobytes())
    else:
        digest.update(repr(target).encode())
