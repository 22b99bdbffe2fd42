"""Without labels: how far an engine agrees with the reference on the same samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .sample_stream import SampleStream
from .task import Inputs, Outputs


class Agreement:
    """The share of samples on which an engine answers as the reference does.

    The targets are the reference's outputs (`evaluate` puts them there), so the reference has 1.0.
    Networks that name a class agree by top-1; others by the cosine of their outputs. This is no
    accuracy: results are marked ``agreement only``.
    """

    lower_is_better = False
    targets_from_reference = True

    def __init__(self, stream: SampleStream, num_outputs: int | None = None) -> None:
        self.stream = stream
        self._names_a_class = num_outputs is not None and num_outputs > 1
        self.primary = "agreement" if self._names_a_class else "cosine"
        if self._names_a_class:
            self.answer = lambda output: int(_first(output).argmax())

    def indices(self, split: str) -> np.ndarray:
        return self.stream.indices(split)

    def samples(self, split: str) -> Iterator[tuple[Inputs, None]]:
        for inputs, _ in self.stream.samples(split):
            yield inputs, None

    def score(self, outputs: Sequence[Outputs], targets: Sequence[Outputs]) -> dict[str, float]:
        pairs = list(zip(outputs, targets, strict=True))
        found = {"cosine": float(np.mean([_cosine(o, t) for o, t in pairs]))}
        if self._names_a_class:
            found["agreement"] = float(np.mean([self.per_sample(o, t) for o, t in pairs]))
        return found

    def per_sample(self, output: Outputs, target: Outputs) -> float:
        if self._names_a_class:
            return float(_first(output).argmax() == _first(target).argmax())
        return _cosine(output, target)

    def report(self) -> dict[str, int]:
        return self.stream.counts()


def _first(output: Outputs) -> np.ndarray:
    return next(iter(output.values())).ravel()


def _cosine(output: Outputs, target: Outputs) -> float:
    """The mean over outputs of the cosine; 1 where both are zero."""
    found = []
    for name, value in target.items():
        a, b = value.ravel().astype(np.float64), output[name].ravel().astype(np.float64)
        norm = float(np.linalg.norm(a) * np.linalg.norm(b))
        found.append(float(a @ b) / norm if norm else float(not a.any() and not b.any()))
    return min(1.0, float(np.mean(found)))
