"""From a device's answers to `bench` and `profile` to the shape that `runtime.latency.bench` gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..artifact.measurement import Measurement
from ..errors import DeviceError
from ..runtime.latency import Timing, timings_of
from ..runtime.remote_bench import ModelFile, RemoteBench, RemoteProfile
from .probe import DeviceFacts

CONDITIONS = ("temperatures_c", "steady", "throttle", "fan", "clocks", "mode")


def bench_of(
    answer: Mapping[str, Any],
    name: str,
    failed: Mapping[str, str],
    sizes: Mapping[str, int],
    *,
    reference: str | None,
    seed: int,
    emulated: bool,
) -> RemoteBench:
    """Percentiles and intervals from raw rounds, and what disturbed them.

    Args:
        name: of the device, for warnings.
        failed: by engine, why it was not built.
        sizes: by engine, bytes of what was built.
        reference: the engine that `speedup` is against.
        emulated: every figure is marked so: it means nothing.
    """
    failed = dict(failed)
    blocks, warm = {}, {}
    warnings = _throttled(answer, name)
    if answer.get("steady") is False:
        warnings.append(f"{name}: still warming when the bench ended")
    for entry in answer["engines"]:
        rounds = [np.array(r, dtype=np.float64) for r in entry.get("rounds_ms") or () if r]
        if entry.get("status") != "timed" or not rounds:
            failed[entry["id"]] = f"bench: {entry.get('reason')}"
            continue
        blocks[entry["id"]] = rounds
        warm[entry["id"]] = int(entry.get("warmup_calls") or 0)
        told = f"{name}: timed by trtexec, one engine after the other: its times are not taken in blocks"
        if entry.get("how") == "trtexec" and told not in warnings:
            warnings.append(told)
    rng = np.random.default_rng(seed)
    timings = timings_of(blocks, warm, reference if reference in blocks else None, rng)
    if emulated:
        timings = {engine: _emulated(timing) for engine, timing in timings.items()}
    conditions = {key: answer.get(key) for key in CONDITIONS}
    return RemoteBench(timings, warnings, failed, conditions, dict(sizes))


def busy_warnings(facts: DeviceFacts, name: str, models: Iterable[ModelFile]) -> list[str]:
    """Who else used the GPU when the device was asked, for engines that run on it."""
    on_gpu = any(model.runtime == "tensorrt" for model in models)
    told = facts.gpu_users_text if on_gpu else None
    return [f"{name}: {told}"] if told else []


def profile_of(answer: Mapping[str, Any], name: str) -> RemoteProfile:
    """Each engine's layers, and what disturbed them.

    Raises:
        DeviceError: an engine has none.
    """
    found: dict[str, list[tuple[str, float]]] = {}
    for entry in answer["engines"]:
        layers: Sequence[dict[str, Any]] = entry.get("layers") or ()
        if not layers:
            refuse_failed(name, {entry["id"]: str(entry.get("reason") or "no layers told")})
        found[entry["id"]] = [(str(layer["name"]), float(layer["ms"])) for layer in layers]
    return RemoteProfile(found, _throttled(answer, name))


def refuse_failed(name: str, failed: Mapping[str, str]) -> None:
    """Raise what failed, where all are needed.

    Raises:
        DeviceError: one did.
    """
    if failed:
        told = "; ".join(f"{engine}: {why}" for engine, why in failed.items())
        raise DeviceError(f"{name}: {told}")


def _throttled(answer: Mapping[str, Any], name: str) -> list[str]:
    return [f"{name}: throttled: {event}" for event in answer.get("throttle") or ()]


def _emulated(timing: Timing) -> Timing:
    def mark(measured: Measurement | None) -> Measurement | None:
        return measured and measured.model_copy(update={"how": "emulated"})

    names = ("p50_ms", "p90_ms", "p99_ms", "speedup")
    return replace(timing, **{name: mark(getattr(timing, name)) for name in names})
