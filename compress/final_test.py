"""The test split, read once, after the choice: the shipped engine and the reference only.

With it go what only outputs of both can tell: each group's drop, the samples that flipped, and how well
confidences are calibrated.
"""

from __future__ import annotations

from typing import Any

from ..artifact.measurement import Measurement
from ..artifact.row_text import decimals, points
from ..train.confidences import confidences
from ..train.evaluate import Evaluation, evaluate, score_rows
from ..train.flips import flipped
from .budget import Budget, Choice, judge
from .build_engines import Trial
from .drift import explanation_drift
from .fairness import fairness, groups_key
from .job import Job
from .stage_keys import data_key, engines_key
from .stages import Stages


def final_test(
    job: Job, reference: Trial, shipped: Trial, budget: Budget, stages: Stages
) -> dict[str, Any] | None:
    """Score the shipped engine and the reference on the test split.

    Returns:
        The `final` of a `ResultTable`; None without data. When the reference itself ships there is
        no change to measure, and its score stands alone.
    """
    if job.opened is None:
        return None
    task, ids = job.opened.task, (reference.row.id, shipped.row.id)
    engines = {t.row.id: t.engine for t in (reference, shipped)}
    key = {
        "run": stages.run_id,
        **engines_key(job, [reference, shipped]),
        "data": data_key(job, stages),
        "groups": groups_key(job.recipe),
        "samples": job.recipe.samples,
    }

    def make() -> dict[str, Any]:
        reads = stages.count("test read")
        evaluation = evaluate(
            engines, task, "test", batch=job.recipe.batch, reference_id=reference.row.id
        )
        scored = score_rows(evaluation, task, reference.row.id)
        result = {
            "n": evaluation.n,
            "split_hash": evaluation.split_hash,
            "reads": reads,
            "by_class": evaluation.by_class(task, *ids) if len(set(ids)) == 2 else [],
        }
        for name, row_id in zip(("reference", "engine"), ids, strict=True):
            dumped = scored[row_id].model_dump(mode="json")
            result[name] = {"id": row_id, "metrics": dumped["metrics"]}
        result |= _looked_into(job, evaluation, *ids)
        return {
            **result,
            **{name: dumped[name] for name in ("change_points", "drop_points", "flips")},
        }

    line = "scoring the shipped engine and the reference on test, once"
    final = stages.values("test", key, line, make)
    drop = final["drop_points"]
    final["verdict"] = (
        judge(Measurement.model_validate(drop), budget)
        if drop and drop["value"] is not None
        else None
    )
    return final


def _looked_into(
    job: Job, evaluation: Evaluation, reference_id: str, engine_id: str
) -> dict[str, Any]:
    """Groups, flips and confidences; null where the original itself ships, which changes none."""
    if reference_id == engine_id:
        return {"fairness": None, "flipped": None, "confidences": None}
    ids = (reference_id, engine_id)
    task, recipe = job.opened.task, job.recipe
    return {
        "fairness": fairness(recipe, evaluation, task, *ids),
        "flipped": flipped(evaluation, task, *ids, show=recipe.samples),
        "confidences": confidences(evaluation, task, *ids, seed=recipe.seed),
    }


def explained(
    job: Job, reference: Trial, shipped: Trial, final: dict[str, Any] | None, stages: Stages
) -> dict[str, Any] | None:
    """`final` with ``drift`` where the recipe asks for it.

    Args:
        job: of the original network.
    """
    if final is None or job.recipe.drift is None or reference is shipped:
        return final and {**final, "drift": None}
    found = explanation_drift(job, reference, shipped, job.recipe.drift, final["n"], stages)
    return {**final, "drift": found}


def on_test(final: dict[str, Any] | None, choice: Choice, budget: Budget) -> str:
    """A clause for the last line where test says less than the validation that chose: of several
    candidates that lose too much, one is more easily taken for proven than of one."""
    limit = budget.max_drop_points
    if final is None or choice.row is None or choice.exit_code == 3 or limit is None:
        return ""
    drop, n = final["drop_points"], f"(n = {final['n']:,})"
    if final["verdict"] == "missed":
        value = decimals(drop["value"])
        return f"; MISSED on test: drop {value} points {n}, the budget is {points(limit)}"
    if final["verdict"] == "plausible" and choice.row.verdict == "proven":
        bound = "" if drop["high"] is None else f", drop at most {decimals(drop['high'])} points"
        return f"; NOT PROVEN on test {n}{bound}"
    return ""
