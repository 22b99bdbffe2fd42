"""The Pareto front of engines, with what the measurements cannot tell said so.

An engine dominates another when the interval of the median latency ratio lies below 1, the lower
bound of the paired accuracy change lies above −0.5 points and, where they are objectives, its files
are not larger and its energy's interval not higher. Of two that this cannot order, the one that the
point values call dominated *cannot be told* apart from the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..artifact.measurement import Measurement
from ..artifact.result_row import Front

# Points of the primary metric that an engine may be worse and still dominate: what a budget of half a
# point calls the same.
TOLERANCE_POINTS = -0.5


@dataclass(frozen=True)
class Versus:
    """One engine against another.

    Attributes:
        speedup: the other's p50 / its own, with an interval; above 1 is faster.
        change_points: its primary metric less the other's, paired; negative is worse. None where
            nothing was scored.
        size_ratio: its files / the other's; None: size is no objective.
        energy: both engines' millijoules an inference, its own first; None: no objective.
    """

    speedup: Measurement
    change_points: Measurement | None = None
    size_ratio: float | None = None
    energy: tuple[Measurement, Measurement] | None = None

    def dominates(self) -> bool:
        """By the intervals."""
        speed, change = self.speedup, self.change_points
        return (
            speed.low is not None
            and speed.low > 1
            and (change is None or _above(change.low, TOLERANCE_POINTS))
            and (self.size_ratio is None or self.size_ratio <= 1)
            and (self.energy is None or _not_higher(*self.energy))
        )

    def might_dominate(self) -> bool:
        """By the point values alone."""
        change = self.change_points
        mine, other = self.energy or (None, None)
        return (
            _above(self.speedup.value, 1)
            and (change is None or _above(change.value, TOLERANCE_POINTS))
            and (self.size_ratio is None or self.size_ratio <= 1)
            and (mine is None or _above(other.value, mine.value))
        )


def judge_front(
    ids: Sequence[str], versus: Callable[[str, str], Versus]
) -> dict[str, tuple[Front, list[str]]]:
    """Whether each engine is on the front, and which others speak against it.

    Args:
        versus: ``(a, b)`` gives a against b.

    Returns:
        By id ``yes``; ``no`` with those that dominate it; ``cannot tell`` with those that would by the
        point values, and by the intervals do not.
    """
    found: dict[str, tuple[Front, list[str]]] = {}
    for name in ids:
        against = {other: versus(other, name) for other in ids if other != name}
        above = [other for other, pair in against.items() if pair.dominates()]
        if above:
            found[name] = "no", above
            continue
        maybe = [other for other, pair in against.items() if pair.might_dominate()]
        found[name] = ("cannot tell", maybe) if maybe else ("yes", [])
    return found


def ranks(values: np.ndarray) -> np.ndarray:
    """Non-dominated rank of each row, 0 the front (Deb et al. 2002, section III-A).

    Args:
        values: float [n, objectives], all minimised.

    >>> ranks(np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [3.0, 3.0]])).tolist()
    [0, 0, 1, 2]
    """
    values = np.asarray(values, dtype=float)
    below = (values[:, None] <= values[None]).all(2) & (values[:, None] < values[None]).any(2)
    rank, left, number = np.zeros(len(values), int), np.ones(len(values), bool), 0
    while left.any():
        front = left & ~below[left].any(0)
        rank[front] = number
        left &= ~front
        number += 1
    return rank


def hypervolume(values: np.ndarray, reference: Sequence[float]) -> float:
    """The volume that points dominate up to a reference point, exactly, by slicing along the last
    objective (Zitzler 1999, appendix A; While et al. 2006): quick to about 100 points in 3-D.

    Args:
        values: float [n, objectives], all minimised; what does not lie below `reference` counts
            nothing.

    >>> hypervolume(np.array([[0.0, 0.5], [0.5, 0.0]]), (1.0, 1.0))
    0.75
    """
    # Optuna keeps its own private, and no library with a public one is installed.
    points = np.asarray(values, dtype=float).reshape(-1, len(reference))
    points = points[(points < np.asarray(reference)).all(1)]
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(reference[0] - points.min())
    points = points[np.argsort(points[:, -1], kind="stable")]
    ends = [*points[1:, -1], reference[-1]]
    return float(
        sum(
            (end - points[i, -1]) * hypervolume(points[: i + 1, :-1], reference[:-1])
            for i, end in enumerate(ends)
            if end > points[i, -1]
        )
    )


@dataclass(frozen=True)
class Scale:
    """How objectives become numbers between 0 (ideal) and 1 (reference point).

    Attributes:
        ideal, reference: a value an objective, all minimised.
    """

    ideal: tuple[float, ...]
    reference: tuple[float, ...]

    def unit(self, values: np.ndarray) -> np.ndarray:
        """Float [n, objectives] as shares of the way from ideal to reference."""
        ideal, reference = np.asarray(self.ideal), np.asarray(self.reference)
        return (np.asarray(values, dtype=float) - ideal) / (reference - ideal)

    def volume(self, values: np.ndarray) -> float:
        """The normalised hypervolume: 1 would be the ideal point itself."""
        return hypervolume(self.unit(values), (1.0,) * len(self.ideal))


def promoted(values: np.ndarray, scale: Scale) -> Iterator[int]:
    """Row numbers in the order in which they go on: by non-dominated rank, within one by the hypervolume
    that each adds to those before it. One at a time, because each costs a pass over its rank."""
    values = np.asarray(values, dtype=float)
    rank = ranks(values) if len(values) else np.empty(0, int)
    chosen: list[int] = []
    for number in sorted(set(rank.tolist())):
        members = np.flatnonzero(rank == number).tolist()
        while members:
            # A point beyond the reference adds nothing: it comes last in its rank.
            best = max(members, key=lambda i: _gain(values, chosen, i, scale))
            chosen.append(best)
            members.remove(best)
            yield best


def _gain(values: np.ndarray, chosen: Sequence[int], index: int, scale: Scale) -> float:
    """What a row adds to the volume of those that go on already, so that they lie apart."""
    return scale.volume(values[[*chosen, index]]) - scale.volume(values[list(chosen)])


def _above(value: float | None, limit: float) -> bool:
    return value is not None and value > limit


def _not_higher(mine: Measurement, other: Measurement) -> bool:
    return mine.high is not None and other.low is not None and mine.high <= other.low
