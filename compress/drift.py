"""Drift of explanations: whether the shipped engine decides by the same parts of an input.

Engines have no gradients, so attributions come by perturbation, on the engine itself: Captum's Occlusion
of images (Zeiler and Fergus 2014, ECCV, section 4.2) and FeatureAblation of tokens. Each sample's
attributions are compared with the reference's by Spearman's rank correlation. What two runtimes of the same
fp32 network differ by is the floor: no drift below it can be seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact.measurement import Measurement
from ..errors import EdgemlError, MissingPart, one_line
from ..runtime.engine import Engine, load_file
from ..train.evaluate import samples_at
from ..train.groups import sample_indices
from ..train.paired_interval import mean_interval
from .build_engines import Trial
from .candidates import installed_runtimes
from .job import Job
from .stage_keys import data_key, engines_key
from .stages import Stages

if TYPE_CHECKING:
    from ..train.task import Inputs

# Cells along the longer side of an image: 64 of a square one, so 65 forward calls a sample and engine.
CELLS = 8
# Of inputs that are neither images nor tokens: neighbouring values are taken together.
MOST_FEATURES = 256
LARGEST_SET = 64


@dataclass(frozen=True)
class _Features:
    """What of a sample is perturbed.

    Attributes:
        name: the input.
        kind: ``cells`` of an image, ``tokens`` or ``values``.
        axis: of an image's channels.
        side: of a cell, in pixels.
    """

    name: str
    kind: str
    axis: int = 0
    side: int = 1


def require_captum() -> None:
    """Say before any work that Captum is missing.

    Raises:
        MissingPart: it is not installed.
    """
    from importlib.util import find_spec

    for name in ("captum", "torch", "scipy"):
        if find_spec(name) is None:
            raise MissingPart(f"--drift needs {name}: pip install 'edgeml-toolchain[sweep,train]'")


def explanation_drift(
    job: Job, reference: Trial, shipped: Trial, n: int, total: int, stages: Stages
) -> dict[str, Any]:
    """The ``drift`` of ``docs/result-schema.md``: of `n` samples spread over the test split.

    Args:
        job: of the original network, whose ONNX a second runtime runs in fp32 for the floor.
        n: how many samples; at most 64.
        total: samples of the split.
    """
    task = job.opened.task
    key = {
        **engines_key(job, [reference, shipped]),
        "run": stages.run_id,
        "data": data_key(job, stages),
        "samples": n,
    }

    def make() -> dict[str, Any]:
        begin = time.monotonic()
        try:
            other, engine = _second_runtime(job, reference.engine)
            with engine:
                chosen = _chosen(job, n, total)
                names = sample_indices(task, "test", total)
                found = drift(
                    [reference.engine, shipped.engine, engine],
                    list(chosen.values()),
                    task,
                    _token_baseline(job),
                )
        except EdgemlError as e:
            return {"reason": one_line(e)}
        for row, place in zip(found["rows"], chosen, strict=True):
            row["index"] = names[place]
        found["floor"] |= {
            "note": f"the reference in fp32 on {reference.engine.runtime} and {other}"
        }
        found["seconds"] = round(time.monotonic() - begin, 2)
        return {**found, "reason": None}

    line = f"explaining {min(n, total)} test samples by perturbation, on the shipped engine and twice on the reference"
    told = stages.values("drift", key, line, make)
    if not told.get("reason"):
        stages.log(f"explanations took {told['calls']:,} forward calls, {told['seconds']:.1f} s")
    return told


def drift(
    engines: Sequence[Engine], samples: Sequence[Inputs], task: Any, token_baseline: int = 0
) -> dict[str, Any]:
    """Rank correlations of attributions over `samples`.

    Args:
        engines: the reference, the shipped one, the reference on a second runtime.
        samples: inputs by name without the batch axis.

    Raises:
        EdgemlError: the first output names no classes, or is no vector.
    """
    features = _features(samples[0])
    calls = [0]
    forwards = [_forward(engine, calls) for engine in engines]
    rows, widths = [], []
    for inputs in samples:
        outputs = forwards[0]({name: array[None] for name, array in inputs.items()})
        if outputs.ndim != 2 or outputs.shape[1] < 2:
            raise EdgemlError("--drift explains classes; this network's first output names none")
        target = int(outputs[0].argmax())
        maps = [_attributions(f, inputs, features, target, token_baseline) for f in forwards]
        widths.append(len(maps[0]))
        rows.append(
            {
                "index": None,
                "target": target,
                "correlation": rank_correlation(maps[0], maps[1]),
                "floor": rank_correlation(maps[0], maps[2]),
            }
        )
    how = {
        "cells": f"Captum Occlusion, cells of {features.side}×{features.side} pixels, each sample's mean colour",
        "tokens": f"Captum FeatureAblation, a token each, by id {token_baseline}",
        "values": "Captum FeatureAblation, by each sample's mean",
    }
    return {
        "samples": len(samples),
        "method": how[features.kind],
        "features": round(float(np.mean(widths)), 1),
        "correlation": _mean(rows, "correlation"),
        "floor": _mean(rows, "floor"),
        "calls": calls[0],
        "rows": rows,
    }


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's, ties at their mean rank; None where one of the two has no order at all.

    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    from scipy.stats import rankdata

    first, other = rankdata(a), rankdata(b)
    if np.ptp(first) == 0 or np.ptp(other) == 0:
        return None
    return round(float(np.corrcoef(first, other)[0, 1]), 12)


def _mean(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    values = np.array([row[name] for row in rows if row[name] is not None])
    if len(values) < 2:
        few = Measurement(
            value=float(values[0]) if len(values) else None,
            unit="rank correlation",
            n=len(values),
            how="measured" if len(values) else "not measured",
            note="too few samples whose attributions have an order",
        )
        return few.model_dump(mode="json")
    low, high = mean_interval(values, float(np.ptp(values)) or 1.0)
    return Measurement(
        value=float(values.mean()),
        unit="rank correlation",
        n=len(values),
        low=max(low, -1.0),
        high=min(high, 1.0),
        method="t, skewness-corrected",
    ).model_dump(mode="json")


def _forward(engine: Engine, calls: list[int]) -> Callable[[Inputs], np.ndarray]:
    """The first output ``[k, …]`` of ``k`` samples, however many the engine takes at once."""
    shape = engine.input_specs[0].shape
    batch = (shape[0] if shape else None) or 1

    def forward(inputs: Inputs) -> np.ndarray:
        k = len(next(iter(inputs.values())))
        found = []
        for start in range(0, k, batch):
            part = {name: array[start : start + batch] for name, array in inputs.items()}
            count = len(next(iter(part.values())))
            # A static batch is filled up with its last sample.
            full = {
                n: np.ascontiguousarray(a[[*range(count), *[count - 1] * (batch - count)]])
                for n, a in part.items()
            }
            found.append(next(iter(engine.run(full).values()))[:count])
            calls[0] += 1
        return np.concatenate(found)

    return forward


def _features(inputs: Inputs) -> _Features:
    name = "input_ids" if "input_ids" in inputs else next(iter(inputs))
    array = inputs[name]
    if array.dtype.kind in "iu" and array.ndim == 1:
        return _Features(name, "tokens")
    if array.ndim == 3 and (array.shape[0] in (1, 3) or array.shape[2] in (1, 3)):
        axis = 0 if array.shape[0] in (1, 3) else 2
        sides = [side for at, side in enumerate(array.shape) if at != axis]
        return _Features(name, "cells", axis, max(1, min(-(-max(sides) // CELLS), min(sides))))
    return _Features(name, "values")


def _attributions(
    forward: Callable[[Inputs], np.ndarray],
    inputs: Inputs,
    features: _Features,
    target: int,
    token_baseline: int,
) -> np.ndarray:
    """What each feature adds to the output of class `target`, [features] floats."""
    import torch
    from captum.attr import FeatureAblation, Occlusion

    array = inputs[features.name]
    others = {name: a[None] for name, a in inputs.items() if name != features.name}

    def run(x: torch.Tensor) -> torch.Tensor:
        fed = x.numpy()
        fed = (
            np.rint(fed).astype(array.dtype)
            if array.dtype.kind in "iu"
            else fed.astype(array.dtype)
        )
        repeated = {name: np.repeat(a, len(fed), 0) for name, a in others.items()}
        return torch.from_numpy(forward({features.name: fed, **repeated})[:, target].astype(float))

    if features.kind == "cells":
        x = torch.from_numpy(array[None].astype(np.float32))
        window = [features.side] * 3
        window[features.axis] = array.shape[features.axis]
        plane = tuple(1 + at for at in range(3) if at != features.axis)
        mean = x.mean(dim=plane, keepdim=True).expand_as(x)
        found = Occlusion(run).attribute(
            x, sliding_window_shapes=tuple(window), strides=tuple(window), baselines=mean
        )
        cells = found[0].select(features.axis, 0)
        return cells[:: features.side, :: features.side].numpy().ravel()
    if features.kind == "tokens":
        real = np.asarray(inputs.get("attention_mask", np.ones_like(array)), bool)
        # Padding is one feature of its own, behind the tokens, and is not compared.
        mask = np.where(real, np.cumsum(real) - 1, real.sum())
        x = torch.from_numpy(array[None].astype(np.int64))
        found = FeatureAblation(run).attribute(
            x, feature_mask=torch.from_numpy(mask[None].astype(np.int64)), baselines=token_baseline
        )
        return found[0].numpy()[real]
    mask = np.arange(array.size).reshape(array.shape) // -(-array.size // MOST_FEATURES)
    x = torch.from_numpy(array[None].astype(np.float32))
    found = FeatureAblation(run).attribute(
        x, feature_mask=torch.from_numpy(mask[None]), baselines=float(x.mean())
    )
    firsts = np.unique(mask.ravel(), return_index=True)[1]
    return found[0].numpy().ravel()[firsts]


def _second_runtime(job: Job, reference: Engine) -> tuple[str, Engine]:
    for runtime in ("openvino", "onnxruntime"):
        if runtime != reference.runtime and runtime in installed_runtimes(None):
            return runtime, load_file(job.onnx, runtime, job.options)
    raise MissingPart(
        f"--drift needs a second runtime beside {reference.runtime} for its floor: "
        "pip install 'edgeml-toolchain[compress]'"
    )


def _chosen(job: Job, n: int, total: int) -> dict[int, Inputs]:
    """`n` samples spread evenly over the test split, by their places."""
    places = set(np.linspace(0, total - 1, min(n, total)).round().astype(int).tolist())
    return samples_at(job.opened.task, "test", places)


def _token_baseline(job: Job) -> int:
    """The id that stands for "no token here": of the mask, else of the unknown or the padding."""
    if job.opened.tokenizer is None:
        return 0
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(job.opened.tokenizer))
    ids = (tokenizer.token_to_id(word) for word in ("[MASK]", "<mask>", "[UNK]", "<unk>", "[PAD]"))
    return next((number for number in ids if number is not None), 0)
