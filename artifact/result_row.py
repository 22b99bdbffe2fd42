"""One row of a result: one engine that was tried, and everything measured of it.

The rows of a run make up the documented JSON (``docs/result-schema.md``), which tables, CSV and the
report are drawn from. Numbers are `Measurement`s: value, unit, n, interval, how.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .measurement import Measurement

SCHEMA_VERSION = 1

Status = Literal["measured", "screened", "failed", "reference"]
Verdict = Literal["proven", "plausible", "missed"]
Front = Literal["yes", "no", "cannot tell"]
Timed = Literal["together", "by trial"]


class EngineRow(BaseModel):
    """One engine: a model file, a runtime, and the precision its float layers run in.

    Attributes:
        id: unique within the run, usable as a file name: ``openvino-int8-nncf-performance-bf16``.
        runtime: openvino, onnxruntime or torch.
        precision: fp32, bf16, fp16 or int8: what the engine is sold as.
        execution: the type its float layers run in (an INT8 engine may run the rest in bf16).
        route: the quantization route and method, as in ``nncf performance``; None for float engines.
        status: reference (what the others are compared with), measured, screened (measured on few
            samples and left behind), failed (not built: see `reason`).
        reason: why it failed, was screened out, or was not shipped, in one line.
        metrics: the task's metrics on the validation split, by name.
        change_points: engine minus reference on the primary metric, in points, signed so that
            NEGATIVE IS WORSE whatever the metric's direction; paired, with a two-sided 95 % interval.
        drop_points: the loss of the primary metric in points (= -change), POSITIVE IS WORSE; its
            `high` is the one-sided 95 % upper bound (confidence 0.95, one-sided).
        verdict: of `drop_points` against the budget; None without one.
        flips: share of samples whose answer changed (classification), as a fraction.
        latency_p50_ms, latency_p90_ms, latency_p99_ms: of one inference at the run's batch.
        speedup: reference p50 / this p50, block-bootstrap interval.
        throughput_per_s: inferences a second with parallel requests, where asked for.
        load_ms, first_inference_ms: in a process of its own.
        peak_memory_bytes: peak resident memory of a process that only loads and runs it.
        gpu_compute_ms: of one inference, between CUDA events; the p50 above is the host's wall clock.
        energy_gross_mj, energy_net_mj: millijoules of one sample; net is without what the idle machine
            draws, and is never told without gross.
        energy: every label of that figure (`runtime.energy.meter.EnergyReading`): meter, how, scope,
            rails, rates, idle watts, conditions; or the reason why there is none.
        size_bytes: the engine's files on disk.
        int8_mac_share: share of multiply-accumulates executed in INT8, from the engine's profile.
        put_back: layers that went back into float to keep the accuracy budget, the first first: node,
            what it is, the noise that INT8 adds in it (snr_db), what INT8 won there (won_us).
        mark: a caveat shown in the table: ``random calibration``, ``agreement only`` …
        shipped: this one is in the bundle.
        warnings: what the user should know about this row.
        trial, rung, recipe_hash, params, baseline, timed, front, front_against, bundle, test: of a
            sweep's rows only (``docs/result-schema.md``, *A sweep*).
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    runtime: str
    precision: str
    execution: str = "fp32"
    route: str | None = None
    status: Status = "measured"
    reason: str | None = None
    metrics: dict[str, Measurement] = Field(default_factory=dict)
    change_points: Measurement | None = None
    drop_points: Measurement | None = None
    verdict: Verdict | None = None
    flips: Measurement | None = None
    latency_p50_ms: Measurement | None = None
    latency_p90_ms: Measurement | None = None
    latency_p99_ms: Measurement | None = None
    speedup: Measurement | None = None
    throughput_per_s: Measurement | None = None
    load_ms: Measurement | None = None
    first_inference_ms: Measurement | None = None
    peak_memory_bytes: Measurement | None = None
    gpu_compute_ms: Measurement | None = None
    energy_gross_mj: Measurement | None = None
    energy_net_mj: Measurement | None = None
    energy: dict[str, Any] = Field(default_factory=dict)
    size_bytes: int | None = None
    int8_mac_share: Measurement | None = None
    put_back: list[dict[str, Any]] = Field(default_factory=list)
    mark: str | None = None
    shipped: bool = False
    warnings: list[str] = Field(default_factory=list)
    trial: int | None = None
    rung: int | None = None
    recipe_hash: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    baseline: str | None = None
    timed: Timed | None = None
    front: Front | None = None
    front_against: list[str] = Field(default_factory=list)
    bundle: str | None = None
    test: dict[str, Any] | None = None


class ResultTable(BaseModel):
    """All rows of one command, with what they were measured on.

    Attributes:
        command: compress, bench, report or sweep.
        primary: the primary metric's name; None where nothing was scored.
        lower_is_better: its direction.
        points_per_unit: points in one unit of the metric (100 for fractions).
        rows: best first.
        advice: where a budget was missed: the worst layers, and the next command to try.
        verdict_line: the last line of the table, what ships and why.
        final: the shipped engine and its reference on the test split (read once, after the choice):
            ``{"n": …, "reference": {metric: Measurement}, "engine": {…}, "change_points": …,
            "drop_points": …, "flips": …, "verdict": …, "by_class": […], "fairness": …, "flipped": …,
            "confidences": …, "drift": …}``; None without one.
        budget: a row a limit on the engine (latency, size): limit, value, one-sided 95 % bound,
            verdict; values of percentages are fractions of the plain INT8 engine's.
        steps: what each step of a run that prunes gave and cost, in order.
        removed: what was pruned, a row a group: kind, units before and after, µs.
        layers: of the shipped engine, as its own profile names them: time, the type really computed in.
        machine: where it was measured (`artifact.machine`).
        settings: batch, threads, objective, budget … as used.
        warnings: of the whole run.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    command: str
    primary: str | None = None
    lower_is_better: bool = False
    points_per_unit: float = 100.0
    rows: list[EngineRow]
    advice: list[str] = Field(default_factory=list)
    verdict_line: str | None = None
    final: dict[str, Any] | None = None
    budget: list[dict[str, Any]] = Field(default_factory=list)
    steps: list[dict[str, Any]] = Field(default_factory=list)
    removed: list[dict[str, Any]] = Field(default_factory=list)
    layers: list[dict[str, Any]] = Field(default_factory=list)
    machine: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
