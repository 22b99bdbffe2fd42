"""``--groups`` and ``--max-drop-worst``: the limit on what any group may lose, on the test split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..artifact.content_hash import hash_file
from ..artifact.measurement import Measurement
from ..artifact.recipe import Recipe
from ..artifact.row_text import decimals, points, printable
from ..errors import InputError
from ..train.agreement import Agreement
from ..train.evaluate import Evaluation, class_label, read_samples
from ..train.groups import class_groups, judge_groups, read_groups
from ..train.sample_stream import stream_of
from .drift import require_captum


def check_groups(recipe: Recipe, task: Any | None) -> None:
    """Refuse groups that cannot be joined, a limit without groups, and what needs data where there is
    none, before any work.

    Raises:
        MissingPart: ``--drift`` without Captum.
        InputError: there is no data; the file, its columns or its rows do not fit; or the limit has
            neither classes nor ``--groups`` to hold for.
    """
    if recipe.drift is not None:
        require_captum()
    asked = {"--drift": recipe.drift, "--samples": recipe.samples}
    if task is None and (given := next((flag for flag, value in asked.items() if value), None)):
        raise InputError(f"{given} looks at test samples; give --data or --task")
    flag = f"--groups {recipe.groups}" if recipe.groups else None
    if recipe.max_drop_worst_points is not None and flag is None:
        flag = f"--max-drop-worst {points(recipe.max_drop_worst_points)}"
    if flag is None:
        return
    if task is None:
        raise InputError(f"{flag} is judged on data; give --data or --task")
    if recipe.groups is not None:
        column = read_groups(recipe.groups)
        own = column.key == "index" and stream_of(task) is None
        # A task of a user's own does not say how many samples it has; a run is dearer than one look.
        n = sum(1 for _ in read_samples(task, "test", None)) if own else None
        column.of_samples(task, "test", n)
    elif not _names_classes(task):
        raise InputError(
            f"{flag}: the targets are no classes, so there are no groups; name them by "
            "--groups FILE.csv:COLUMN"
        )


def _names_classes(task: Any) -> bool:
    if isinstance(task, Agreement) or not hasattr(task, "answer"):
        return False
    return all(class_label(target) is not None for _, target in read_samples(task, "validation", 1))


def groups_key(recipe: Recipe) -> list[Any]:
    """What the verdict on groups depends on beside outputs and data."""
    file = (recipe.groups or "").rpartition(":")[0]
    content = hash_file(Path(file)) if file else None
    return [recipe.groups, content, recipe.max_drop_worst_points]


def fairness(
    recipe: Recipe, evaluation: Evaluation, task: Any, reference_id: str, engine_id: str
) -> dict[str, Any] | None:
    """The ``fairness`` of ``docs/result-schema.md``; None where there are no groups."""
    if recipe.groups is not None:
        groups = read_groups(recipe.groups).of_samples(task, "test", evaluation.n)
    else:
        groups = class_groups(task, evaluation.targets)
    if groups is None:
        return None
    return judge_groups(
        evaluation,
        task,
        reference_id,
        engine_id,
        groups,
        by=recipe.groups or "class",
        limit_points=recipe.max_drop_worst_points,
        seed=recipe.seed,
    )


def unfair(final: dict[str, Any] | None, strict: bool) -> bool:
    """Whether the run exits 3 for a group: one is violated, or `strict` and one cannot be told."""
    verdict = ((final or {}).get("fairness") or {}).get("verdict")
    return verdict == "violated" or (strict and verdict == "cannot tell")


def group_warnings(final: dict[str, Any] | None) -> list[str]:
    """What to read before any number: the worst group that is violated, or that lost more than the
    whole did; groups of which nothing can be told, and samples without one."""
    told = (final or {}).get("fairness")
    if not told:
        return []
    rows, limit = told["rows"], told["limit_points"]
    found = []
    violated = [row for row in rows if row["verdict"] == "violated"]
    apart = [row for row in rows if row["stands_out"]]
    if violated:
        found.append(
            f"group {_drop(violated[0])}: --max-drop-worst {points(limit)} is VIOLATED"
            f"{_others(violated, 'group is', 'groups are')}"
        )
    elif apart:
        found.append(
            f"group {_drop(apart[0])}, where all samples together lost "
            f"{decimals(told['overall_points'])}{_others(apart, 'group stands', 'groups stand', 'out')}"
        )
    unclear = [row for row in rows if row["verdict"] == "cannot tell"]
    if unclear:
        needed = unclear[0]["needed"]
        more = f", about {needed:,} samples of it would tell" if needed else ""
        found.append(
            f"--max-drop-worst {points(limit)} cannot be told of {len(unclear)} of {told['judged']} "
            f"groups, the worst {_drop(unclear[0])}{more}"
        )
    small = [row for row in rows if row["reason"] is not None]
    if small and (limit is not None or told["by"] != "class"):
        found.append(
            f"{len(small)} of {len(rows)} groups of fewer than {told['least_n']} samples are not judged"
        )
    if told["unmatched"]:
        found.append(f"{told['unmatched']} test samples have no group in {told['by']}: left out")
    return found


def on_groups(final: dict[str, Any] | None) -> str:
    """A clause for the last line where a group is violated."""
    told = (final or {}).get("fairness") or {}
    if told.get("verdict") != "violated":
        return ""
    row = next(row for row in told["rows"] if row["verdict"] == "violated")
    return f"; MISSED for a group: {_drop(row)}, the limit is {points(told['limit_points'])}"


def _drop(row: dict[str, Any]) -> str:
    drop = Measurement.model_validate(row["drop_points"])
    ends = "" if drop.low is None else f"{decimals(drop.low)} to {decimals(drop.high)}, "
    return f"{printable(row['group'])} lost {decimals(drop.value)} points ({ends}n = {drop.n:,})"


def _others(rows: list[dict[str, Any]], one: str, many: str, end: str = "") -> str:
    n = len(rows) - 1
    tail = f" {end}" if end else " too"
    return "" if n == 0 else f"; {n} other {one if n == 1 else many}{tail}"
