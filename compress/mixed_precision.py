"""Where no INT8 engine keeps the accuracy budget: the known cause's cure, then layers back in float.

Channel ranges first, the commonest cause in convolutional networks: the nearest engine of each
runtime is built again from the equalised network (`equalise.py`). Where that is not enough, the
layers that INT8 hurts most for what it wins in them (`sensitivity.py`) go back into float, until
the budget is kept; every try is an engine that is built, scored and judged like any other.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from ..errors import EdgemlError, InputError, one_line
from .accuracy_cause import cause_of_layers, tell_gain
from .build_engines import Trial
from .candidates import Candidate, executable_precisions
from .equalise import QuantizeEqualised, can_equalise
from .job import Job
from .sensitivity import LayerLoss, rank_layers
from .stage_keys import engines_key
from .stages import Stages
from .step import QuantizationStep

# Tries between the last number of layers that misses and the first that keeps the budget.
BISECTIONS = 3
# Layers named in a line; the row has them all.
NAMED = 5

Attempt = Callable[[list[Candidate]], list[Trial]]
Keeps = Callable[[list[Trial]], bool]


def mend_accuracy(
    job: Job, trials: Sequence[Trial], stages: Stages, attempt: Attempt, keeps: Keeps
) -> list[Trial]:
    """More INT8 engines, until one keeps the budget or nothing is left to try.

    Args:
        trials: all so far, the reference first.
        attempt: builds, verifies, scores and judges candidates.
        keeps: whether one of some trials keeps the budget.

    Returns:
        The new trials. Those that led to one that keeps the budget are marked as screened.
    """
    bases = _nearest_by_runtime(trials)
    if not bases:
        return []
    found: list[Trial] = []
    if can_equalise(job.onnx):
        stages.log("no INT8 engine keeps the budget: equalising channel ranges")
        for base in bases:
            step = QuantizeEqualised(base.candidate.step)
            cured = attempt([replace(base.candidate, step=step)])
            tell_gain("channel ranges", "equalised", base, cured[0], stages)
            found += cured
        if keeps(found):
            return found
    base = nearest_int8([*bases, *found])
    try:
        return found + _put_back(job, base, trials, stages, attempt, keeps)
    except InputError:
        raise
    except EdgemlError as e:  # the engines found so far must not be lost to it
        stages.log(f"no layer was put back into float: {one_line(e)}")
        return found


def nearest_int8(trials: Sequence[Trial]) -> Trial | None:
    """The engine that loses least, or a faster one that cannot be told from it by the intervals."""
    alive = [t for t in trials if _scored_int8(t)]
    if not alive:
        return None
    best = min(alive, key=lambda t: t.row.drop_points.value)
    high = best.row.drop_points.high
    limit = best.row.drop_points.value if high is None else high
    return min((t for t in alive if t.row.drop_points.value <= limit), key=_cost)


def _cost(trial: Trial) -> tuple[float, float]:
    p50 = trial.row.latency_p50_ms
    ms = p50.value if p50 is not None and p50.value is not None else float("inf")
    return ms, trial.row.drop_points.value


def _scored_int8(trial: Trial) -> bool:
    row, candidate = trial.row, trial.candidate
    return (
        trial.engine is not None
        and not trial.stays
        and row.status == "measured"
        and row.drop_points is not None
        and row.drop_points.value is not None
        and candidate is not None
        and candidate.step is not None
        and candidate.step.calibrates  # a dynamic one has no ranges to mend
    )


def _nearest_by_runtime(trials: Sequence[Trial]) -> list[Trial]:
    runtimes = dict.fromkeys(t.row.runtime for t in trials if _scored_int8(t))
    nearest = (nearest_int8([t for t in trials if t.row.runtime == name]) for name in runtimes)
    return [trial for trial in nearest if trial is not None]


def left_in_float(step: QuantizationStep, nodes: Sequence[str]) -> QuantizationStep:
    """`step` with ONNX nodes, by their names, added to those that stay in float."""
    if isinstance(step, QuantizeEqualised):
        return QuantizeEqualised(left_in_float(step.inner, nodes))
    again = copy.copy(step)
    pattern = f"^({'|'.join(re.escape(node) for node in nodes)})$"
    again.nodes_to_exclude = (*step.nodes_to_exclude, pattern)
    again.route = f"{step.route} {len(nodes)}-float"
    return again


def _put_back(
    job: Job,
    base: Trial,
    trials: Sequence[Trial],
    stages: Stages,
    attempt: Attempt,
    keeps: Keeps,
) -> list[Trial]:
    """The first 1, 2, 4 … layers of the ranking in float until the budget is kept, then fewer. All
    of them are never tried: that is the float engine, which the run has."""
    ranked = [
        LayerLoss(**row)
        for row in stages.values(
            "sensitivity",
            {"run": stages.run_id, "model": job.onnx_key, **engines_key(job, [base])},
            f"ranking the layers of {base.row.id} by what INT8 costs in them",
            lambda: [
                asdict(layer) for layer in rank_layers(job, base, _float_of(base, trials), stages)
            ],
        )
    ]
    tried: dict[int, list[Trial]] = {}

    def try_first(count: int, executions: Sequence[str]) -> bool:
        step = left_in_float(base.candidate.step, [layer.node for layer in ranked[:count]])
        stages.log(f"{count} of {len(ranked)} layers back in float: {_named(ranked[:count])}")
        some = attempt([replace(base.candidate, step=step, execution=e) for e in executions])
        for trial in some:
            trial.row.put_back = [asdict(layer) for layer in ranked[:count]]
        tried[count] = tried.get(count, []) + some
        return keeps(some)

    own = [base.candidate.execution]
    misses, count, enough = 0, 1, None
    while enough is None and not stages.out_of_time():
        if count >= len(ranked) or try_first(count, own):
            enough = count
        else:
            misses, count = count, min(2 * count, len(ranked))
    for _ in range(BISECTIONS):
        if enough is None or enough - misses < 2 or stages.out_of_time():
            break
        middle = (misses + enough) // 2
        if try_first(middle, own):
            enough = middle
        else:
            misses = middle
    if enough in tried:
        cause = cause_of_layers(ranked[:enough])
        if cause is not None:
            stages.log(f"cause: {cause}")
        there = executable_precisions(base.row.runtime)
        others = [e for e in ("fp32", "bf16") if e in there and e not in own]
        if others:
            try_first(enough, others)
        for trial in tried[enough]:
            trial.row.warnings.append(
                f"{trial.row.id}: {enough} layers went back into float: {_named(ranked[:enough])}"
            )
            if cause is not None:
                trial.row.warnings.append(f"cause: {cause}")
        for number, some in tried.items():
            for trial in some if number < enough else []:
                if trial.row.status == "measured":
                    trial.row.status = "screened"
                    trial.row.reason = f"misses the budget with {number} layers in float"
    return [trial for some in tried.values() for trial in some]


def _float_of(base: Trial, trials: Sequence[Trial]) -> Trial | None:
    """The fastest float engine of the same runtime."""
    alive = [
        t
        for t in trials
        if t.engine is not None
        and t.row.runtime == base.row.runtime
        and t.row.precision != "int8"
        and t.row.latency_p50_ms is not None
    ]
    return min(alive, key=lambda t: t.row.latency_p50_ms.value, default=None)


def _named(layers: Sequence[LayerLoss]) -> str:
    more = len(layers) - NAMED
    named = ", ".join(f"{layer.node} ({layer.what})" for layer in layers[:NAMED])
    return f"{named} and {more} more" if more > 0 else named
