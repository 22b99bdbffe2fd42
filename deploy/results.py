"""From the device's answers to rows: intervals of its times, its energy, the check's verdict."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..artifact.measurement import How, Measurement, not_measured
from ..artifact.result_row import EngineRow
from ..artifact.tolerance import Difference, Tolerance, tolerance_for
from ..runtime.latency import order_interval, percentile_intervals
from .package import Candidate
from .record import DeviceRow

ENERGY_METHOD = "median of windows; their range"


def new_row(candidate: Candidate, size_bytes: int) -> DeviceRow:
    """The row of an engine that is to be built."""
    return DeviceRow(
        engine=EngineRow(
            id=candidate.id,
            runtime=candidate.runtime,
            precision=candidate.precision,
            execution=candidate.execution,
            route=candidate.route,
            size_bytes=size_bytes,
        )
    )


def fail(row: DeviceRow, reason: Any) -> None:
    """Mark an engine as failed, once; the first reason stays."""
    if row.engine.status != "failed":
        row.engine.status = "failed"
        row.engine.reason = " ".join(str(reason or "no reason told").split())[:300]


def add_build(row: DeviceRow, answer: dict[str, Any]) -> None:
    """What a build's answer says of one engine."""
    if answer.get("status") not in ("built", "cached"):
        fail(row, f"build: {answer.get('reason')}")
        return
    row.built = answer.get("how")
    row.build_s = 0.0 if answer["status"] == "cached" else float(answer.get("seconds") or 0)
    row.version = answer.get("version")
    if answer.get("how") == "onnxruntime":
        # A stand-in for TensorRT that runs ONNX Runtime is never called TensorRT.
        row.engine.runtime = "onnxruntime"
    if answer.get("size_bytes"):
        row.engine.size_bytes = int(answer["size_bytes"])


def add_check(row: DeviceRow, answer: dict[str, Any]) -> None:
    """Hold an engine's differences against the tolerance of its precision."""
    if answer.get("status") != "checked" or not answer.get("outputs"):
        row.check, row.check_text = "failed", str(answer.get("reason") or "no outputs")
        fail(row, f"check: {row.check_text}")
        return
    tolerance = tolerance_for(row.engine.precision)
    differences = [_difference(output) for output in answer["outputs"]]
    problem = next((d.problem for d in differences if d.problem), None)
    outside = [d for d in differences if not d.within(tolerance)]
    worst = min(outside or differences, key=lambda d: d.sqnr_db)
    row.check_text = f"{_figure(worst)}, {answer.get('n')} inputs"
    if problem:
        row.check, row.check_text = "failed", problem
        fail(row, f"check: {problem}")
    elif not outside:
        row.check = "passed"
    elif tolerance.warns_only:
        row.check = "far"
        row.engine.warnings.append(
            f"{row.engine.id}: output {worst.name}: {_figure(worst)} to ONNX Runtime on its own ONNX; "
            f"{_wanted(worst, tolerance)} expected; only its score tells whether it may ship"
        )
    else:
        row.check = "failed"
        fail(
            row,
            f"check: output {worst.name}: {_figure(worst)} to ONNX Runtime on its own ONNX; "
            f"{row.engine.precision} wants {_wanted(worst, tolerance)}",
        )


def _figure(difference: Difference) -> str:
    """How close: of an integer output the share of equal elements, of a float one decibels."""
    if difference.differing is not None:
        return "equal" if not difference.differing else f"{1 - difference.differing:.1%} equal"
    return "equal" if math.isinf(difference.sqnr_db) else f"{difference.sqnr_db:.0f} dB"


def _wanted(difference: Difference, tolerance: Tolerance) -> str:
    if difference.differing is not None:
        return f"{1 - (tolerance.max_differing or 0):.0%} equal"
    if difference.sqnr_db < (tolerance.min_sqnr_db or -math.inf):
        return f"{tolerance.min_sqnr_db:.0f} dB"
    return f"a largest difference of {tolerance.max_rel:g} of the output"


def _difference(output: dict[str, Any]) -> Difference:
    equal = bool(output.get("equal"))
    numbers = {
        key: float(output[key]) if output.get(key) is not None else default
        for key, default in (
            ("max_abs", 0.0 if equal else math.inf),
            ("max_rel", 0.0 if equal else math.inf),
            ("cosine", 1.0 if equal else 0.0),
            ("sqnr_db", math.inf if equal else -math.inf),
        )
    }
    return Difference(
        name=str(output.get("name")),
        differing=output.get("differing"),
        problem=output.get("problem"),
        **numbers,
    )


def add_times(row: DeviceRow, answer: dict[str, Any], how: How) -> None:
    """Percentiles with block-bootstrap intervals from the device's raw rounds."""
    rounds = [np.array(r, dtype=np.float64) for r in answer.get("rounds_ms") or () if len(r)]
    if answer.get("status") != "timed" or not rounds:
        fail(row, f"bench: {answer.get('reason')}")
        return
    found = percentile_intervals(rounds, (50, 90, 99), np.random.default_rng(0))
    names = ("latency_p50_ms", "latency_p90_ms", "latency_p99_ms")
    for name, measured in zip(names, found, strict=True):
        setattr(row.engine, name, measured.model_copy(update={"how": how}))
    if answer.get("how") == "trtexec":
        row.engine.mark = "timed by trtexec"
    for name, unit in (
        ("load_ms", "ms"),
        ("first_inference_ms", "ms"),
        ("peak_memory_bytes", "bytes"),
    ):
        value = answer.get(name)
        made = (
            Measurement(value=float(value), unit=unit, n=1, how=how)
            if value is not None
            else not_measured(unit, "not told by the device")
        )
        setattr(row.engine, name, made)
    for stage, times in (answer.get("end_to_end_ms") or {}).items():
        row.end_to_end_ms[stage] = _median(np.array(times, dtype=np.float64), how)
    row.rate = answer.get("rate")


def _median(times: np.ndarray, how: How) -> Measurement:
    if not len(times):
        return not_measured("ms", "no frame")
    low, high = order_interval(times, 50)
    return Measurement(
        value=float(np.median(times)),
        unit="ms",
        n=len(times),
        low=low,
        high=high,
        how=how,
        method="order statistics",
    )


def add_energy(row: DeviceRow, answer: dict[str, Any], how: How) -> None:
    """Millijoules an inference and watts, with their labels."""
    row.energy = {k: v for k, v in answer.items() if k not in ("id", "status")}
    if answer.get("status") != "measured" or answer.get("gross_mj") is None:
        why = str(answer.get("reason") or "not told by the device")
        row.energy_gross_mj = row.energy_net_mj = not_measured("mJ", why)
        row.mean_w = not_measured("W", why)
        return
    if answer.get("where") == "emulated":
        how = "emulated"
    n = int(answer.get("windows") or 0)

    def figure(name: str, unit: str) -> Measurement:
        if answer.get(name) is None:
            return not_measured(unit, "not told by the device")
        return Measurement(
            value=float(answer[name]),
            unit=unit,
            n=n,
            low=answer.get(f"{name}_low"),
            high=answer.get(f"{name}_high"),
            how=how,
            method=ENERGY_METHOD,
        )

    row.energy_gross_mj = figure("gross_mj", "mJ")
    row.energy_net_mj = figure("net_mj", "mJ")
    row.mean_w = figure("mean_w", "W")
    row.engine.warnings += [f"{row.engine.id}: {text}" for text in answer.get("warnings") or ()]
