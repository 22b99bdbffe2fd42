"""The last work of a sweep: time the front's engines all together, judge them in pairs, read test once.

Engines come from the trials' bundles, so nothing is trained or quantized here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact.machine_lock import machine_lock
from ..runtime.bundle_engine import load_bundle
from ..runtime.engine import Engine
from ..runtime.latency import BenchResult, bench, compare
from ..train.evaluate import Scored, evaluate, score_rows
from . import search
from .front import Versus, judge_front
from .job import batched
from .sweep_table import REFERENCE

if TYPE_CHECKING:
    from .sweep_trial import Opened


def run_final(given: Opened) -> dict[str, Any]:
    """Of the request's ``finalists``, row id → ``bundle`` and ``size_bytes``: speed, accuracy and front.

    Returns:
        ``rows``: what is measured anew, by row id; ``tested``: of the front and the baselines, on test.
    """
    job, task, finalists = given.job, given.job.opened.task, given.request["finalists"]
    with ExitStack() as stack:
        engines: dict[str, Engine] = {REFERENCE: given.reference.engine}
        for name, one in finalists.items():
            engines[name] = stack.enter_context(load_bundle(Path(one["bundle"])))
        given.stages.log(f"timing {len(engines)} engines together, in interleaved blocks")
        with machine_lock("timing", given.stages.log):
            timed = bench(
                engines,
                batched(job.sample, job.recipe.batch),
                duration_s=search.BENCH_SECONDS,
                reference=REFERENCE,
                seed=job.recipe.seed,
            )
        given.stages.log(f"comparing {len(engines)} engines on validation, in pairs")
        found = evaluate(
            engines, task, "validation", batch=job.recipe.batch, reference_id=REFERENCE
        )
        there = [name for name in engines if name not in found.failed]
        scored = {name: score_rows(found, task, name, time_limit_s=2.0) for name in there}
        sizes = {name: one["size_bytes"] for name, one in finalists.items()}
        by_size = "size" in given.request["objectives"]
        # The reference is no engine of the front: it is what all are compared with.
        judged = [name for name in there if name != REFERENCE]
        versus = _versus(timed, scored, sizes if by_size else {}, job.recipe.seed)
        fronts = judge_front(judged, versus)
        tested = [
            name
            for name in judged
            if fronts[name][0] != "no" or finalists[name]["baseline"] is not None
        ]
        given.stages.log(f"scoring {len(tested)} engines on test, once")
        rows = {}
        for name in there:
            times = timed[name]
            rows[name] = {
                "latency_p50_ms": times.p50_ms.model_dump(mode="json"),
                "latency_p90_ms": times.p90_ms.model_dump(mode="json"),
                "latency_p99_ms": times.p99_ms.model_dump(mode="json"),
                "speedup": times.speedup.model_dump(mode="json") if times.speedup else None,
            }
            front, against = fronts.get(name, (None, []))
            rows[name] |= {"front": front, "front_against": against, "timed": "together"}
        return {
            "rows": rows,
            "tested": _tested(given, {name: engines[name] for name in (REFERENCE, *tested)}),
            "failed": found.failed,
            "warnings": list(timed.warnings),
        }


def _versus(
    timed: BenchResult,
    scored: Mapping[str, Mapping[str, Scored]],
    sizes: Mapping[str, int],
    seed: int,
) -> Any:
    def versus(name: str, other: str) -> Versus:
        return Versus(
            compare(timed, name, other, seed).ratio,
            scored[other][name].change_points,
            sizes[name] / sizes[other] if sizes else None,
        )

    return versus


def _tested(given: Opened, engines: Mapping[str, Engine]) -> dict[str, dict[str, Any]]:
    """Row id → what the test split says of it, against the reference."""
    job = given.job
    found = evaluate(
        engines, job.opened.task, "test", batch=job.recipe.batch, reference_id=REFERENCE
    )
    scored = score_rows(found, job.opened.task, REFERENCE)
    told = {}
    for name, one in scored.items():
        told[name] = {
            "n": found.n,
            "split_hash": found.split_hash,
            **one.model_dump(mode="json"),
            "by_class": (
                found.by_class(job.opened.task, REFERENCE, name) if name != REFERENCE else []
            ),
        }
    return told
