"""Calibration of confidences: how often a classifier is right where it says 90 %.

The expected calibration error (Naeini et al. 2015, AAAI; of the top class as in Guo et al. 2017, ICML)
over 15 bins of equal mass, which are less biased than bins of equal width (Roelofs et al. 2022, AISTATS).
An ECE is above zero even of perfect confidences, since bins hold few samples: how far is told beside it
(consistency resampling, Bröcker and Smith 2007, Weather Forecast 22:651).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact.measurement import Measurement
from .classification import Classification
from .paired_interval import CONFIDENCE, wilson_interval

if TYPE_CHECKING:
    from .evaluate import Evaluation

BINS = 15
RESAMPLES = 200
# Probabilities add up to 1; an INT8 softmax is coarse, so the reference's outputs tell.
_SUM = 1e-3


def confidences(
    evaluation: Evaluation, task: Any, reference_id: str, engine_id: str, *, seed: int = 0
) -> dict[str, Any] | None:
    """Calibration of the reference and of the engine; the ``confidences`` of ``docs/result-schema.md``.

    Returns:
        None for tasks other than the built-in classification, whose outputs may be anything.
    """
    if not isinstance(task, Classification):
        return None
    arrays = {name: _array(evaluation.outputs[name]) for name in (reference_id, engine_id)}
    targets = np.asarray(evaluation.targets)
    given = _are_probabilities(arrays[reference_id])
    found: dict[str, Any] = {
        "bins": BINS,
        "binning": "equal mass",
        "outputs": "probabilities" if given else "logits",
    }
    for who, name in (("reference", reference_id), ("engine", engine_id)):
        array = arrays[name]
        shown = array if given else softmax(array)
        right = array.argmax(1) == targets
        found[who] = reliability(np.clip(shown.max(1), 0, 1), right, seed=seed)
    return found


def reliability(confidence: np.ndarray, right: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """ECE and bins of one classifier.

    Args:
        confidence: [n] floats in [0, 1], of the class that was named.
        right: [n] bool, whether it is the class.

    >>> told = reliability(np.full(100, 0.9), np.arange(100) < 60)
    >>> round(told["ece"]["value"], 3), told["accuracy"]
    (0.3, 0.6)
    """
    order = np.argsort(confidence, kind="stable")
    confidence, right = confidence[order], right[order].astype(float)
    n = len(confidence)
    edges = _edges(confidence)
    value = _ece(confidence, right, edges)
    rng = np.random.default_rng(seed)
    chance = [
        _ece(confidence, (rng.random(n) < confidence).astype(float), edges)
        for _ in range(RESAMPLES)
    ]
    drawn = []
    for _ in range(RESAMPLES):
        pick = np.sort(rng.integers(0, n, n))  # sorted indices keep the confidences sorted
        drawn.append(_ece(confidence[pick], right[pick], _edges(confidence[pick])))
    # A resample's ECE is biased upwards once more, so the basic bootstrap's ends are taken.
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(2 * value - q) for q in np.quantile(drawn, [1 - tail, tail]))
    ece = Measurement(
        value=value,
        unit="fraction",
        n=n,
        low=min(max(low, 0.0), value),
        high=max(high, value),
        method=f"basic bootstrap, {RESAMPLES} resamples",
    )
    return {
        "ece": ece.model_dump(mode="json"),
        "by_chance": float(np.quantile(chance, 0.95)),
        "mean_confidence": float(confidence.mean()),
        "accuracy": float(right.mean()),
        "bins": [_bin(confidence[a:b], right[a:b]) for a, b in pairwise(edges)],
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [n, classes] of logits of that shape."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _bin(confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    low, high = wilson_interval(float(right.sum()), len(right))
    return {
        "n": len(right),
        "confidence": float(confidence.mean()),
        "accuracy": float(right.mean()),
        "low": low,
        "high": high,
    }


def _edges(confidence: np.ndarray) -> np.ndarray:
    """Where bins of equal mass begin in sorted confidences, and the end; equal ones stay in one bin."""
    n = len(confidence)
    cuts = np.linspace(0, n, min(BINS, n) + 1).round().astype(int)
    # Ties are not told apart: a cut inside a run of them goes to its beginning.
    starts = np.searchsorted(confidence, confidence[np.minimum(cuts[1:-1], n - 1)], side="left")
    return np.unique(np.concatenate([[0], starts, [n]]))


def _ece(confidence: np.ndarray, right: np.ndarray, edges: np.ndarray) -> float:
    gaps = np.add.reduceat(confidence - right, edges[:-1])
    return float(np.abs(gaps).sum() / len(confidence))


def _array(outputs: Sequence[Any]) -> np.ndarray:
    return np.stack([next(iter(output.values())).ravel() for output in outputs]).astype(np.float64)


def _are_probabilities(array: np.ndarray) -> bool:
    return bool((array >= 0).all() and (np.abs(array.sum(1) - 1) < _SUM).all())
