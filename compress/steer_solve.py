"""From a target in milliseconds to how much of every group is kept, by the latency table.

A layer's time depends on two groups at once (its input and its output channels), which no knapsack
holds. So the table is made linear around a solution, solved, and made linear around the new one:
first in small steps from the whole network towards the target, then on the spot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .latency_table import LatencyTable
from .solve_budget import Option, solve

# Of one linear step towards the target: further away the linear table is wrong.
STEP = 0.85
REFINEMENTS = 8


@dataclass(frozen=True)
class Worth:
    """What is lost with a group's units.

    Attributes:
        importance: float [size] by group; the same unit for all of them. Of a block one number.
        max_bytes: limit of the engine's files, None for none.
        sizes: the table in bytes, where there is such a limit.
    """

    importance: Mapping[str, np.ndarray]
    max_bytes: float | None = None
    sizes: LatencyTable | None = None
    _sorted: dict[str, np.ndarray] = field(default_factory=dict)

    def kept(self, name: str, units: int) -> float:
        """The importance that stays when the best `units` of a group do."""
        if name not in self._sorted:
            order = np.sort(np.asarray(self.importance[name], dtype=float))[::-1]
            self._sorted[name] = np.concatenate([[0.0], np.cumsum(order)])
        return float(self._sorted[name][units])

    def units(self, name: str, count: int) -> list[int]:
        """The best `count` units, ascending."""
        order = np.argsort(-np.asarray(self.importance[name], dtype=float), kind="stable")
        return sorted(order[:count].tolist())

    def total(self, table: LatencyTable, kept: Mapping[str, int]) -> float:
        """All importance that stays."""
        left = without_removed(table, kept)
        return sum(self.kept(name, left[name]) for name in left)


def without_removed(table: LatencyTable, kept: Mapping[str, int]) -> dict[str, int]:
    """`kept` with every group, those inside removed blocks left out."""
    whole = {name: kept.get(name, g.size) for name, g in table.groups.items()}
    found = {}
    for name, group in table.groups.items():
        block = group.block
        while block is not None and whole[block]:
            block = table.groups[block].block
        if block is None:
            found[name] = whole[name]
    return found


def solve_to(
    table: LatencyTable,
    worth: Worth,
    target_ms: float,
    start: Mapping[str, int] | None = None,
) -> dict[str, int] | None:
    """Keep the most importance in at most `target_ms` by the table.

    Args:
        start: where to begin; the whole network by default.

    Returns:
        Units kept by group; None where the table thinks that nothing so fast can be left.
    """
    kept = without_removed(table, start or {})
    now = table.predict(kept)
    while now * STEP > target_ms:
        further = _linear(table, worth, kept, now * STEP)
        if further is None or table.predict(further) >= now * 0.999:
            break
        kept, now = further, table.predict(further)
    best, aim = None, target_ms
    for _ in range(REFINEMENTS):
        found = _linear(table, worth, kept, aim)
        if found is None:
            break
        now = table.predict(found)
        small = worth.max_bytes is None or worth.sizes.predict(found) <= worth.max_bytes * 1.001
        if (
            now <= target_ms * (1 + 1e-6)
            and (small or found == kept)
            and (best is None or worth.total(table, found) > worth.total(table, best))
        ):
            best = found
        if found == kept and now <= target_ms:
            break
        # The linear table was wrong by so much there: aim past it.
        aim -= 0.8 * (now - target_ms) if now > target_ms else 0.5 * (now - target_ms)
        kept = found
    if best is not None:
        return best
    smallest = lowest(table)
    return smallest if table.predict(smallest) <= target_ms else None


def lowest(table: LatencyTable) -> dict[str, int]:
    """The least that may be left of every group."""
    return without_removed(table, {name: g.levels()[0] for name, g in table.groups.items()})


def put_back(table: LatencyTable, kept: Mapping[str, int]) -> list[tuple[float, dict[str, int]]]:
    """Every single removal undone by one level: ``(milliseconds more, what is kept then)``, the
    cheapest first."""
    found = []
    now = table.predict(kept)
    for name, units in kept.items():
        levels = table.groups[name].levels()
        more = [level for level in levels if level > units]
        if more:
            again = without_removed(table, {**kept, name: more[0]})
            found.append((table.predict(again) - now, again))
    return sorted(found, key=lambda pair: pair[0])


def _linear(
    table: LatencyTable, worth: Worth, kept: Mapping[str, int], target_ms: float
) -> dict[str, int] | None:
    """One knapsack, with the costs as they are around `kept`."""
    base, costs = table.costs(kept)
    limits, extra = [target_ms - base], None
    if worth.max_bytes is not None and worth.sizes is not None:
        rest, extra = worth.sizes.costs(kept)
        limits.append(worth.max_bytes - rest)
    groups, levels = {}, {}
    for name, by_level in costs.items():
        levels[name] = sorted(by_level)
        groups[name] = [
            Option(
                worth.kept(name, level),
                (by_level[level], *((extra[name][level],) if extra else ())),
            )
            for level in levels[name]
        ]
    inside = {name: g.block for name, g in table.groups.items() if g.block is not None}
    chosen = solve(groups, limits, inside)
    if chosen is None:
        return None
    found = {name: levels[name][index] for name, index in chosen.items()}
    # A group inside a removed block has no option; it is left out.
    return without_removed(table, {**found})
