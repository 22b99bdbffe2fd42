"""One round's structure: what is removed, found by the table and settled by the real engine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..train.prune_history import Entry, replay
from .latency_table import LatencyTable, Prunable
from .prune_groups import Group, entry_of
from .steer_engine import Measured
from .steer_solve import Worth, lowest, put_back, solve_to

# Aimed below the limit, so that the 95 % bound of the shipped engine's p50 holds, too.
MARGIN = 0.02
# Between the aim and this share below it a structure is near enough.
NEAR = 0.03
MOST_BUILDS = 6
# Engines built to show that nothing more can be put back; the first that does not fit ends it.
MOST_PUT_BACK = 8

Measure = Callable[[Any, dict[str, Any]], Measured]


@dataclass
class Structure:
    """What a round removes.

    Attributes:
        history: entries for `train.prune_history.replay`.
        kept: units kept by group.
        ratio: p50 against the plain INT8 engine, measured; None where no engine was built.
        size_bytes: of the built engine.
        errors: the table's relative error at every engine that was built, before it was corrected.
        removed: rows for the table: group, kind, before, after, µs, importance.
        over: the ratio with the cheapest removal put back, where that was built and no longer fitted: not
            under the limit by `MARGIN`, or too large.
    """

    history: list[Entry]
    kept: dict[str, int]
    ratio: float | None = None
    size_bytes: int | None = None
    errors: list[float] = field(default_factory=list)
    removed: list[dict[str, Any]] = field(default_factory=list)
    over: float | None = None


def prunables(groups: Sequence[Group], layers: Mapping[str, Any]) -> dict[str, Prunable]:
    """The pruning library's groups as the table sees them."""
    blocks = [group.name for group in groups if group.kind == "block"]
    found = {}
    for group in groups:
        members = tuple(
            (
                piece.layer,
                "out" if piece.axis == "hidden" else piece.axis,
                round(int((piece.unit_of >= 0).sum()) / group.size),
            )
            for piece in group.slices
            if piece.layer in layers and piece.axis in ("in", "out", "hidden")
        )
        names = [piece.layer for piece in group.slices] or [group.name]
        around = [
            block
            for block in blocks
            if block != group.name and all(name.startswith(f"{block}.") for name in names)
        ]
        block = max(around, key=len, default=None)
        found[group.name] = Prunable(group.name, group.kind, group.size, members, block)
    return found


def comparable(groups: Sequence[Group], seen: Mapping[str, Prunable]) -> dict[str, np.ndarray]:
    """Importances of one scale for units and blocks.

    To cut all that lies inside a block is to skip it, so the units inside share what skipping costs
    (first-order sums of magnitudes are larger: what units do cancels). A block itself is then worth
    nothing more than its units. Units outside blocks are scaled as those inside are on the median.
    """
    worth = {group.name: np.asarray(group.importance, dtype=float) for group in groups}
    inner: dict[str, list[str]] = {}
    for name, group in seen.items():
        if group.block is not None and group.kind != "block":
            inner.setdefault(group.block, []).append(name)
    scales = []
    found = dict(worth)
    for block, names in inner.items():
        cost = max(float(worth[block][0]), 1e-9)
        for name in names:
            total = float(worth[name].sum())
            if total > 0:
                scales.append(cost / len(names) / total)
                found[name] = worth[name] * scales[-1]
        found[block] = np.zeros(1)
    usual = float(np.median(scales)) if scales else 1.0
    for name, group in seen.items():
        if group.block is None and group.kind != "block":
            found[name] = worth[name] * usual
    return found


def entries(groups: Sequence[Group], kept: Mapping[str, int], worth: Worth) -> list[Entry]:
    """The history of one round: widths first, then blocks."""
    alive: dict[Any, np.ndarray] = {}
    widths, blocks = [], []
    for group in groups:
        if group.name not in kept:
            continue  # it lies in a removed block
        if group.kind == "block":
            if not kept[group.name]:
                blocks.append(entry_of(group, [], alive))
        elif kept[group.name] < group.size:
            widths.append(entry_of(group, worth.units(group.name, kept[group.name]), alive))
    return widths + blocks


def find_structure(
    module: Any,
    groups: Sequence[Group],
    table: LatencyTable,
    worth: Worth,
    target_ms: float,
    measure: Measure,
    baseline_ms: float,
    *,
    last: bool,
    log: Callable[[str], None] = lambda line: None,
) -> Structure:
    """Solve, build, measure, correct the table, until the engine's time fits.

    Args:
        module: the network that `groups` are of; it stays as it is.
        target_ms: p50 that must not be exceeded.
        measure: builds and times a pruned copy, given the copy and what identifies it.
        last: the last round settles closely, and puts back what it can.
    """
    aim = target_ms * (1 - MARGIN)
    best: Structure | None = None
    errors: list[float] = []
    seen: dict[str, Structure] = {}

    def build(kept: dict[str, int]) -> Structure:
        history = entries(groups, kept, worth)
        key = repr(sorted(kept.items()))
        if key in seen:
            return seen[key]
        pruned = replay(copy.deepcopy(module), history).eval()
        found = measure(pruned, {"history": history})
        ms = found.ratio * baseline_ms
        if worth.sizes is not None:
            worth.sizes.correct(kept, float(found.size_bytes))
        errors.append(table.correct(kept, ms))
        log(
            f"built {ms:.4g} ms, {found.size_bytes:,} bytes ({found.ratio:.0%} of plain INT8; at most "
            f"{_limits(target_ms / baseline_ms, worth)}); the table was {errors[-1]:+.1%} off"
        )
        seen[key] = Structure(history, kept, found.ratio, found.size_bytes)
        return seen[key]

    def fits(structure: Structure) -> bool:
        small = worth.max_bytes is None or (structure.size_bytes or 0) <= worth.max_bytes
        return structure.ratio * baseline_ms <= aim and small

    def misses_by(structure: Structure) -> float:
        large = 0.0 if worth.max_bytes is None else (structure.size_bytes or 0) / worth.max_bytes
        return max(structure.ratio * baseline_ms / target_ms, large)

    for _ in range(MOST_BUILDS if last else 2):
        kept = solve_to(table, worth, aim) or lowest(table)
        known = repr(sorted(kept.items())) in seen
        structure = build(kept)
        if fits(structure):
            if best is None or worth.total(table, kept) > worth.total(table, best.kept):
                best = structure
            if not last or structure.ratio * baseline_ms >= aim * (1 - NEAR):
                break
        if known or kept == lowest(table):
            break  # the table has nothing else to say
    if best is None:
        best = min(seen.values(), key=misses_by)
    elif last:
        best = _put_back(table, worth, best, build, fits, aim)
    best.errors = errors
    best.removed = removed_rows(groups, table, worth, best.kept)
    return best


def _put_back(
    table: LatencyTable,
    worth: Worth,
    best: Structure,
    build: Callable[[dict[str, int]], Structure],
    fits: Callable[[Structure], bool],
    aim: float,
) -> Structure:
    """Undo the cheapest removals while the engine still fits; the first that does not is kept as
    the proof that no more is pruned than the budget needs."""

    def of_limits(kept: Mapping[str, int]) -> float:
        large = 0.0 if worth.max_bytes is None else worth.sizes.predict(kept) / worth.max_bytes
        return max(table.predict(kept) / aim, large)

    for _ in range(MOST_PUT_BACK):
        undone = [kept for _, kept in put_back(table, best.kept)]
        # What wins nothing is no removal that was put back.
        undone = [k for k in undone if worth.total(table, k) > worth.total(table, best.kept)]
        if not undone:
            break
        again = build(min(undone, key=of_limits))
        if not fits(again):
            best.over = again.ratio
            break
        best = again
    return best


def _limits(ratio: float, worth: Worth) -> str:
    parts = [f"{ratio:.0%}"] if np.isfinite(ratio) else []
    parts += [] if worth.max_bytes is None else [f"{worth.max_bytes:,.0f} bytes"]
    return " and ".join(parts) or "no limit"


def removed_rows(
    groups: Sequence[Group], table: LatencyTable, worth: Worth, kept: Mapping[str, int]
) -> list[dict[str, Any]]:
    """What was removed, group by group: units before and after, predicted µs that putting it back
    alone would cost, and the importance that went (with ``taylor`` in units of the loss)."""
    now = table.predict(kept)
    rows = []
    for group in groups:
        units = kept.get(group.name)
        if units is None or units == group.size:
            continue
        again = table.predict({**kept, group.name: group.size})
        lost = worth.kept(group.name, group.size) - worth.kept(group.name, units)
        if group.kind == "block":  # its units carry what it is worth
            inside = [n for n, g in table.groups.items() if g.block == group.name]
            lost += sum(worth.kept(n, table.groups[n].size) for n in inside)
        rows.append(
            {
                "group": group.name,
                "kind": group.kind,
                "layers": list(group.members)[:8],
                "before": group.size,
                "after": units,
                "saved_us": round((again - now) * 1e3, 3),
                "importance_lost": lost,
            }
        )
    return rows
