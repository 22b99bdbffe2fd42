"""Where a frame's time goes: decode, preprocess, infer, postprocess apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..artifact.measurement import Measurement
from ..errors import InputError
from .engine import Engine
from .latency import order_interval

STAGES = ("decode", "preprocess", "infer", "postprocess")


def bench_end_to_end(
    engine: Engine,
    raw: Sequence[bytes],
    *,
    decode: Callable[[bytes], Any],
    preprocess: Callable[[Any], Mapping[str, np.ndarray]],
    postprocess: Callable[[Mapping[str, np.ndarray]], Any],
    duration_s: float = 2.0,
) -> dict[str, Measurement]:
    """Run frames one after another and time each stage of each.

    Args:
        raw: encoded images, taken in turn.

    Returns:
        By stage and ``total`` the p50, by ``NAME_p99`` the p99, in ms, with 95 % intervals whose ends
        are None where so few frames do not show them; ``frames_per_s``.

    Raises:
        InputError: there is no image.
    """
    if not raw:
        raise InputError("no image to time end to end")
    rows: list[tuple[float, ...]] = []
    for data in raw[:3]:
        postprocess(engine.run(preprocess(decode(data))))
    begin = time.perf_counter()
    while not rows or time.perf_counter() - begin < duration_s:
        data = raw[len(rows) % len(raw)]
        t0 = time.perf_counter()
        image = decode(data)
        t1 = time.perf_counter()
        inputs = preprocess(image)
        t2 = time.perf_counter()
        outputs = engine.run(inputs)
        t3 = time.perf_counter()
        postprocess(outputs)
        t4 = time.perf_counter()
        rows.append((t1 - t0, t2 - t1, t3 - t2, t4 - t3, t4 - t0))
    seconds = time.perf_counter() - begin
    times = np.array(rows) * 1e3
    found = {}
    for k, name in enumerate((*STAGES, "total")):
        for suffix, p in (("", 50), ("_p99", 99)):
            value = float(np.percentile(times[:, k], p))
            low, high = order_interval(times[:, k], p)
            found[name + suffix] = Measurement(
                value=value, unit="ms", n=len(rows), low=low, high=high, method="order statistics"
            )
    found["frames_per_s"] = Measurement(value=len(rows) / seconds, unit="1/s", n=len(rows))
    return found
