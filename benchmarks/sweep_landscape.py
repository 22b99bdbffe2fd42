"""Made-up networks for `sweep_replay.py`: what a sweep would measure, as formulas with drawn numbers.

Each seed draws another network: how much its engines are worth (around the ratios of CNNs and transformers
that were measured, FACTS 8 and 9), how much of each kind of pruning hurts, how far training heals it,
whether a teacher helps, how much of its time pruning cannot touch, which shares are out of reach, and the
noise of each measurement. Below `MIXED` an engine loses the same points and the same share of its time on
every network, but for what pruning cannot touch; from there on each engine answers each kind of pruning in
its own way, as INT8 convolutions do that grow slower with fewer channels (FACTS 9). Nothing here was
measured; it shows how a search behaves on many networks before one is recorded, and no parameter of the
search may follow from a single seed.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

EPOCHS = 10
# Engine: route, precision, p50 / that of the fp32 reference, bytes / its bytes, points lost at most.
ENGINES = {
    "openvino-fp32": ("openvino", None, "fp32", 0.95, 1.0, 0.0),
    "openvino-bf16": ("openvino", None, "bf16", 0.60, 1.0, 0.2),
    "onnxruntime-fp32": ("onnxruntime", None, "fp32", 1.20, 1.0, 0.0),
    "nncf-int8": ("openvino", "nncf", "int8", 0.42, 0.27, 1.2),
    "nncf-int8-bf16": ("openvino", "nncf", "int8", 0.41, 0.27, 1.3),
    "nncf-int8-mixed": ("openvino", "nncf mixed", "int8", 0.50, 0.27, 0.9),
    "onnxruntime-int8": ("onnxruntime", "onnxruntime", "int8", 0.70, 0.26, 1.0),
    "onnxruntime-int8-percentile": ("onnxruntime", "onnxruntime", "int8", 0.70, 0.26, 1.0),
}
PLAIN = "nncf-int8"
MIXED = 200


def landscape(seed: int) -> list[dict[str, Any]]:
    """A recording (see `sweep_record`) of the network that `seed` draws."""
    from edgeml.compress.sweep_space import KINDS, SHARES
    from edgeml.compress.sweep_table import OUT_OF_REACH, REFERENCE

    rng = np.random.default_rng([seed, 8])
    speed = {e: v[3] * rng.lognormal(0, 0.25) for e, v in ENGINES.items()}
    weight = {e: v[4] * rng.uniform(0.95, 1.1) for e, v in ENGINES.items()}
    quant = {e: v[5] * rng.gamma(1.0, 0.6) for e, v in ENGINES.items()}
    fixed = {e: rng.uniform(0.0, 0.3) for e in ENGINES}  # of its time, which pruning cannot touch
    whole_bytes = int(10 ** rng.uniform(5.5, 7.5))
    hurts = {k: rng.uniform(0.4, 6.0) for k in KINDS}  # points after long training at half the time
    hurts["channels+block"] = min(hurts.values()) * rng.uniform(0.6, 1.3)
    bend = {k: rng.uniform(1.2, 3.0) for k in KINDS}
    least = {"channels": rng.uniform(0.4, 0.8), "block": rng.uniform(0.3, 0.7)}
    least["channels+block"] = 0.9 * min(least.values())
    thins = {k: rng.uniform(0.3, 1.3) for k in KINDS}  # share of the bytes per share of the time
    untrained, short = rng.uniform(3, 30), rng.uniform(1.2, 4.0)
    taught = {1: rng.uniform(0.6, 1.2), 2: rng.uniform(0.6, 1.1)}
    noise, spread, epoch_s = rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.5), rng.uniform(5, 120)

    own = np.random.default_rng([seed, 9])
    # Of an engine and a kind of pruning: the power of the share that its time goes by, and how much more
    # quantization costs a network of which all is cut.
    answers = {
        (e, k): (own.uniform(0.3, 1.2), own.uniform(0, 8))
        if seed >= MIXED and e != PLAIN
        else (1.0, 0)
        for e, k in itertools.product(ENGINES, KINDS)
    }

    def row(engine: str, drop: float, ratio: float, size: float, **more: Any) -> dict[str, Any]:
        runtime, route, precision, *_ = ENGINES.get(engine, ("openvino", None, "fp32"))
        told = {"id": engine, "runtime": runtime, "route": route, "precision": precision}
        lost = {"value": round(drop, 4), "unit": "points", "n": 500}
        fast = {"value": round(1 / ratio, 5), "unit": "ratio", "n": 100}
        numbers = {"drop_points": lost, "speedup": fast, "size_bytes": int(size)}
        return {**told, **numbers, "status": "measured", **more}

    def engine_row(
        engine: str, drop: float, share: float, size: float, kinds: str = "block"
    ) -> dict[str, Any]:
        power, more = answers[engine, kinds]
        ratio = speed[engine] * (fixed[engine] + (1 - fixed[engine]) * share**power)
        loses = quant[engine] * (1 + more * (1 - share))
        return row(
            engine,
            drop + loses * rng.lognormal(0, 0.3) + noise * rng.standard_normal(),
            ratio * rng.lognormal(0, 0.02),
            whole_bytes * weight[engine] * size,
        )

    original = [row(REFERENCE, 0.0, 1.0, whole_bytes, status="reference")]
    original += [engine_row(e, 0.0, 1.0, 1.0) for e in ENGINES]
    facts = {"plain_int8": PLAIN, "engines": list(ENGINES), "epochs": EPOCHS}
    lines: list[dict[str, Any]] = [{"rows": original, "machine": {"cpu": "made up"}, **facts}]
    # Rungs share a structure; its engine settles it near the share, not on it.
    got = {
        (share, kinds): share * (1 - abs(rng.normal(0, 0.03)))
        for share, kinds in itertools.product(SHARES, KINDS)
    }
    importance = {
        (share, kinds): hurts[kinds] * ((1 - a) / 0.5) ** bend[kinds] * rng.lognormal(0, 0.1)
        for (share, kinds), a in got.items()
    }
    for (rung, distil), share, kinds in itertools.product(
        [(0, True), *itertools.product((1, 2), (True, False))], SHARES, KINDS
    ):
        line = {"share": share, "kinds": kinds, "rung": rung, "distil": distil}
        if share < least[kinds]:
            told = {"engine": None, "least": least[kinds], "seconds": 60.0, "reason": "made up"}
            lines.append({**line, "state": OUT_OF_REACH, **told})
            continue
        ratio, lost = got[share, kinds], importance[share, kinds]
        damage = hurts[kinds] * ((1 - ratio) / 0.5) ** bend[kinds]
        damage *= (untrained, short, 1.0)[rung] * (taught[rung] if rung and distil else 1.0)
        drop = 90 * (1 - np.exp(-damage / 90)) + spread * rng.standard_normal()
        epochs = (0, max(1, round(0.15 * EPOCHS)), EPOCHS)[rung]
        for engine in ENGINES:
            size = max(0.1, 1 - thins[kinds] * (1 - ratio))
            steps = {"steps": [{"ratio": ratio}], "removed": [{"importance_lost": lost}]}
            cost = {"network_seconds": 40 + epochs * epoch_s, "seconds": rng.uniform(10, 40)}
            made = {"engine": engine, "row": engine_row(engine, drop, ratio, size, kinds)}
            lines.append({**line, "state": "done", **made, **steps, **cost})
    return lines
