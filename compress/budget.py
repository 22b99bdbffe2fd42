"""The accuracy budget and the choice: which engine ships, and the line that says why."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..artifact.measurement import Measurement
from ..artifact.recipe import Recipe
from ..artifact.result_row import EngineRow, Verdict
from ..artifact.row_text import decimals, engine_label, points, significant
from ..errors import InputError, nearest
from ..train.paired_interval import can_prove, fewest_samples, samples_needed

# Point values and bounds are sums of floats: 1.0000000000000002 is a drop of 1.0 points.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Budget:
    """What must hold of the engine that ships.

    Attributes:
        max_drop_points: how many points of the primary metric may be lost; None sets no budget.
        max_p50_ms, max_p99_ms, max_size_bytes: limits of the engine; None sets none.

    Raises:
        InputError: it is negative, NaN or infinite.
    """

    max_drop_points: float | None = None
    max_p50_ms: float | None = None
    max_p99_ms: float | None = None
    max_size_bytes: float | None = None

    def __post_init__(self) -> None:
        limit = self.max_drop_points
        if limit is not None and not (math.isfinite(limit) and limit >= 0):
            raise InputError(f"--max-drop {limit} is no budget; give points ≥ 0, as in 0.5")

    def limits(self, row: EngineRow) -> list[tuple[str, float, float, float, str]]:
        """The engine's limits as ``(what, value, upper end, limit, unit)``; infinite where a row
        was not measured."""
        size = None if row.size_bytes is None else Measurement(value=row.size_bytes, unit="bytes")
        parts = [
            ("p50", row.latency_p50_ms, self.max_p50_ms, "ms"),
            ("p99", row.latency_p99_ms, self.max_p99_ms, "ms"),
            ("size", size, self.max_size_bytes, "bytes"),
        ]
        found = []
        for what, measured, limit, unit in parts:
            if limit is None:
                continue
            value = measured.value if measured and measured.value is not None else math.inf
            high = measured.high if measured and measured.high is not None else value
            found.append((what, value, high, limit, unit))
        return found


@dataclass(frozen=True)
class Choice:
    """What ships.

    Attributes:
        row: the row that the bundle holds: what ships or, when the budget is missed, the nearest;
            None when no engine that may ship was built.
        line: the last line of the table: what ships and why, or by how much it missed.
        exit_code: 0 when it ships, 3 when the budget is missed, 1 when no engine was built.
        nearest: `row` when the budget is missed: the one that misses by the least; else None.
    """

    row: EngineRow | None
    line: str
    exit_code: int = 0
    nearest: EngineRow | None = None


def judge(drop: Measurement, budget: Budget) -> Verdict | None:
    """Proven: the one-sided 95 % bound is within the budget; plausible: the value is; else missed.

    Returns:
        None where there is no budget or no value to judge.
    """
    limit = budget.max_drop_points
    if limit is None or drop.value is None:
        return None
    if drop.high is not None and drop.high <= limit + ROUNDING:
        return "proven"
    return "plausible" if drop.value <= limit + ROUNDING else "missed"


def lost(row: EngineRow, on_test: str | None, budget: Budget) -> bool:
    """Whether the accuracy budget is missed, whatever the engine's limits say."""
    drop = judge(row.drop_points, budget) if row.drop_points else None
    return "missed" in (drop, on_test)


def before_any_work(
    n: int, budget: Budget, *, right_or_wrong: bool = True, points_per_unit: float = 100.0
) -> str | None:
    """The warning to give before any work, where `n` samples cannot prove the budget anyhow.

    Args:
        right_or_wrong: the metric counts right answers. Of a metric of floats a sample nothing is
            known beforehand, and there is no warning.
    """
    limit = budget.max_drop_points
    if limit is None or not right_or_wrong or can_prove(n, limit, points_per_unit):
        return None
    needed = fewest_samples(limit, points_per_unit)
    what = f"n = {n:,} cannot prove a drop ≤ {points(limit)} points even if no answer changes"
    if needed is None:
        return f"{what}, nor can a billion; give a larger budget, as in --max-drop 0.5"
    return f"{what}: about {needed:,} needed"


def may_ship(rows: list[EngineRow], recipe: Recipe) -> list[EngineRow]:
    """The rows that a recipe's `engine` leaves.

    Raises:
        InputError: none has its name.
    """
    if recipe.engine is None:
        return rows
    found = [row for row in rows if row.id == recipe.engine]
    if not found:
        ids = [row.id for row in rows if row.status != "reference"]
        raise InputError(
            f"recipe: engine {recipe.engine!r} is none that was tried, {nearest(recipe.engine, ids)}"
        )
    return found


def choose(
    rows: Sequence[EngineRow],
    budget: Budget,
    allowed_precisions: Collection[str] | None = None,
    strict: bool = False,
    *,
    scored: bool = True,
    objective: str = "latency",
) -> Choice:
    """Which row ships, by the project's rule.

    The fastest proven one ships; where none is proven the fastest plausible one, unless `strict`.
    Among those whose speed intervals overlap the fastest's, the more accurate, then the smaller
    ships. Only rows of status measured may ship, and the original network itself where it is a
    file that a runtime loads: it loses nothing.

    Args:
        allowed_precisions: what may ship; None or empty lets any.
        strict: ship only what is proven.
        scored: False where there was no data to score on: then speed alone chooses.
        objective: latency (fastest: lowest p50) or throughput (most inferences a second).
    """
    measured = [r for r in rows if _is_engine(r) and _cost(r, objective) is not None]
    may_ship = [r for r in measured if not allowed_precisions or r.precision in allowed_precisions]
    if not may_ship:
        return _nothing_built(rows, measured, allowed_precisions)
    tried = [
        r
        for r in rows
        if (_is_engine(r) or r.status == "screened")
        and (not allowed_precisions or r.precision in allowed_precisions)
    ]
    verdicts = {r.id: _verdict(r, budget, scored) for r in measured}
    if not any(verdicts.values()) and (budget.max_drop_points is None or not scored):
        eligible, word = may_ship, ""
    else:
        eligible, word = [r for r in may_ship if verdicts[r.id] == "proven"], "proven"
        if not eligible and not strict:
            eligible, word = [r for r in may_ship if verdicts[r.id] == "plausible"], "plausible"
    if not eligible:
        return _missed(may_ship, budget, strict, objective)
    row = _best(eligible, objective)
    failed = sum(_failed(r, allowed_precisions) for r in rows)
    why = _why(row, eligible, may_ship, len(tried), failed, word, objective)
    line = f"ships {engine_label(row)}: {why}, {_drop_clause(row, budget, word)}"
    return Choice(row, line + _faster_clause(row, rows, measured, may_ship, verdicts, objective))


def by_builds(
    choice: Choice,
    budget: Budget,
    parts: Sequence[Mapping[str, Any]],
    strict: bool = False,
    *,
    scored: bool = True,
) -> Choice:
    """The choice after the nearest engine was built anew: it ships where only its time in the one
    bench that chose was over a limit, and over several builds is not.

    Args:
        budget: of accuracy alone.
        parts: the verdicts on the engine's limits, as `budget_parts.judge_parts` gives them.
    """
    enough = {"proven"} if strict else {"proven", "plausible"}
    if choice.exit_code != 3 or not parts or not {part["verdict"] for part in parts} <= enough:
        return choice
    row, word = choice.row, _verdict(choice.row, budget, scored)
    if budget.max_drop_points is not None and scored and word not in enough:
        return choice
    clause = _drop_clause(row, budget, word or "")
    return Choice(
        row, f"ships {engine_label(row)}: within the limits over several builds, {clause}"
    )


def best_first(rows: Sequence[EngineRow], choice: Choice | None = None) -> list[EngineRow]:
    """Rows in the table's order: what ships, the measured by p50, screened, reference, failed."""
    groups = ("measured", "screened", "reference", "failed")
    ships = choice.row.id if choice and choice.row else None

    def place(row: EngineRow) -> tuple[bool, int, float]:
        p50 = row.latency_p50_ms.value if row.latency_p50_ms else None
        shipped = row.shipped or row.id == ships
        return not shipped, groups.index(row.status), math.inf if p50 is None else p50

    return sorted(rows, key=place)


def _cost(row: EngineRow, objective: str) -> tuple[float, float, float] | None:
    """Milliseconds (or seconds an inference at full load): value and interval; less is faster."""
    if objective == "throughput":
        rate = row.throughput_per_s
        if rate is None or not rate.value:
            return None
        return 1 / rate.value, 1 / (rate.high or rate.value), 1 / (rate.low or rate.value)
    p50 = row.latency_p50_ms
    if p50 is None or p50.value is None:
        return None
    low = p50.value if p50.low is None else p50.low
    return p50.value, low, p50.value if p50.high is None else p50.high


def _is_engine(row: EngineRow) -> bool:
    """Whether a row may ship: measured, or the original as a file (torch's ships nowhere)."""
    return row.status == "measured" or (row.status == "reference" and row.runtime != "torch")


def _verdict(row: EngineRow, budget: Budget, scored: bool = True) -> Verdict | None:
    """The worst of all parts; None where no part can be judged."""
    parts: list[Verdict | None] = []
    if budget.max_drop_points is not None and scored:
        if row.status == "reference":
            parts.append("proven")
        else:
            parts.append(judge(row.drop_points, budget) if row.drop_points else None)
    for _, value, high, limit, _ in budget.limits(row):
        parts.append("proven" if high <= limit else "plausible" if value <= limit else "missed")
    for word in ("missed", None, "plausible"):
        if word in parts:
            return word
    return "proven" if parts else None


def _drop(row: EngineRow) -> float:
    """The drop's point value; a row that was not scored comes last."""
    if row.status == "reference":
        return 0.0
    value = row.drop_points.value if row.drop_points else None
    return math.inf if value is None else value


def _best(eligible: list[EngineRow], objective: str) -> EngineRow:
    fastest = min(eligible, key=lambda row: _cost(row, objective))
    _, low, high = _cost(fastest, objective)

    def overlaps(row: EngineRow) -> bool:
        _, its_low, its_high = _cost(row, objective)
        return its_low <= high and low <= its_high

    # Drops are multiples of 1/n that floats do not hold exactly: rounded, so that equal is equal.
    return min(
        (row for row in eligible if row is fastest or overlaps(row)),
        key=lambda row: (
            round(_drop(row), 6),
            math.inf if row.size_bytes is None else row.size_bytes,
            _cost(row, objective),
        ),
    )


def _why(
    row: EngineRow,
    eligible: list[EngineRow],
    may_ship: list[EngineRow],
    tried: int,
    failed: int,
    word: str,
    objective: str,
) -> str:
    if tried == 1:
        return f"the only one left of {1 + failed}" if failed else "the only one tried"
    fastest = min(eligible, key=lambda other: _cost(other, objective))
    if fastest is min(may_ship, key=lambda other: _cost(other, objective)):
        of = f"of {tried}"
    else:
        of = f"of {len(eligible)} {word} among {tried}"
    if row is fastest:
        return f"the fastest {of}"
    # Intervals that overlap show no difference in speed.
    better = "more accurate" if round(_drop(row), 6) < round(_drop(fastest), 6) else "smaller"
    return f"level with the fastest {of} and {better}"


def _drop_clause(row: EngineRow, budget: Budget, word: str) -> str:
    drop = row.drop_points
    if row.status == "reference":
        return "it is the original network"
    if drop is None or drop.value is None:
        reason = f": {drop.note}" if drop is not None and drop.note else ""
        return f"its drop was not measured{reason}"
    limit = budget.max_drop_points
    if limit is None:
        return f"drop {decimals(drop.value)} points, no budget set (n = {drop.n:,})"
    if word == "proven":
        return f"drop below {points(limit)} points proven (n = {drop.n:,})"
    return f"drop {decimals(drop.value)} points, below {points(limit)} {_not_proven(drop, limit)}"


def _not_proven(drop: Measurement, limit: float) -> str:
    needed = samples_needed(drop, limit)
    if needed is None:
        return f"not proven: n = {drop.n:,}, and no larger set would prove it at this value"
    return f"not proven: n = {drop.n:,}, about {needed:,} needed"


def _faster_clause(
    row: EngineRow,
    rows: Sequence[EngineRow],
    measured: list[EngineRow],
    may_ship: list[EngineRow],
    verdicts: dict[str, Verdict | None],
    objective: str,
) -> str:
    """What else is faster: a row that the precision flags keep from shipping, or the reference."""
    _, low, _ = _cost(row, objective)
    barred = [r for r in measured if r not in may_ship and verdicts[r.id] != "missed"]
    reference = [r for r in rows if r.status == "reference" and _cost(r, objective) is not None]
    faster = [r for r in barred + reference if _cost(r, objective)[2] < low]
    if not faster:
        return ""
    other = min(faster, key=lambda r: _cost(r, objective))
    if other.status == "reference":
        return f"; the reference {engine_label(other)} is faster: {_speed(other, objective)}"
    drop = "" if math.isinf(_drop(other)) else f", drop {decimals(_drop(other))} points"
    return f"; {engine_label(other)} would be faster: {_speed(other, objective)}{drop}"


def _speed(row: EngineRow, objective: str) -> str:
    if objective == "throughput":
        return f"{significant(row.throughput_per_s.value)} inferences/s"
    return f"{significant(row.latency_p50_ms.value)} ms"


def _missed(may_ship: list[EngineRow], budget: Budget, strict: bool, objective: str) -> Choice:
    """Exit 3: the nearest is kept, and the line says by how much it misses."""
    if any(_over(r, budget) for r in may_ship):
        return _limit_missed(may_ship, budget, objective)
    limit = budget.max_drop_points
    plausible = [r for r in may_ship if _verdict(r, budget) == "plausible"]
    if strict and plausible:
        nearest = min(plausible, key=_bound)
        drop = nearest.drop_points
        line = (
            f"budget missed: --strict wants a drop below {points(limit)} points proven; nearest is "
            f"{engine_label(nearest)}, drop {decimals(drop.value)}, 95 % bound "
            f"{decimals(_bound(nearest))}, {_not_proven(drop, limit)}"
        )
        return Choice(nearest, line, 3, nearest)
    nearest = min(may_ship, key=lambda r: (round(_drop(r), 6), _cost(r, objective)))
    drop = nearest.drop_points
    if drop is None or drop.value is None:
        why = f": {drop.note}" if drop is not None and drop.note else ""
        return Choice(nearest, f"budget missed: no drop could be measured{why}", 3, nearest)
    over = drop.value - limit
    line = (
        f"budget missed: none of {len(may_ship)} keeps the drop below {points(limit)} points; "
        f"nearest is {engine_label(nearest)}, drop {decimals(drop.value)} points, "
        f"{decimals(over) if over >= 0.01 else significant(over, 2)} too many (n = {drop.n:,})"
    )
    return Choice(nearest, line, 3, nearest)


def _over(row: EngineRow, budget: Budget) -> list[str]:
    """By how much a row is over each of the engine's limits, as clauses."""
    clauses = []
    for what, value, _, limit, unit in budget.limits(row):
        if value > limit:
            over = "not measured" if math.isinf(value) else f"{value / limit - 1:.1%} too much"
            clauses.append(f"{what} {significant(value)} {unit} of {significant(limit)}, {over}")
    return clauses


def _limit_missed(may_ship: list[EngineRow], budget: Budget, objective: str) -> Choice:
    """Exit 3 where the engine's limits are part of the budget: the nearest misses the fewest parts,
    then by the smallest share."""
    limit = budget.max_drop_points

    def lost(row: EngineRow) -> bool:
        return limit is not None and _drop(row) > limit + ROUNDING and not math.isinf(_drop(row))

    def distance(row: EngineRow) -> tuple[int, float, float]:
        shares = [value / most for _, value, _, most, _ in budget.limits(row) if value > most]
        if lost(row):
            shares.append(_drop(row) / limit if limit else math.inf)
        return len(shares), max(shares, default=1.0), _drop(row)

    nearest = min(may_ship, key=distance)
    clauses = _over(nearest, budget)
    if lost(nearest):
        over = _drop(nearest) - limit
        clauses.append(f"drop {decimals(_drop(nearest))} points, {decimals(over)} too many")
    line = (
        f"budget missed: none of {len(may_ship)} meets every part; nearest is "
        f"{engine_label(nearest)}: {'; '.join(clauses)}"
    )
    return Choice(nearest, line, 3, nearest)


def _bound(row: EngineRow) -> float:
    """The drop's upper bound; infinite where none is known."""
    return math.inf if row.drop_points.high is None else row.drop_points.high


def _failed(row: EngineRow, allowed: Collection[str] | None) -> bool:
    return row.status == "failed" and (not allowed or row.precision in allowed)


def _nothing_built(
    rows: Sequence[EngineRow], measured: list[EngineRow], allowed: Collection[str] | None
) -> Choice:
    wanted = f" {' or '.join(sorted(allowed))}" if allowed else ""
    failed = [r for r in rows if _failed(r, allowed)]
    why = ""
    if failed:
        first = failed[0]
        why = f"; {len(failed)} failed, {engine_label(first)}: {first.reason or 'no reason told'}"
    elif measured:
        why = f"; {engine_label(min(measured, key=_drop))} was built but may not ship"
    return Choice(None, f"ships nothing: no{wanted} engine was built{why}", 1)
