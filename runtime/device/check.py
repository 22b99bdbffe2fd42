"""How far an engine's outputs are from the reference's, over all reference inputs of a file.

The figures are those of `export.parity.Difference`, so that the host judges both by one table of tolerances.
With numpy where it is; a board without it adds up in Python, which classifiers' outputs take well.
"""

from __future__ import annotations

import math
from typing import Any

from ...errors import EdgemlError
from .tensor_file import Tensor, count, read_tensors, samples, to_array, to_numbers


def check_engine(runner: Any, reference: str) -> dict[str, Any]:
    """Run every reference input of a file and compare the outputs.

    Args:
        runner: see `load_runner`.
        reference: a tensor file of ``NNN.input.NAME`` and ``NNN.output.NAME``.

    Returns:
        The protocol's row: status, n, outputs ``[{"name", "max_abs", "max_rel", "cosine", "sqnr_db",
        "differing", "equal"}]``, reason.
    """
    tensors = read_tensors(reference)
    inputs, expected = samples(tensors, "input"), samples(tensors, "output")
    if not inputs:
        return failed(0, "the reference file holds no inputs")
    sums: dict[str, Sums] = {}
    for number, feed in inputs.items():
        try:
            got = runner.run(feed)
        except EdgemlError as e:
            return failed(len(inputs), f"input {number}: {e}")
        for name, want in expected.get(number, {}).items():
            if name not in got:
                return failed(len(inputs), f"the engine has no output {name!r}")
            try:
                sums.setdefault(name, Sums()).add(want, got[name])
            except ValueError as e:
                return failed(len(inputs), f"input {number}, output {name!r}: {e}")
    if not sums:
        return failed(len(inputs), "the reference file holds no outputs")
    empty = [name for name, total in sums.items() if total.elements and not total.compared]
    if empty:  # equal in nothing is not equal
        return failed(len(inputs), f"the reference's output {empty[0]!r} is all NaN or infinite")
    outputs = [{"name": name, **total.row()} for name, total in sums.items()]
    return {"status": "checked", "n": len(inputs), "outputs": outputs, "reason": None}


def failed(n: int, reason: str) -> dict[str, Any]:
    """The row of an engine that could not be compared."""
    return {"status": "failed", "n": n, "outputs": [], "reason": reason}


class Sums:
    """Sums over all inputs of one output, from which its figures follow."""

    def __init__(self) -> None:
        self.dot = self.want2 = self.got2 = self.noise = 0.0
        self.max_abs = self.largest = 0.0
        self.elements = self.differing = self.compared = 0
        self.whole = False

    def add(self, want: Tensor, got: Tensor) -> None:
        """Add one input's pair.

        Raises:
            ValueError: shapes differ, or one has NaN where the other has none.
        """
        if count(want.shape) != count(got.shape):
            raise ValueError(f"has shape {list(got.shape)}, the reference {list(want.shape)}")
        self.whole = not want.dtype.startswith("float")
        compared, dot, want2, got2, noise, max_abs, largest, differing, broken = _pair(want, got)
        if broken:
            raise ValueError(f"{broken} values are NaN or infinite, the reference's are not")
        self.dot, self.want2, self.got2 = self.dot + dot, self.want2 + want2, self.got2 + got2
        self.noise += noise
        self.max_abs, self.largest = max(self.max_abs, max_abs), max(self.largest, largest)
        self.differing += differing
        self.elements += count(want.shape)
        self.compared += compared

    def row(self) -> dict[str, Any]:
        """The figures; those that are infinite are None beside ``"equal": true``."""
        norms = math.sqrt(self.want2) * math.sqrt(self.got2)
        both_zero = self.want2 == 0 and self.got2 == 0
        max_rel: float | None = self.max_abs / self.largest if self.largest else None
        return {
            "max_abs": self.max_abs,
            "max_rel": 0.0 if self.max_abs == 0 else max_rel,
            "cosine": 1.0 if both_zero else (self.dot / norms if norms else 0.0),
            "sqnr_db": 10 * math.log10(self.want2 / self.noise)
            if self.noise and self.want2
            else None,
            "differing": self.differing / max(1, self.elements) if self.whole else None,
            "equal": self.noise == 0,
        }


def _pair(want: Tensor, got: Tensor) -> tuple[float, ...]:
    try:
        import numpy as np
    except ImportError:
        return _pair_in_python(to_numbers(want), to_numbers(got))
    a = to_array(want).astype(np.float64).ravel()
    b = to_array(got).astype(np.float64).ravel()
    finite = np.isfinite(a)
    broken = int((finite & ~np.isfinite(b)).sum())
    # Where the reference itself is NaN or infinite there is nothing to hold against.
    a, b = a[finite], b[finite]
    if broken or a.size == 0:
        return 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, broken
    off = b - a
    return (
        a.size,
        float(a @ b),
        float(a @ a),
        float(b @ b),
        float(off @ off),
        float(np.abs(off).max()),
        float(np.abs(a).max()),
        int((off != 0).sum()),
        0,
    )


def _pair_in_python(want: list[float], got: list[float]) -> tuple[float, ...]:
    pairs = [(a, b) for a, b in zip(want, got) if a - a == 0]
    broken = sum(1 for _, b in pairs if b - b != 0)
    if broken or not pairs:
        return 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, broken
    return (
        len(pairs),
        math.fsum(a * b for a, b in pairs),
        math.fsum(a * a for a, _ in pairs),
        math.fsum(b * b for _, b in pairs),
        math.fsum((b - a) ** 2 for a, b in pairs),
        max(abs(b - a) for a, b in pairs),
        max(abs(a) for a, _ in pairs),
        sum(1 for a, b in pairs if a != b),
        0,
    )
