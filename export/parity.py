"""Do two engines compute the same? The check behind every hop: torch to ONNX, ONNX to engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..artifact.tolerance import TOLERANCES, Difference, Tolerance, tolerance_for
from ..errors import InputError
from ..runtime.engine import Engine

__all__ = [
    "TOLERANCES",
    "Difference",
    "ParityReport",
    "Tolerance",
    "compare",
    "tolerance_for",
]


@dataclass(frozen=True)
class ParityReport:
    """The verdict of `compare`.

    Attributes:
        passed: every output is within tolerance (or only warned about, see `tolerance.warns_only`).
        max_abs, max_rel, cosine, sqnr_db: of the worst output, see `Difference`.
        worst_output: its name.
        n: samples compared.
        tolerance: what it was held against.
        line: the verdict in one line.
        warning: why the numbers deserve a look although it passed, or None.
        outputs: every output's difference, in the reference's order.
    """

    passed: bool
    max_abs: float
    max_rel: float
    cosine: float
    sqnr_db: float
    worst_output: str | None
    n: int
    tolerance: Tolerance
    line: str
    warning: str | None = None
    outputs: tuple[Difference, ...] = ()


def compare(
    reference: Engine,
    candidate: Engine,
    inputs: Sequence[Mapping[str, np.ndarray]],
    precision: str,
) -> ParityReport:
    """Run both engines on `inputs` and hold the candidate's outputs against the reference's.

    Args:
        reference, candidate: engines with the same input names; the same output names are due.
        inputs: real inputs, each ``{name: [batch, …]}`` as both engines take them.
        precision: what the candidate computes in; chooses the tolerance.

    Returns:
        The report; it did not pass where output names or shapes differ, or where NaN or infinity
        stands on one side only. Differences are summed up output by output, nothing is kept.

    Raises:
        InputError: an engine does not take the inputs, there are none, or the precision is unknown.
    """
    tolerance = tolerance_for(precision)
    sums: dict[str, RunningDifference] = {}
    n = 0
    for feed in inputs:
        expected, got = reference.run(feed), candidate.run(feed)
        if list(expected) != list(got) and set(expected) != set(got):
            seen = f"{', '.join(got)}; the reference gives {', '.join(expected)}"
            return _refused(f"output names differ: the candidate gives {seen}", n, tolerance)
        for name, value in expected.items():
            sums.setdefault(name, RunningDifference(name)).add(value, got[name])
        n += _batch(feed)
    if not sums:
        raise InputError("parity needs at least one input")
    return _report(tuple(s.difference() for s in sums.values()), n, precision, tolerance)


class RunningDifference:
    """A `Difference` that is fed pair by pair: sums in float64, memory does not grow with them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.max_abs = self.scale = 0.0
        self.signal = self.noise = self.dot = self.power = 0.0
        self.elements = self.unequal = 0
        self.integer = False
        self.problem: str | None = None

    def add(self, expected: np.ndarray, got: np.ndarray) -> None:
        """Take in one pair of the same tensor, each ``[batch, …]``."""
        if self.problem:
            return
        expected, got = np.asarray(expected), np.asarray(got)
        if expected.shape != got.shape:
            shapes = ["×".join(map(str, a.shape)) or "scalar" for a in (expected, got)]
            self.problem = f"shape {shapes[1]} instead of {shapes[0]}"
            return
        a, b = expected.astype(np.float64), got.astype(np.float64)
        if np.isnan(a).any():
            self.problem = f"the reference itself gives {int(np.isnan(a).sum()):,} NaN"
        elif np.isnan(b).any():
            self.problem = f"{int(np.isnan(b).sum()):,} of {b.size:,} values are NaN"
        elif (np.isinf(a) | np.isinf(b)).any():
            # The same infinity in the same place is right (masked logits); it has no distance.
            same = np.where(np.isinf(a) | np.isinf(b), a == b, True)
            if not same.all():
                self.problem = (
                    f"{int((~same).sum()):,} of {b.size:,} values are infinite on one side"
                )
            finite = np.isfinite(a) & np.isfinite(b)
            a, b = a[finite], b[finite]
        if self.problem or a.size == 0:
            return
        self.integer = expected.dtype.kind in "iub"
        delta = b - a
        self.elements += delta.size
        self.unequal += int(np.count_nonzero(delta))
        self.max_abs = max(self.max_abs, float(np.abs(delta).max()))
        self.scale = max(self.scale, float(np.abs(a).max()))
        self.signal += float(np.vdot(a, a))
        self.power += float(np.vdot(b, b))
        self.noise += float(np.vdot(delta, delta))
        self.dot += float(np.vdot(a, b))

    def difference(self) -> Difference:
        """The sum of what was added."""
        nan, inf = math.nan, math.inf
        if self.problem:
            return Difference(self.name, nan, nan, nan, -inf, problem=self.problem)
        differing = self.unequal / self.elements if self.integer else None
        if self.noise == 0.0:
            return Difference(self.name, 0.0, 0.0, 1.0, inf, differing)
        norm = math.sqrt(self.signal * self.power)
        return Difference(
            self.name,
            self.max_abs,
            self.max_abs / self.scale if self.scale else inf,
            self.dot / norm if norm else 0.0,
            10 * math.log10(self.signal / self.noise) if self.signal else -inf,
            differing,
        )


def _batch(feed: Mapping[str, np.ndarray]) -> int:
    return next((len(v) for v in feed.values() if np.ndim(v)), 1)


def _refused(reason: str, n: int, tolerance: Tolerance) -> ParityReport:
    nan = math.nan
    return ParityReport(
        False, nan, nan, nan, -math.inf, None, n, tolerance, f"parity not shown: {reason}"
    )


def _report(
    outputs: tuple[Difference, ...], n: int, precision: str, tolerance: Tolerance
) -> ParityReport:
    worst = min(outputs, key=lambda d: (d.problem is None, d.sqnr_db, -d.max_rel))
    misses = [d for d in outputs if d.problem or not d.within(tolerance)]
    if misses and worst not in misses:  # judged by max_rel alone, another may be the culprit
        worst = misses[0]
    passed = not any(d.problem for d in outputs) and (not misses or tolerance.warns_only)
    figures = _figures(worst, tolerance)
    verdict = "holds" if passed else "fails"
    line = f"parity {precision} {verdict}: output {worst.name}: {figures}, n = {n:,}"
    warning = None
    if passed and misses:
        warning = (
            f"output {worst.name} is only {worst.sqnr_db:.1f} dB above the error "
            f"(expected at least {tolerance.min_sqnr_db:g}): look at the accuracy"
            if worst.differing is None
            else f"output {worst.name}: {figures}: look at the accuracy"
        )
    return ParityReport(
        passed,
        worst.max_abs,
        worst.max_rel,
        worst.cosine,
        worst.sqnr_db,
        worst.name,
        n,
        tolerance,
        line,
        warning,
        outputs,
    )


def _figures(worst: Difference, tolerance: Tolerance) -> str:
    if worst.problem:
        return worst.problem
    if worst.differing is not None:
        limit = tolerance.max_differing
        allowed = "" if limit is None else f" (allowed {limit:.0%})"
        return f"{worst.differing:.2%} of the values differ{allowed}"
    limit = "" if tolerance.max_rel is None else f", allowed {tolerance.max_rel:.0e}"
    least = "" if tolerance.min_sqnr_db is None else f" (at least {tolerance.min_sqnr_db:g})"
    return (
        f"max |Δ| {worst.max_abs:.2g} ({worst.max_rel:.1e} of the largest value{limit}), "
        f"{worst.sqnr_db:.1f} dB{least}, cosine {worst.cosine:.6f}"
    )
