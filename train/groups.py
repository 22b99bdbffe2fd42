"""Groups of samples, and what compression took from each: nobody is left behind silently.

A group is judged against a limit by the interval of its own paired drop (`train.paired_interval`), at
levels that Holm's step-down procedure gives (Holm 1979, Scand J Stat 6:65): over all judged groups
together no true limit is told to be crossed, or kept, with a probability above 5 %.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact.measurement import Measurement
from ..errors import DataError, InputError, nearest
from .evaluate import class_label, class_name
from .paired_interval import (
    CONFIDENCE,
    bootstrap_scores,
    is_right_or_wrong,
    largest_influence,
    mean_mismatch,
    mean_upper,
    plausible_reach,
    sample_values,
    score_upper,
    tango_upper,
    two_digits_up,
    unseen_share,
)
from .sample_stream import SampleStream, stream_of
from .sources.images_csv import read_rows

if TYPE_CHECKING:
    from .evaluate import Evaluation
    from .task import Task

# Below it an interval of a drop is wider than any limit that one would set.
LEAST_N = 50
# Samples without a group are left out of the judgement; more than these are a wrong file.
MOST_UNMATCHED = 0.01
# Of all bootstraps together, where a task has only a score of the whole set.
BOOTSTRAP_S = 40.0
_ROUNDING = 1e-9

Bounds = Callable[[float], tuple[float, float]]


@dataclass(frozen=True)
class GroupColumn:
    """A column of a CSV that names each sample's group.

    Attributes:
        by: ``FILE.csv:COLUMN``, as it was asked for.
        key: the column that samples are joined by: ``file`` or ``index``.
        groups: the group's name by file or by index as text.
    """

    by: str
    key: str
    groups: dict[str, str]

    def of_samples(self, task: Any, split: str, n: int | None = None) -> list[str | None]:
        """The group of each sample of a split, in its order; None where the CSV has none.

        Args:
            n: samples that were read; only for tasks of users' own, whose samples have no other name.

        Raises:
            InputError: more than 1 % have none, or the task's samples have no files.
        """
        stream = stream_of(task)
        indices = sample_indices(task, split, n or 0)
        if self.key == "file":
            if stream is None:
                raise InputError(
                    f"--groups {self.by}: it is joined by file, and a task's samples have none; give it a "
                    "column index (0 is the first of the test split)"
                )
            names = [_tidy(sample_file(stream, index)) for index in indices]
        else:
            names = [str(index) for index in indices]
        found = [self.groups.get(name) for name in names]
        lost = [name for name, group in zip(names, found, strict=True) if group is None]
        if len(lost) > MOST_UNMATCHED * len(found):
            raise InputError(
                f"--groups {self.by}: {len(lost):,} of {len(found):,} {split} samples have no row in it "
                f"(more than 1 %), the first is {self.key} {lost[0]!r}; it has {len(self.groups):,} "
                f"rows, the first is {self.key} {next(iter(self.groups), '')!r}"
            )
        return found


def read_groups(text: str) -> GroupColumn:
    """Open what ``--groups FILE.csv:COLUMN`` names.

    Raises:
        InputError: it is not of that form, cannot be read, lacks the column or both of ``file`` and
            ``index``, names two groups for one sample, or an index that is no number.
    """
    file, colon, column = text.rpartition(":")
    if not colon or not file or not column:
        raise InputError(f"--groups {text} is not FILE.csv:COLUMN, as in meta.csv:camera")
    try:
        rows, columns = read_rows(Path(file))
    except DataError as e:
        raise InputError(f"--groups {text}: {e}") from e
    if column not in columns:
        others = [name for name in columns if name not in ("file", "index")]
        hint = nearest(column, others) if others else "it has no column of groups"
        raise InputError(f"--groups {text}: {file} has no column {column!r}, {hint}")
    key = next((name for name in ("file", "index") if name in columns and name != column), None)
    if key is None:
        raise InputError(
            f"--groups {text}: {file} has neither a column file nor index to join samples by "
            f"(columns: {', '.join(columns)})"
        )
    groups: dict[str, str] = {}
    for line, row in enumerate(rows, 2):
        name, group = (row[key] or "").strip(), (row[column] or "").strip()
        if key == "index" and not re.fullmatch(r"\d+", name):
            raise InputError(f"--groups {text}: line {line}: index {name!r} is no whole number ≥ 0")
        name = str(int(name)) if key == "index" else _tidy(name)
        if not group:
            continue
        if groups.setdefault(name, group) != group:
            raise InputError(
                f"--groups {text}: line {line}: {key} {name!r} is in two groups, "
                f"{groups[name]!r} and {group!r}"
            )
    return GroupColumn(text, key, groups)


def sample_indices(task: Any, split: str, n: int) -> list[int]:
    """What each sample of a split is called in results: its index in the data source, or for a task of
    a user's own its place in the split."""
    stream = stream_of(task)
    return list(range(n)) if stream is None else stream.kept(split)


def sample_file(stream: SampleStream, index: int) -> str:
    """A sample's file, as the source names it."""
    return re.sub(r"^line \d+: ", "", str(stream.source.places[index]))


def _tidy(name: str) -> str:
    return str(PurePosixPath(name.replace("\\", "/"))) if name else ""


def class_groups(task: Any, targets: Sequence[Any]) -> list[str] | None:
    """Each sample's class as its group; None for tasks whose targets are no classes."""
    labels = [class_label(target) for target in targets]
    if not hasattr(task, "answer") or None in labels:
        return None
    return [class_name(task, label) for label in labels]


def judge_groups(
    evaluation: Evaluation,
    task: Task,
    reference_id: str,
    engine_id: str,
    groups: Sequence[str | None],
    *,
    by: str = "class",
    limit_points: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What each group lost, and whether that is within the limit.

    Args:
        groups: [n] each sample's group; None leaves a sample out.
        limit_points: what a group may lose; None judges none of them.

    Returns:
        The ``fairness`` of ``docs/result-schema.md``. *violated*: a group's whole interval lies above the
        limit; *met*: below; else *cannot tell*.
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        if group is not None:
            members.setdefault(group, []).append(index)
    large = [name for name, inside in members.items() if len(inside) >= LEAST_N]
    drops = _Drops(evaluation, task, reference_id, engine_id, max(1, len(large)), seed)
    overall = drops.overall_points
    rows = {name: drops.row(name, inside) for name, inside in members.items()}
    bounds = {name: drops.bounds(members[name], rows[name]["value"]) for name in large}
    apart = dict(zip(large, holm([bounds[name] for name in large], overall), strict=True))
    limit = overall if limit_points is None else limit_points
    against = dict(zip(large, holm([bounds[name] for name in large], limit), strict=True))
    found = []
    for name, row in rows.items():
        value, n = row.pop("value"), row["n"]
        level, low, high = against.get(name, (None, None, None))
        row["drop_points"] = Measurement(
            value=value,
            unit="points",
            n=n,
            low=None if low is None or math.isinf(low) else min(low, value),
            high=None if high is None or math.isinf(high) else max(high, value),
            confidence=CONFIDENCE if level is None else 1 - level,
            method=None if level is None else f"{drops.method}, Holm-corrected",
        ).model_dump(mode="json")
        row |= {"verdict": None, "stands_out": False, "needed": None, "reason": None}
        if level is None:
            row["reason"] = f"n = {n}: a group is judged from {LEAST_N} samples on"
        else:
            row["stands_out"] = apart[name][1] > max(overall, 0.0)
            if limit_points is not None:
                row["verdict"] = _verdict(low, high, limit_points)
        if row["verdict"] == "cannot tell":
            row["needed"] = _needed(value, low, high, limit_points, n)
        found.append(row)
    found.sort(key=lambda row: (row["reason"] is not None, -row["drop_points"]["value"]))
    verdicts = {row["verdict"] for row in found} - {None}
    return {
        "by": by,
        "limit_points": limit_points,
        "least_n": LEAST_N,
        "judged": len(large),
        "unmatched": sum(group is None for group in groups),
        "confidence": CONFIDENCE,
        "overall_points": overall,
        "verdict": _together(verdicts) if limit_points is not None else None,
        "rows": found,
    }


def holm(
    bounds: Sequence[Bounds], against: float, alpha: float = 1 - CONFIDENCE
) -> list[tuple[float, float, float]]:
    """Intervals at the levels of Holm's procedure for the hypotheses "the drop is `against`".

    Those whose interval at α / (hypotheses left) leaves `against` out are told apart from it, and the
    others get the larger α of the fewer that are left, until none is told any more.

    Args:
        bounds: a hypothesis each, from a tail's probability to the lower and the upper bound.

    Returns:
        ``(α it was tested at, low, high)`` of each.

    >>> wide, tight = (lambda tail: (-1.0, 1.0)), (lambda tail: (4.0, 6.0))
    >>> [round(level, 4) for level, *_ in holm([wide, tight, tight], 0.0)]
    [0.05, 0.0167, 0.0167]
    """
    found: dict[int, tuple[float, float, float]] = {}
    left = list(range(len(bounds)))
    while left:
        level = alpha / len(left)
        now = {i: (level, *bounds[i](level / 2)) for i in left}
        told = [i for i in left if now[i][1] > against or now[i][2] < against]
        found |= {i: now[i] for i in told or left}
        left = [i for i in left if i not in found]
    return [found[i] for i in range(len(bounds))]


class _Drops:
    """The loss of any part of the samples, positive is worse, in points."""

    def __init__(
        self,
        evaluation: Evaluation,
        task: Any,
        reference_id: str,
        engine_id: str,
        groups: int,
        seed: int,
    ) -> None:
        self._task, self._targets, self._seed = task, evaluation.targets, seed
        self._outputs = [evaluation.outputs[name] for name in (reference_id, engine_id)]
        self._scale = getattr(task, "points_per_unit", 100.0)
        self._sign = 1.0 if task.lower_is_better else -1.0
        self._limit_s = BOOTSTRAP_S / groups / 2
        metrics = [evaluation.metrics(name)[task.primary] for name in (reference_id, engine_id)]
        self.overall_points = self._sign * (metrics[1] - metrics[0]) * self._scale + 0.0
        values = [sample_values(task, outputs, self._targets) for outputs in self._outputs]
        usable = all(
            v is not None and mean_mismatch(v, m) is None
            for v, m in zip(values, metrics, strict=True)
        )
        self._values = values if usable else None
        self._binary = usable and all(is_right_or_wrong(v) for v in values)
        self.method = (
            "tango"
            if self._binary
            else ("paired t, skewness-corrected" if usable else "paired bootstrap")
        )

    def row(self, name: str, inside: list[int]) -> dict[str, Any]:
        before, after = (self._metric(which, inside) for which in (0, 1))
        value = self._sign * (after - before) * self._scale + 0.0
        return {
            "group": name,
            "n": len(inside),
            "reference": before,
            "engine": after,
            "value": value,
        }

    def _metric(self, which: int, inside: list[int]) -> float:
        if self._values is not None:
            return float(self._values[which][inside].mean())
        return float(self._score(*self._part(which, inside)))

    def _part(self, which: int, inside: list[int]) -> tuple[list[Any], list[Any]]:
        return [self._outputs[which][i] for i in inside], [self._targets[i] for i in inside]

    def _score(self, outputs: Sequence[Any], targets: Sequence[Any]) -> float:
        return self._task.score(outputs, targets)[self._task.primary]

    def bounds(self, inside: list[int], value: float) -> Bounds:
        """The lower and upper bound of that group's drop, in points, as a function of the tail."""
        n, scale = len(inside), self._scale
        if self._values is None:
            return self._score_bounds(inside, value)
        loss = self._sign * (self._values[1][inside] - self._values[0][inside])
        if self._binary:
            worse, better = int((loss > 0).sum()), int((loss < 0).sum())

            def ends(tail: float) -> tuple[float, float]:
                low = -tango_upper(better, worse, n, tail)
                return low * scale, tango_upper(worse, better, n, tail) * scale

            return ends
        both = np.concatenate([v[inside] for v in self._values])
        reach = float(np.abs(loss).max()) or plausible_reach(both, scale)

        def of_values(tail: float) -> tuple[float, float]:
            low = -mean_upper(-loss, reach, tail)
            return low * scale, mean_upper(loss, reach, tail) * scale

        return of_values

    def _score_bounds(self, inside: list[int], value: float) -> Bounds:
        n, scale = len(inside), self._scale
        drawn = [
            bootstrap_scores(
                self._score, *self._part(which, inside), time_limit_s=self._limit_s, seed=self._seed
            )
            for which in (0, 1)
        ]
        k = min(map(len, drawn))
        losses = self._sign * (drawn[1][:k] - drawn[0][:k])
        there = losses[np.isfinite(losses)]
        if len(there) < max(k // 2, 2):
            return lambda tail: (-math.inf, math.inf)
        if not there.any() and value == 0:
            most = plausible_reach(np.array([self._metric(0, inside)]), scale) * scale
            return lambda tail: (-unseen_share(n, tail) * most, unseen_share(n, tail) * most)
        reach, loss = largest_influence(losses, n, self._seed), value / scale

        def ends(tail: float) -> tuple[float, float]:
            low = -score_upper(-loss, -there, n, reach, tail)
            return low * scale, score_upper(loss, there, n, reach, tail) * scale

        return ends


def _verdict(low: float, high: float, limit: float) -> str:
    if low > limit + _ROUNDING:
        return "violated"
    return "met" if high <= limit + _ROUNDING else "cannot tell"


def _together(verdicts: set[str]) -> str:
    for word in ("violated", "cannot tell", "met"):
        if word in verdicts:
            return word
    return "cannot tell"  # no group is large enough to be judged


def _needed(value: float, low: float, high: float, limit: float, n: int) -> int | None:
    """About how many samples of the group would tell, if the drop seen is the true one: a bound's
    distance from its value shrinks with 1/√n."""
    distance = abs(limit - value)
    bound = high if value <= limit else low
    if distance < _ROUNDING or math.isinf(bound):
        return None
    needed = n * (abs(bound - value) / distance) ** 2
    return two_digits_up(needed) if needed < 1e9 else None
