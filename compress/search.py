"""The search: build, verify, screen, score and time every candidate, so that one can be chosen.

Screening is cheap (some validation samples, a one-second bench) and leaves behind only what cannot
win: an engine whose loss is already shown to be over the budget, or that is twice as slow as one
that may ship. Those left get the whole validation split and a longer, interleaved bench.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from ..artifact.machine_lock import machine_lock
from ..artifact.measurement import Measurement, not_measured
from ..artifact.result_row import EngineRow
from ..artifact.row_text import points
from ..errors import DataError, ModelError
from ..runtime.int8_share import float_layers, int8_share
from ..runtime.latency import bench, throughputs
from ..train.evaluate import Evaluation, evaluate, near_chance, read_samples, score_rows
from .accuracy_cause import tell_outliers
from .budget import Budget, before_any_work, judge
from .build_engines import Trial, build, fail, verify, verify_export
from .candidates import (
    QAT_ROUTE,
    Candidate,
    float_candidates,
    int8_candidates,
    quantization_steps,
)
from .job import Job, batched
from .mixed_precision import mend_accuracy
from .stage_keys import data_key, engines_key, machine_key
from .stages import Stages
from .step import QuantizationStep

SCREEN_SAMPLES = 100
SCREEN_SECONDS = 1.0
BENCH_SECONDS = 2.0
# A screened engine this many times slower than one that may ship is not scored in full.
HOPELESS = 2.0
# Under this share of INT8 multiply-accumulates an "INT8" engine mostly runs in float.
LOW_INT8_SHARE = 0.5


def search(job: Job, stages: Stages, budget: Budget, others: Sequence[Trial] = ()) -> list[Trial]:
    """Try every candidate of the recipe.

    Args:
        others: loaded engines of the original network, scored and timed beside a pruned one's.

    Returns:
        The reference's trial first, then the others as they were built; engines stay open.

    Raises:
        ParityError: the torch module's export does not compute what it does.
    """
    reference, samples = open_reference(job, stages)
    reference_id, engine = reference.row.id, job.own_engine(reference.engine)
    trials = [reference, *others]
    steps, lacking = _first_steps(job)
    candidates = [c for c in float_candidates(job.recipe) if c.id != reference_id]
    if job.module is None:
        reference.candidate = Candidate(reference.row.runtime, "fp32")
        reference.file = job.onnx
        reference.row.size_bytes = _reference_size(job)
    trials += _try(job, candidates + int8_candidates(job.recipe, steps), stages, engine, samples)
    trials += [Trial(lacking_row(route, reason)) for route, reason in lacking]
    _screen_and_score(job, trials, stages, budget)
    wanted = "proven" if job.recipe.strict else "plausible"

    def attempt(candidates: list[Candidate]) -> list[Trial]:
        extra = _try(job, candidates, stages, engine, samples)
        score(job, [reference, *extra], stages, None, "score")
        judge_all([reference, *extra], budget)
        return extra

    missed = not any_keeps(job, trials, budget, wanted)
    curable = not (missed and network_misses(trials, budget, stages))
    if job.settings and missed and curable:
        more, lacking = quantization_steps(job.settings, second_round=True)
        if more:
            stages.log("minmax calibration missed the budget: trying percentile and entropy")
            slow = attempt(int8_candidates(job.recipe, more))
            tell_outliers(trials, slow, stages)
            trials += slow
            trials += [Trial(lacking_row(route, reason)) for route, reason in lacking]
    if trains_quantized(job, missed=not any_keeps(job, trials, budget, wanted)):
        from .quantize_qat import QuantizeQat

        step = QuantizeQat(job, job.recipe.step("qat"), stages)
        trials += attempt(int8_candidates(job.recipe, [step]))
    if curable and _may_mend(job, budget) and not any_keeps(job, trials, budget, wanted):

        def keeps(some: list[Trial]) -> bool:
            return any_keeps(job, [reference, *some], budget, wanted)

        # Layers put back into what was trained would have to be trained anew.
        plain = [t for t in trials if t.row.route != QAT_ROUTE]
        trials += mend_accuracy(job, plain, stages, attempt, keeps)
    read_profiles(job, trials, stages)
    measure_speed(job, trials, stages, BENCH_SECONDS, "bench")
    return trials


def network_misses(trials: list[Trial], budget: Budget, stages: Stages) -> bool:
    """Whether a student whose engines miss the budget loses more than it before it is quantized, which is
    told: other ranges and layers in float bring an engine near the float network, and no further."""
    drops = [
        t.row.drop_points.value
        for t in trials[1:]
        if not t.stays
        and t.row.route is None
        and t.row.status == "measured"
        and t.row.drop_points is not None
        and t.row.drop_points.value is not None
    ]
    limit = budget.max_drop_points
    if limit is None or not drops or min(drops) <= limit:
        return False
    stages.log(
        f"the network loses {points(min(drops))} points in float already: INT8 is not what misses the budget"
    )
    return True


def trains_quantized(job: Job, missed: bool) -> bool:
    """Whether the recipe's step `qat` is due: on the network that ships, a student where there is one."""
    recipe, step = job.recipe, job.recipe.step("qat")
    if step is None or job.settings is None or job.module is None or job.opened is None:
        return False
    if job.teacher is None and (recipe.step("prune") or recipe.step("finetune")):
        return False
    return step.when == "always" or missed


def _may_mend(job: Job, budget: Budget) -> bool:
    """Whether more INT8 engines could help: one may ship, and its loss can be proven if it must be."""
    if job.settings is None or job.opened is None or budget.max_drop_points is None:
        return False
    allowed = job.recipe.precisions
    if allowed and "int8" not in allowed:
        return False
    return not (job.recipe.strict and unprovable(job, budget))


def open_reference(job: Job, stages: Stages) -> tuple[Trial, list[dict]]:
    """The reference's trial, told with its score, and the samples that engines are verified on.

    Raises:
        ParityError: the torch module's export does not compute what it does.
        DataError: the labels are in another order than the network's outputs.
    """
    reference_id, engine = job.reference_engine()
    reference = Trial(_reference_row(reference_id, job), engine=engine, file=None)
    samples = _verification_samples(job)
    if job.module is not None:
        stages.log("verifying the ONNX export against the torch module")
        verify_export(job, job.own_engine(engine), samples)
    suspicion = score(job, [reference], stages, SCREEN_SAMPLES, "reference")
    _tell_reference(job, reference, stages, suspicion)
    return reference, samples


def _first_steps(job: Job) -> tuple[list[QuantizationStep], list[tuple[str, str]]]:
    return quantization_steps(job.settings, job.info.op_counts) if job.settings else ([], [])


def _try(
    job: Job, candidates: list[Candidate], stages: Stages, reference: Any, samples: list[dict]
) -> list[Trial]:
    trials = build(job, candidates, stages)
    stages.log(
        f"verifying {sum(t.engine is not None for t in trials)} engines on {len(samples)} samples"
    )
    verify(job, trials, reference, samples)
    return trials


def _screen_and_score(job: Job, trials: list[Trial], stages: Stages, budget: Budget) -> None:
    score(job, trials, stages, SCREEN_SAMPLES, "screen")
    measure_speed(job, trials, stages, SCREEN_SECONDS, "screen-bench")
    if job.opened is None:
        return
    slow, missed = _hopeless(job, trials, budget)
    for trial in trials:
        if reason := missed.get(trial.row.id) or slow.get(trial.row.id):
            trial.row.status, trial.row.reason = "screened", reason
    score(job, [t for t in trials if t.row.status != "screened"], stages, None, "score")
    judge_all(trials, budget)
    # A proven engine goes before a faster one that is only plausible; the nearest may be any.
    if not any_keeps(job, trials, budget, "plausible"):
        late = [t for t in trials if t.row.status == "screened"]
    elif not unprovable(job, budget) and not any_keeps(job, trials, budget, "proven"):
        late = [t for t in trials if t.row.id in slow.keys() - missed.keys()]
    else:
        late = []
    if late:
        stages.log("none of the fast ones is proven to keep the budget: scoring the slower ones")
        for trial in late:
            trial.row.status, trial.row.reason = "measured", None
        score(job, [trials[0], *late], stages, None, "score")
        judge_all(trials, budget)


def score(job: Job, trials: list[Trial], stages: Stages, limit: int | None, name: str) -> None:
    """Score the trials on the validation split, all in one pass over the samples.

    The first trial is the reference. Results go into the rows; what an engine's outputs cannot be
    scored for fails with its reason.

    Returns:
        Why the labels do not seem to be the network's, where the task can tell; else None.
    """
    alive = [trial for trial in trials if trial.engine is not None]
    if job.opened is None or not alive:
        for trial in alive:
            trial.row.drop_points = not_measured("points", "no data")
        return None
    task, reference = job.opened.task, trials[0].row.id
    key = {
        **engines_key(job, alive),
        "data": data_key(job, stages),
        "limit": limit,
        "machine": machine_key(),
    }

    def make() -> Any:
        evaluation = evaluate(
            {t.row.id: t.engine for t in alive},
            task,
            "validation",
            batch=job.recipe.batch,
            limit=limit,
            reference_id=reference,
        )
        scored = score_rows(evaluation, task, reference)
        return {
            "n": evaluation.n,
            "split": evaluation.split_hash,
            "failed": evaluation.failed,
            "suspicion": _suspicion(evaluation, task, reference),
            "rows": {row_id: s.model_dump(mode="json") for row_id, s in scored.items()},
        }

    what = f"the first {limit}" if limit else "all"
    line = f"scoring {len(alive)} engine{'s' * (len(alive) > 1)} on {what} validation samples"
    values = stages.values(name, key, line, make)
    if limit is None:
        trials[0].split_hash = values["split"]
    for trial in alive:
        if reason := values["failed"].get(trial.row.id):
            fail(trial, reason)
            continue
        fields = EngineRow.model_validate(
            {"id": trial.row.id, "runtime": "-", "precision": "-", **values["rows"][trial.row.id]}
        )
        trial.row.metrics = fields.metrics
        if trial.row.id != reference:
            trial.row.change_points = fields.change_points
            trial.row.drop_points = fields.drop_points
            trial.row.flips = fields.flips
    return values["suspicion"]


def measure_speed(job: Job, trials: list[Trial], stages: Stages, seconds: float, name: str) -> None:
    """Time the trials in interleaved blocks; a stage of this run only, never reused by another."""
    alive = [t for t in trials if t.engine is not None and t.row.status != "screened"]
    if not alive:
        return
    reference = trials[0].row.id
    seconds = stages.seconds_each(seconds, len(alive))

    def make() -> Any:
        with machine_lock("timing", stages.log):
            return timed()

    def timed() -> Any:
        result = bench(
            {t.row.id: t.engine for t in alive},
            batched(job.sample, job.recipe.batch),
            duration_s=seconds,
            reference=reference,
            seed=job.recipe.seed,
        )
        rows: dict[str, Any] = {}
        for trial in alive:
            timing = result[trial.row.id]
            rows[trial.row.id] = {
                "latency_p50_ms": timing.p50_ms,
                "latency_p90_ms": timing.p90_ms,
                "latency_p99_ms": timing.p99_ms,
                "speedup": timing.speedup,
            }
        if job.recipe.objective == "throughput":
            sample = batched(job.sample, job.recipe.batch)
            parallel = {t.row.id: t.engine for t in alive if t.row.runtime != "torch"}
            rates = throughputs(parallel, dict.fromkeys(parallel, sample), seconds)
            for row_id, rate in rates.items():
                rows[row_id]["throughput_per_s"] = rate
        dumped = {
            row_id: {k: v.model_dump(mode="json") for k, v in fields.items() if v is not None}
            for row_id, fields in rows.items()
        }
        return {"rows": dumped, "warnings": result.warnings}

    key = {"run": stages.run_id, **engines_key(job, alive), "seconds": seconds}
    line = f"timing {len(alive)} engines, {seconds:.2g} s each, in interleaved blocks"
    values = stages.values(name, key, line, make)
    for trial in alive:
        for field, value in values["rows"][trial.row.id].items():
            setattr(trial.row, field, Measurement.model_validate(value))
        if not values["warnings"]:
            continue
        trial.row.warnings = sorted({*trial.row.warnings, *values["warnings"]})


def _hopeless(
    job: Job, trials: list[Trial], budget: Budget
) -> tuple[dict[str, str], dict[str, str]]:
    """Row id → why it cannot win: the slow ones, and those whose loss is over the budget already.

    The reference stays, and fp32 engines that keep the budget, however slow.
    """
    named = job.recipe.engine
    alive = [t for t in trials[1:] if t.engine and not t.stays and t.row.id != named]
    allowed = set(job.recipe.precisions or ()) or None
    missed = {
        t.row.id: f"loses ≥ {t.row.drop_points.low:.1f} points on {t.row.drop_points.n} samples"
        for t in alive
        if budget.max_drop_points is not None
        and t.row.drop_points is not None
        and t.row.drop_points.low is not None
        and t.row.drop_points.low > budget.max_drop_points
    }
    may_ship = [
        t.row.latency_p50_ms.value
        for t in alive
        if t.row.id not in missed
        and t.row.latency_p50_ms
        and (allowed is None or t.row.precision in allowed)
    ]
    slow = {
        t.row.id: f"{t.row.latency_p50_ms.value / min(may_ship):.1f} × slower than the fastest that may ship"
        for t in alive
        if may_ship
        and t.row.precision != "fp32"
        and t.row.latency_p50_ms
        and t.row.latency_p50_ms.value > HOPELESS * min(may_ship)
    }
    return slow, missed


def judge_all(trials: list[Trial], budget: Budget) -> None:
    """Give every scored engine its verdict."""
    for trial in trials[1:]:
        drop = trial.row.drop_points
        if drop is not None and drop.value is not None and trial.row.status == "measured":
            trial.row.verdict = judge(drop, budget)


def any_keeps(job: Job, trials: list[Trial], budget: Budget, verdict: str) -> bool:
    """Whether an engine that may ship keeps the budget, plausibly at least or proven to."""
    if budget.max_drop_points is None or job.opened is None:
        return True
    enough = ("proven",) if verdict == "proven" else ("proven", "plausible")
    allowed = job.recipe.precisions
    return any(
        t.engine is not None
        and not t.stays
        and t.row.verdict in enough
        and (not allowed or t.row.precision in allowed)
        for t in trials[1:]
    )


def unprovable(job: Job, budget: Budget) -> str | None:
    """The warning where so few right-or-wrong answers prove no loss small enough, even without one."""
    task = job.opened.task
    n = len(getattr(task, "indices", lambda split: ())("validation"))
    # A cosine a sample has no answer: of it nothing is known beforehand.
    return before_any_work(n, budget, right_or_wrong=hasattr(task, "answer")) if n else None


def read_profiles(job: Job, trials: list[Trial], stages: Stages) -> None:
    """The share of multiply-accumulates that INT8 engines really execute in INT8."""
    quantized = [t for t in trials if t.engine is not None and t.row.precision == "int8"]
    if quantized:
        stages.log(f"reading the profiles of {len(quantized)} INT8 engines")
    for trial in quantized:
        try:
            profile = trial.engine.profile(batched(job.sample, job.recipe.batch))
        except Exception as e:  # a profile is a check on top; without it the share is not known
            trial.row.int8_mac_share = not_measured("fraction", f"no profile: {e}")
            continue
        share = int8_share(profile)
        trial.row.int8_mac_share = Measurement(value=share, unit="fraction", n=1)
        if share < LOW_INT8_SHARE:
            layers = ", ".join(float_layers(profile)[:3])
            trial.row.warnings.append(
                f"{trial.row.id}: only {share:.0%} of the multiply-accumulates run in INT8; in float: {layers}"
            )


def _verification_samples(job: Job, n: int = 4) -> list[dict]:
    if job.opened is None:
        noise = islice(job.calibration(), n)
        return [{name: array[0] for name, array in inputs.items()} for inputs in noise]
    return [inputs for inputs, _ in read_samples(job.opened.task, "validation", n)]


def _suspicion(evaluation: Evaluation, task: Any, reference: str) -> str | None:
    look = getattr(task, "order_suspicion", None)
    return look(evaluation.outputs[reference], evaluation.targets) if look else None


def _tell_reference(job: Job, reference: Trial, stages: Stages, suspicion: str | None) -> None:
    """Print the reference's score first: a wrong preprocessing is the commonest cause of lost accuracy.

    Raises:
        DataError: the labels are in another order than the network's outputs.
    """
    if job.opened is None:
        return
    task = job.opened.task
    metric = reference.row.metrics.get(task.primary)
    if metric is None or metric.value is None:
        raise ModelError(f"the reference cannot be scored: {reference.row.reason}")
    stages.log(
        f"reference {reference.row.id}: {task.primary} {metric.value:.4g} (first {metric.n} validation samples)"
    )
    if suspicion:
        raise DataError(suspicion)
    classes = getattr(task, "num_outputs", None)
    if classes and near_chance(metric.value, classes, metric.n):
        stages.log(
            f"WARNING: that is near chance for {classes} classes: check --resize --crop --scale --mean "
            "--std --layout --color and the order of --classes"
        )


def _reference_row(row_id: str, job: Job) -> EngineRow:
    runtime = row_id.split("-")[0]
    return EngineRow(id=row_id, runtime=runtime, precision="fp32", status="reference")


def _reference_size(job: Job) -> int:
    from ..export.model_files import model_bytes

    return model_bytes(job.onnx)


def lacking_row(route: str, reason: str) -> EngineRow:
    return EngineRow(
        id=route.replace(" ", "-"),
        runtime="-",
        precision="int8",
        route=route,
        status="failed",
        reason=reason,
    )
