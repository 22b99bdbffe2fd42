"""What only a GPU has: parts by CUDA events, memory, clocks and what holds them down, the batch that fits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..artifact.measurement import Measurement
from ..errors import EdgemlError
from .device.cuda_runtime import OutOfGpuMemory
from .energy.nvml import nvml_meter
from .engine import Engine
from .latency import order_interval

PARTS = ("host_to_device", "compute", "device_to_host", "host")


def gpu_times(
    engine: Engine, inputs: Mapping[str, np.ndarray], duration_s: float
) -> dict[str, Measurement]:
    """p50 and p99 of each part of an inference: CUDA events on the GPU, the wall clock on the host.

    Returns:
        ``compute``, ``compute_p99`` and so on, in ms; empty for an engine on a CPU.
    """
    if engine.gpu_times_ms(inputs) is None:
        return {}
    rows, begin = [], time.perf_counter()
    while len(rows) < 3 or time.perf_counter() - begin < duration_s:
        rows.append(engine.gpu_times_ms(inputs) or {})
    found = {}
    for part in PARTS:
        times = np.array([row[part] for row in rows])
        for suffix, p in (("", 50), ("_p99", 99)):
            low, high = order_interval(times, p)
            found[part + suffix] = Measurement(
                value=float(np.percentile(times, p)),
                unit="ms",
                n=len(rows),
                low=low,
                high=high,
                method="order statistics",
            )
    return found


def gpu_state(gpu: int | None = None) -> dict[str, Any]:
    """Name, driver, clocks, temperature, power limit and throttle reasons; or why they cannot be read."""
    with nvml_meter(gpu) as meter:
        return {"unknown": meter.reason} if meter.reason else meter.conditions()


def fit_or_say(make: Callable[[int], Engine], batch: int) -> Engine:
    """An engine at that batch; where the GPU has too little memory, the batch that fits is told.

    Raises:
        EdgemlError: it does not fit (exit 1).
    """
    try:
        return make(batch)
    except OutOfGpuMemory as e:
        fits = largest_batch(make, batch - 1)
        told = f"batch {fits} fits" if fits else "not even batch 1 fits"
        raise EdgemlError(f"{e} at batch {batch}; {told}") from e


def largest_batch(make: Callable[[int], Engine], most: int) -> int | None:
    """The largest batch that loads, by bisection between 1 and `most`; None where none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        try:
            make(middle).close()
            low = middle
        except OutOfGpuMemory:
            high = middle - 1
    return low or None
