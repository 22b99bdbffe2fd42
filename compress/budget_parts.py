"""The budget beyond accuracy: what its limits are here, and the verdict on the engine that ships."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..artifact.budget_limit import PARTS, Limit
from ..artifact.machine_lock import machine_lock
from ..artifact.recipe import Recipe
from ..artifact.result_row import EngineRow
from ..artifact.target import find_target
from ..errors import MissingPart
from ..runtime.engine import load_file
from ..runtime.latency import BenchResult, Timing, bench
from ..train.paired_interval import t_quantile
from .budget import Budget
from .build_engines import Trial
from .job import Job, batched
from .stage_keys import engines_key
from .stages import Stages

# A build is one sample: on a Zen 4 three rebuilds of one network gave 0.584 to 0.608 ms.
BUILDS = 5
BUILD_SECONDS = 0.6


# The row's measurement of each part but the size.
FIELDS = {
    "latency": "latency_p50_ms",
    "latency_p99": "latency_p99_ms",
    "max_energy": "energy_gross_mj",
}


@dataclass(frozen=True)
class Baseline:
    """What percentages are of: the plain INT8 engine of the original, in this run."""

    row: EngineRow

    def of(self, part: str) -> float:
        """Its value in the part's unit; infinite where it was not measured."""
        if part == "max_size":
            return math.inf if self.row.size_bytes is None else float(self.row.size_bytes)
        measured = getattr(self.row, FIELDS[part])
        return math.inf if measured is None or measured.value is None else float(measured.value)


def has_limits(recipe: Recipe) -> bool:
    """Whether a part of the budget speaks of the engine, not of accuracy."""
    return any(getattr(recipe, part) for part in PARTS)


def needs_baseline(recipe: Recipe) -> bool:
    """Whether the plain INT8 engine must be known: a percentage, or something to prune or train."""
    limits = [limit for part in PARTS if (limit := recipe.limit(part))]
    trained = recipe.step("prune") or recipe.step("finetune")
    return any(limit.relative for limit in limits) or trained is not None


def refuse_unmeasurable(recipe: Recipe) -> None:
    """Say before any work that a part of the budget cannot be measured here.

    Raises:
        MissingPart: ``--max-energy`` without a meter, or a target that is not this machine.
    """
    asked = next((part for part in PARTS if getattr(recipe, part)), None)
    if asked and not find_target(recipe.target).this_machine:
        raise MissingPart(
            f"--{asked.replace('_', '-')} {getattr(recipe, asked)}: {recipe.target} cannot be measured "
            "here; compress without it and measure with `edgeml deploy`"
        )
    if recipe.max_energy is None:
        return
    from ..runtime.energy.meter import find_meter

    with find_meter("cpu") as meter:
        if meter.reason is not None:
            raise MissingPart(
                f"--max-energy {recipe.max_energy}: energy cannot be measured here: {meter.reason}; "
                "leave it out, or measure on a device that has a meter"
            )


def with_limits(budget: Budget, recipe: Recipe, baseline: Baseline | None) -> Budget:
    """The budget with the recipe's limits in milliseconds and bytes."""

    def absolute(part: str) -> float | None:
        limit = recipe.limit(part)
        if limit is None:
            return None
        if not limit.relative:
            return limit.value
        return limit.absolute(baseline.of(part)) if baseline else None

    return replace(
        budget,
        max_p50_ms=absolute("latency"),
        max_p99_ms=absolute("latency_p99"),
        max_size_bytes=absolute("max_size"),
    )


def measure_builds(
    job: Job, baseline: Trial | None, shipped: Trial, stages: Stages
) -> dict[str, list[float]]:
    """Build the shipped engine and the baseline anew several times and time each pair in interleaved
    blocks: p50 and p99 in ms and as ratios, a value a build."""

    def make() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {"p50": [], "p99": [], "p50 ratio": [], "p99 ratio": []}
        feed = batched(job.sample, job.recipe.batch)
        pair = {"shipped": shipped} | ({"baseline": baseline} if baseline else {})
        with machine_lock("timing", stages.log):
            for number in range(BUILDS):
                result = bench_build(pair, feed, BUILD_SECONDS, number)
                own = result["shipped"]
                found["p50"].append(own.p50_ms.value)
                found["p99"].append(own.p99_ms.value)
                if baseline is not None:
                    found["p50 ratio"].append(median_ratio(own, result["baseline"]))
                    found["p99 ratio"].append(own.p99_ms.value / result["baseline"].p99_ms.value)
        return found

    trials = [shipped] + ([baseline] if baseline else [])
    key = {"run": stages.run_id, **engines_key(job, trials), "builds": BUILDS}
    return stages.values("builds", key, f"timing {BUILDS} builds for the verdict", make)


def measure_energy_of(job: Job, trial: Trial, stages: Stages) -> None:
    """Energy of one sample by this machine's meter, into the trial's row.

    Raises:
        MeterError: the meter was there and failed.
    """
    from ..runtime.bench_energy import add_energy, engine_energy
    from ..runtime.energy.meter import EnergyReading

    def make() -> dict[str, Any]:
        feed = batched(job.sample, job.recipe.batch)
        with machine_lock("measuring energy", stages.log):
            return engine_energy(trial.engine, feed, log=stages.log).as_json()

    key = {"run": stages.run_id, **engines_key(job, [trial])}
    found = stages.values("energy", key, f"measuring the energy of {trial.row.id}", make)
    add_energy(trial.row, EnergyReading(**found))


def bench_build(
    pair: Mapping[str, Trial], feed: Mapping[str, Any], seconds: float, seed: int
) -> BenchResult:
    """Compile each trial's file anew and time them in interleaved blocks: one sample of what
    differs from build to build."""
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(
                load_file(trial.file, trial.row.runtime, trial.engine.options)
            )
            for name, trial in pair.items()
        }
        return bench(engines, feed, duration_s=seconds, seed=seed)


def median_ratio(own: Timing, other: Timing) -> float:
    """p50 of one engine / p50 of another, the median over the rounds of one `bench`."""
    rounds = zip(own.blocks_ms, other.blocks_ms, strict=False)
    return float(np.median([np.median(a) / np.median(b) for a, b in rounds]))


def upper_bound(values: Sequence[float]) -> float:
    """One-sided 95 % upper bound of the mean logarithm over builds, by Student's t: each build is
    one sample, so that what differs from build to build is in it.

    >>> upper_bound([1.0, 1.0, 1.0])
    1.0
    """
    logs = np.log(np.asarray(values, dtype=float))
    n = len(logs)
    if n < 2:
        return math.inf
    return float(np.exp(logs.mean() + t_quantile(0.95, n - 1) * logs.std(ddof=1) / math.sqrt(n)))


def judge_parts(
    recipe: Recipe, shipped: Trial, baseline: Baseline | None, builds: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """A row a part: limit, value, one-sided 95 % bound, and proven, plausible or missed.

    Values of relative limits are fractions of the plain INT8 engine's.
    """
    rows = []
    for part in PARTS:
        limit = recipe.limit(part)
        if limit is None:
            continue
        value, bound = _value(part, limit, shipped, baseline, builds)
        count = len(builds.get("p50", ())) if part.startswith("latency") else None
        rows.append(verdict_row(part, limit, value, bound, count))
    return rows


def verdict_row(
    part: str, limit: Limit, value: float, bound: float, builds: int | None = None
) -> dict[str, Any]:
    """A part's limit, value, upper bound and verdict; of a percentage both are fractions."""
    verdict = "proven" if bound <= limit.value else "plausible"
    return {
        "part": part,
        "limit": limit.text,
        "unit": "of plain INT8" if limit.relative else limit.unit,
        "value": value,
        "bound": bound,
        "limit_value": limit.value,
        "verdict": "missed" if value > limit.value else verdict,
        "over": max(0.0, value / limit.value - 1),
        "builds": builds,
    }


def _value(
    part: str,
    limit: Limit,
    shipped: Trial,
    baseline: Baseline | None,
    builds: dict[str, list[float]],
) -> tuple[float, float]:
    if part == "max_size":
        size = math.inf if shipped.row.size_bytes is None else float(shipped.row.size_bytes)
        value = size / baseline.of(part) if limit.relative and baseline else size
        return value, value
    if part == "max_energy":
        energy = shipped.row.energy_gross_mj
        if energy is None or energy.value is None:
            return math.inf, math.inf
        base = baseline.of(part) if limit.relative and baseline else 1.0
        return energy.value / base, (energy.high or energy.value) / base
    name = {"latency": "p50", "latency_p99": "p99"}[part]
    values = builds[f"{name} ratio"] if limit.relative else builds[name]
    return float(np.exp(np.log(values).mean())), upper_bound(values)


def parts_line(rows: list[dict[str, Any]]) -> str:
    """The verdicts as one clause.

    >>> parts_line([{"part": "latency", "limit": "60%", "unit": "of plain INT8", "value": 0.58,
    ...              "bound": 0.59, "verdict": "proven"}])
    'latency 58 % of plain INT8 (95 % bound 59 %, at most 60%): proven'
    """

    def number(value: float, unit: str) -> str:
        if unit == "of plain INT8":
            return f"{100 * value:.3g} %"
        return f"{value:,.0f} bytes" if unit == "bytes" else f"{value:.3g} {unit}"

    clauses = []
    for row in rows:
        of = " of plain INT8" if row["unit"] == "of plain INT8" else ""
        bound = (
            f"95 % bound {number(row['bound'], row['unit'])}, "
            if row["bound"] != row["value"]
            else ""
        )
        name = row["part"].replace("max_", "").replace("_", " ")
        clauses.append(
            f"{name} {number(row['value'], row['unit'])}{of} "
            f"({bound}at most {row['limit']}): {row['verdict']}"
        )
    return "; ".join(clauses)
