"""Calibration data as a stream: memory does not grow with the number of samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from ..artifact.tensor_spec import TensorSpec
from ..errors import DataError
from ..train.task import Inputs


class Calibration:
    """The first `samples` samples of a source, each as a batch; may be iterated again.

    Args:
        source: opens the stream of inputs (arrays without the batch axis).
        samples: how many are taken at most.
        fingerprint: a hash that stands for the content; None hashes the stream itself when asked.
        random: the samples are noise (`random_calibration`), which marks every result.
        batch: of networks whose batch axis is fixed; each sample is repeated to fill it.
    """

    def __init__(
        self,
        source: Callable[[], Iterator[Inputs]],
        samples: int,
        fingerprint: str | None = None,
        random: bool = False,
        batch: int = 1,
    ) -> None:
        self._source = source
        self._fingerprint = fingerprint
        self.samples = samples
        self.random = random
        self.batch = batch
        self.seen = 0

    def __iter__(self) -> Iterator[Inputs]:
        """Yield ``{name: array (batch, …)}``."""
        seen = 0
        for inputs in islice(self._source(), self.samples):
            seen += 1
            yield {
                name: np.repeat(np.ascontiguousarray(array)[None], self.batch, 0)
                if self.batch > 1
                else np.ascontiguousarray(array)[None]
                for name, array in inputs.items()
            }
        if seen == 0:
            raise DataError(
                "no calibration samples: the data has no train split; give --calibration-data"
            )
        self.seen = seen

    @property
    def fingerprint(self) -> str:
        """sha256 that changes whenever the samples do."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for inputs in self:
                for name in sorted(inputs):
                    array = inputs[name]
                    digest.update(f"{name}{array.dtype}{array.shape}".encode())
                    digest.update(array.tobytes())
            self._fingerprint = digest.hexdigest()
        return f"{self._fingerprint}:{self.samples}"


def random_calibration(
    specs: list[TensorSpec], samples: int, seed: int, batch: int = 1
) -> Calibration:
    """Standard normal noise for float inputs, small integers for integer ones.

    Raises:
        DataError: an axis other than the batch is open, so no array can be made.
    """
    for spec in specs:
        if None in spec.shape[1:]:
            raise DataError(f"random calibration needs known shapes, but input {spec} is open")

    def stream() -> Iterator[Inputs]:
        rng = np.random.default_rng(seed)
        while True:
            yield {
                spec.name: (
                    rng.standard_normal(spec.shape[1:]).astype(spec.dtype)
                    if np.issubdtype(np.dtype(spec.dtype), np.floating)
                    else rng.integers(0, 2, spec.shape[1:]).astype(spec.dtype)
                )
                for spec in specs
            }

    shapes = ";".join(map(str, specs))
    return Calibration(stream, samples, f"random:{seed}:{shapes}", random=True, batch=batch)
