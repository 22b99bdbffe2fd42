"""The point of a result that a condition describes, as a bundle of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..artifact.atomic_file import disk_errors, publish_directory
from ..artifact.bundle import bundle_around, open_bundle
from ..artifact.result_row import EngineRow, ResultTable
from ..artifact.row_text import decimals, significant
from ..errors import BudgetMissed, InputError
from .open_results import inside
from .page_data import Shown
from .row_query import columns_of, read_query
from .table import clean, metric_text, row_label


@dataclass(frozen=True)
class Picked:
    """What was picked.

    Attributes:
        row: the most accurate row that matches and lies in a bundle.
        bundle: its directory.
        line: how many matched, which one this is, and what was passed over for want of a bundle.
    """

    row: EngineRow
    bundle: Path
    line: str


def pick(shown: Shown, condition: str) -> Picked:
    """The most accurate row that matches; of equals the faster, then the smaller.

    Accuracy is that of the validation split: a choice that read the test split would spoil it. The
    reference and what failed or was screened out never match.

    Args:
        condition: see `row_query`.

    Raises:
        InputError: the condition does not parse (its place is told).
        BudgetMissed: no row matches, or none of those that do lies in a bundle.
    """
    table = shown.table
    rows = [row for row in table.rows if row.status == "measured"]
    columns = {row.id: columns_of(row) for row in rows}
    query = read_query(condition, list(columns.values()))
    if not rows:
        raise BudgetMissed(f"{shown.name} holds no measured engine to pick from")
    matched = sorted(
        (row for row in rows if query.condition.holds(columns[row.id])),
        key=lambda row: _rank(table, row),
    )
    if not matched:
        near = min(rows, key=lambda row: query.condition.distance(columns[row.id]))
        raise BudgetMissed(
            f"none of {len(rows)} engines in {shown.name} matches; the nearest is {_told(table, near)}: "
            f"{query.missed_by(columns[near.id])}"
        )
    kept = [(row, bundle) for row in matched if (bundle := _bundle_of(shown, row)) is not None]
    if not kept:
        best = matched[0]
        again = f"; make it: edgeml compress --recipe {shown.root}/recipes/{best.recipe_hash}.yaml -o NEW"
        raise BudgetMissed(
            f"{len(matched)} of {len(rows)} engines match, but none lies in a bundle (a sweep keeps the "
            f"front's); the most accurate is {_told(table, best)}{again if best.recipe_hash else ''}"
        )
    row, bundle = kept[0]
    line = f"{len(matched)} of {len(rows)} engines match; "
    line += (
        f"the most accurate{' in a bundle' if row is not matched[0] else ''} is {_told(table, row)}"
    )
    if row is not matched[0]:
        line += f"; {_told(table, matched[0])} has no bundle (a sweep keeps the front's)"
    return Picked(row, bundle, line)


def copy_point(picked: Picked, output: Path, check: Callable[[Path], None]) -> Path:
    """Copy the bundle, verify the copy and give it its name as the last act.

    Args:
        output: must not exist.
        check: loads and runs the copy's engine; raises where it does not.

    Raises:
        InputError: `output` exists or lies in a bundle, or the bundle is damaged.
    """
    output = Path(output)
    if output.exists():
        raise InputError(f"{output} exists; remove it or choose another place with -o")
    if around := bundle_around(output):
        raise InputError(f"{output} lies in the bundle {around}, which stays as it is")
    if not output.absolute().parent.is_dir():
        raise InputError(f"{output}: there is no folder {output.parent}")
    part = output.with_name(f"{output.name}.part")
    with disk_errors(part):
        shutil.rmtree(part, ignore_errors=True)
        try:
            shutil.copytree(picked.bundle, part)
            open_bundle(part)
            check(part)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        publish_directory(part, output)
    return output


def _rank(table: ResultTable, row: EngineRow) -> Sequence[float]:
    """Smaller is better: the primary metric, then p50, then size; what is not known comes last."""
    never = float("inf")
    metric = row.metrics.get(table.primary or "")
    value = metric.value if metric else None
    accuracy = never if value is None else value if table.lower_is_better else -value
    p50 = row.latency_p50_ms.value if row.latency_p50_ms else None
    return (accuracy, never if p50 is None else p50, row.size_bytes or never)


def _bundle_of(shown: Shown, row: EngineRow) -> Path | None:
    if row.bundle and shown.root:
        return inside(shown.root, row.bundle)
    return shown.root if row.shipped and shown.hash else None


def _told(table: ResultTable, row: EngineRow) -> str:
    """A row in a few words: its name, metric, drop, p50."""
    said = [row_label(table, row)]
    metric = row.metrics.get(table.primary or "")
    if metric and metric.value is not None:
        name, value = clean(table.primary or ""), metric_text(metric.value, table.points_per_unit)
        said.append(f"{name} {value}")
    if row.drop_points and row.drop_points.value is not None:
        said.append(f"drop {decimals(row.drop_points.value)} points")
    if row.latency_p50_ms and row.latency_p50_ms.value is not None:
        said.append(f"p50 {significant(row.latency_p50_ms.value)} ms")
    return ", ".join(said)
