"""The last work of a sweep: time the front's engines all together, judge them in pairs, read test once.

Engines come from the trials' bundles, so nothing is trained or quantized here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact.atomic_file import read_json, write_json
from ..artifact.machine_lock import machine_lock
from ..artifact.measurement import Measurement
from ..errors import EdgemlError, one_line
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
    """Of the request's ``finalists``, row id → ``bundle``, ``size_bytes``, ``energy``: speed, accuracy and front.

    Returns:
        ``rows``: what is measured anew, by row id; ``failed``: row id → why an engine was left out.
        What test says goes to the request's file ``tested``.

    Raises:
        EdgemlError: none of them runs.
    """
    job, task, finalists = given.job, given.job.opened.task, given.request["finalists"]
    feed, failed = batched(job.sample, job.recipe.batch), {}
    with ExitStack() as stack:
        engines: dict[str, Engine] = {REFERENCE: given.reference.engine}
        for name, one in finalists.items():
            try:
                engine = stack.enter_context(load_bundle(Path(one["bundle"])))
                engine.run(feed)
            except Exception as e:  # damaged since, or a library's own error: the others go on
                failed[name] = f"{type(e).__name__}: {one_line(e)}"
                given.stages.log(f"{name} is left out: {failed[name]}")
                continue
            engines[name] = engine
        given.stages.log(f"timing {len(engines)} engines together, in interleaved blocks")
        with machine_lock("timing", given.stages.log):
            timed = bench(
                engines,
                feed,
                duration_s=search.BENCH_SECONDS,
                reference=REFERENCE,
                seed=job.recipe.seed,
            )
        given.stages.log(f"comparing {len(engines)} engines on validation, in pairs")
        found = evaluate(
            engines, task, "validation", batch=job.recipe.batch, reference_id=REFERENCE
        )
        failed |= found.failed
        there = [name for name in engines if name not in failed]
        scored = {name: score_rows(found, task, name, time_limit_s=2.0) for name in there}
        # The reference is no engine of the front: it is what all are compared with.
        judged = [name for name in there if name != REFERENCE]
        if not judged:
            raise EdgemlError(f"no engine of the front runs: {next(iter(failed.values()))}")
        versus = _versus(given, timed, scored)
        fronts = judge_front(judged, versus)
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
        wanted = [
            name
            for name in judged
            if fronts[name][0] != "no" or finalists[name]["baseline"] is not None
        ]
        failed |= _test(given, {name: engines[name] for name in (REFERENCE, *wanted)})
        return {"rows": rows, "failed": failed, "warnings": list(timed.warnings)}


def _versus(
    given: Opened, timed: BenchResult, scored: Mapping[str, Mapping[str, Scored]]
) -> Callable[[str, str], Versus]:
    """One engine against another in the sweep's objectives. Energy is what each trial measured: windows
    of minutes, which are not taken anew."""
    finalists, objectives = given.request["finalists"], given.request["objectives"]
    energy = {
        name: Measurement.model_validate(one["energy"])
        for name, one in finalists.items()
        if "energy" in objectives
    }

    def versus(name: str, other: str) -> Versus:
        sizes = [finalists[one]["size_bytes"] for one in (name, other)]
        return Versus(
            compare(timed, name, other, given.recipe.seed).ratio,
            scored[other][name].change_points,
            sizes[0] / sizes[1] if "size" in objectives else None,
            (energy[name], energy[other]) if energy else None,
        )

    return versus


def _test(given: Opened, engines: Mapping[str, Engine]) -> dict[str, str]:
    """Score engines on test that were not scored on it before; what was scored stays scored.

    Returns:
        Row id → why it could not be scored.
    """
    file = Path(given.request["tested"])
    told = read_json(file) or {"reads": 0, "rows": {}}
    fresh = {name: one for name, one in engines.items() if name not in told["rows"]}
    if not fresh:
        given.stages.log("every engine was scored on test before")
        return {}
    given.stages.log(f"scoring {len(fresh)} engines on test, once")
    told["reads"] += 1
    write_json(file, told)  # before it is read: a kill hides no reading
    job = given.job
    found = evaluate(
        {REFERENCE: engines[REFERENCE], **fresh},
        job.opened.task,
        "test",
        batch=job.recipe.batch,
        reference_id=REFERENCE,
    )
    for name, one in score_rows(found, job.opened.task, REFERENCE).items():
        if name in fresh:
            told["rows"][name] = {
                "n": found.n,
                "split_hash": found.split_hash,
                "read": told["reads"],
                **one.model_dump(mode="json"),
                "by_class": (
                    found.by_class(job.opened.task, REFERENCE, name) if name != REFERENCE else []
                ),
            }
    write_json(file, told)
    return {name: f"on test: {reason}" for name, reason in found.failed.items()}
