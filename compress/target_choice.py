"""What ships for a target whose speed is not known here: chosen by precision and accuracy, and said so."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..artifact.result_row import EngineRow
from ..artifact.row_text import decimals, engine_label, points
from ..artifact.target import Target
from .budget import Budget, Choice, judge
from .build_engines import Trial

# Fewer bits are believed to be faster; the device shows whether they are, so that the wider ones lie beside.
BITS = {"int8": 8, "fp8": 8, "fp16": 16, "bf16": 16, "fp32": 32}


def choose_for_target(
    rows: Sequence[EngineRow],
    budget: Budget,
    target: Target,
    allowed: Collection[str] | None = None,
    strict: bool = False,
    *,
    scored: bool = True,
) -> Choice:
    """The row that ships: of those proven to keep the accuracy budget, else plausible, the fewest bits; of equal
    ones the most accurate, then the smaller.

    Args:
        allowed: precisions that may ship; None lets any.
        strict: ship only what is proven.
        scored: False where there was no data to score on.
    """
    may_ship = [
        row for row in rows if _is_engine(row, target) and (not allowed or row.precision in allowed)
    ]
    where = f"for {target.name}"
    if not may_ship:
        failed = [row for row in rows if row.reason]
        why = f": {engine_label(failed[0])}: {failed[0].reason}" if failed else ""
        return Choice(None, f"ships nothing: no engine {where} was made{why}", 1)
    eligible, word = may_ship, ""
    if budget.max_drop_points is not None and scored:
        eligible, word = [r for r in may_ship if _verdict(r, budget) == "proven"], "proven"
        if not eligible and not strict:
            eligible, word = (
                [r for r in may_ship if _verdict(r, budget) == "plausible"],
                "plausible",
            )
    if not eligible:
        return _missed(may_ship, budget, where)
    row = min(eligible, key=lambda r: (BITS[r.precision], round(_drop(r), 6), r.size_bytes or 0))
    return Choice(row, f"ships {engine_label(row)} {where}: {_accuracy(row, budget, word)}")


def beside(trials: Sequence[Trial], shipped: Trial, target: Target) -> list[Trial]:
    """The best trial of every other precision that does not miss the budget: the device may find it faster."""
    best: dict[str, Trial] = {}
    for trial in trials:
        row = trial.row
        if not _is_engine(row, target) or row.verdict == "missed" or trial.engine is None:
            continue
        if row.precision == shipped.row.precision:
            continue
        other = best.get(row.precision)
        if other is None or _drop(row) < _drop(other.row):
            best[row.precision] = trial
    return [best[precision] for precision in sorted(best, key=lambda p: BITS[p])]


def _is_engine(row: EngineRow, target: Target) -> bool:
    if row.status == "reference":
        return not target.by_tensorrt and row.runtime in target.runtimes
    return row.status == "measured"


def _verdict(row: EngineRow, budget: Budget) -> str | None:
    if row.status == "reference":
        return "proven"
    return judge(row.drop_points, budget) if row.drop_points else None


def _drop(row: EngineRow) -> float:
    if row.status == "reference":
        return 0.0
    drop = row.drop_points
    return float("inf") if drop is None or drop.value is None else drop.value


def _accuracy(row: EngineRow, budget: Budget, word: str) -> str:
    drop = row.drop_points
    if row.status == "reference":
        return "it is the original network"
    if drop is None or drop.value is None:
        return f"its drop was not measured{': ' + drop.note if drop and drop.note else ''}"
    if not word:
        return f"drop {decimals(drop.value)} points, no budget set (n = {drop.n:,})"
    limit = points(budget.max_drop_points)
    if word == "proven":
        return f"drop below {limit} points proven (n = {drop.n:,})"
    return f"drop {decimals(drop.value)} points, below {limit} not proven (n = {drop.n:,})"


def _missed(may_ship: list[EngineRow], budget: Budget, where: str) -> Choice:
    """Exit 3: the nearest is kept, and the line says by how much it misses."""
    nearest = min(may_ship, key=lambda r: (round(_drop(r), 6), BITS[r.precision]))
    drop = nearest.drop_points
    if drop is None or drop.value is None:
        return Choice(nearest, "budget missed: no drop could be measured", 3, nearest)
    limit = budget.max_drop_points
    over = drop.value - limit
    much = f"{decimals(over)} too many" if over > 0 else "not proven"
    line = (
        f"budget missed: none of {len(may_ship)} {where} keeps the drop below {points(limit)} points; "
        f"nearest is {engine_label(nearest)}, drop {decimals(drop.value)} points, {much} (n = {drop.n:,})"
    )
    return Choice(nearest, line, 3, nearest)
