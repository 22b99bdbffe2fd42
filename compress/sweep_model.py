"""What a sweep expects of configurations that it has not tried.

An engine's own part is known from the original: the points that it loses, its time and its bytes. What a
trial adds, whatever engine it ran, is its *network's* part: points lost beyond the engine's, and the
ratios of time, bytes and energy to the engine's on the original. A Gaussian process for each (Rasmussen
and Williams 2006, algorithm 2.1) carries it to networks that are like it. One draw of them is believed
(Thompson sampling; with several objectives Bradford et al. 2018, TSEMO), so that what is not known well
is tried, too, and the configuration is best whose draw adds the most volume to the front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .front import Scale, ranks
from .sweep_space import KINDS, SHARES, Choice

# Points that the volume is counted with: one of them is 0.0002 of it.
POINTS = 4096
# What is assumed of a network before anything is measured, by objective: how far it lies from the mean,
# and the noise of a measurement, both as `parts` tells them. From made-up networks 0 to 5 of
# benchmarks/sweep_landscape.py, of which a factor of two either way changes little.
SPREAD = {"accuracy": 1.5, "latency": 0.1, "size": 0.4, "energy": 0.2}
NOISE = {"accuracy": 0.25, "latency": 0.05, "size": 0.05, "energy": 0.1}


def features(choice: Choice) -> list[float]:
    """Where a network lies: choices whose features differ by less than one are alike."""
    taught = choice.rung > 0 and choice.distil
    kinds = [1.4 * (choice.kinds == kind) for kind in KINDS]
    pruned = (1 - choice.share) / (1 - SHARES[-1]) * 2
    return [pruned, *kinds, 0.8 * choice.rung, 0.5 * taught, 0.5 * np.log2(choice.threads)]


def parts(
    objectives: Sequence[str], share: float, values: np.ndarray, original: np.ndarray
) -> np.ndarray:
    """A network's own part of what was measured.

    Args:
        values: float [objectives], of the network's engine.
        original: float [objectives], of the same engine of the original.

    Returns:
        float [objectives]: of points lost the inverse hyperbolic sine, so that 50 are not 50 times 1; of the
        others the logarithm of the ratio to what is expected: for times and energy the share.
    """
    found = np.empty(len(objectives))
    for j, name in enumerate(objectives):
        if name == "accuracy":
            found[j] = np.arcsinh(values[j] - original[j])
        else:
            found[j] = np.log(values[j] / original[j]) - _expected(name, share)
    return found


def values_of(
    objectives: Sequence[str], share: np.ndarray, found: np.ndarray, original: np.ndarray
) -> np.ndarray:
    """The inverse of `parts` for many: float [n, objectives]."""
    values = np.empty_like(found)
    for j, name in enumerate(objectives):
        if name == "accuracy":
            values[:, j] = original[:, j] + np.sinh(found[:, j])
        else:
            values[:, j] = original[:, j] * np.exp(found[:, j] + _expected(name, share))
    return values


def _expected(name: str, share: np.ndarray | float) -> np.ndarray | float:
    return np.log(share) if name in ("latency", "energy") else np.zeros_like(share)


def draw(
    objectives: Sequence[str],
    tried: Sequence[tuple[Choice, Sequence[float]]],
    originals: Mapping[tuple[str, int], Sequence[float]],
    choices: Sequence[Choice],
    rng: np.random.Generator,
) -> np.ndarray:
    """One draw of what `choices` may be, float [choices, objectives], all minimised.

    Args:
        tried: what was measured of which choice.
        originals: by engine and threads what was measured of the original.
    """
    unpruned = [
        Choice(1.0, kind, "", False, threads, rung)
        for kind in KINDS
        for rung in range(3)
        for threads in sorted({c.threads for c in choices})
    ]
    known = [features(c) for c in unpruned] + [features(c) for c, _ in tried]
    seen = np.zeros(
        (len(known), len(objectives))
    )  # a network of which nothing is cut is the original
    for i, (choice, values) in enumerate(tried, len(unpruned)):
        own = np.asarray(originals[choice.engine, choice.threads])
        seen[i] = parts(objectives, choice.share, np.asarray(values), own)
    networks = {choice.network: choice for choice in choices}
    place = {network: i for i, network in enumerate(networks)}
    wanted = np.array([features(c) for c in networks.values()])
    found = np.empty((len(networks), len(objectives)))
    for j, name in enumerate(objectives):
        mean, deviation = _process(np.array(known), seen[:, j], wanted, SPREAD[name], NOISE[name])
        found[:, j] = mean + deviation * rng.standard_normal(len(mean))
    rows = found[[place[choice.network] for choice in choices]]
    own = np.array([originals[choice.engine, choice.threads] for choice in choices])
    return values_of(objectives, np.array([c.share for c in choices]), rows, own)


def gains(
    scale: Scale, front: np.ndarray, values: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The normalised volume that each of `values` adds to `front`, counted over random points.

    Args:
        front: float [n, objectives].
        values: float [m, objectives].

    Returns:
        float [m].
    """
    points = rng.random((len(scale.ideal), POINTS))
    there, asked = scale.unit(front), scale.unit(values)
    free = points[:, ~_over(there[ranks(there) == 0], points).any(0)]
    found = np.zeros(len(asked))
    worth = (asked < 1).all(1) & ~_over(there, asked.T).any(0)
    found[worth] = _over(asked[worth], free).sum(1) / POINTS
    return found


def _over(rows: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether each of `rows`, float [n, k], is nowhere above each of `points`, float [k, m]: bool [n, m]."""
    found = np.ones((len(rows), points.shape[1]), bool)
    for column, values in zip(rows.T, points, strict=True):
        found &= column[:, None] <= values
    return found


def _process(
    x: np.ndarray, y: np.ndarray, wanted: np.ndarray, spread: float, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation at `wanted` of a process that was seen to be y at x."""
    near = spread**2 * np.exp(-0.5 * _squares(x, x)) + noise**2 * np.eye(len(x))
    lower = np.linalg.cholesky(near)
    across = spread**2 * np.exp(-0.5 * _squares(x, wanted))
    half = np.linalg.solve(lower, across)
    mean = half.T @ np.linalg.solve(lower, y)
    return mean, np.sqrt(np.maximum(spread**2 - (half**2).sum(0), 0.0))


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a[:, None] - b[None]) ** 2).sum(2)
