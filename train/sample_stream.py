"""From a source's samples to a network's inputs: preprocessing, and what to do with bad samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from ..artifact.preprocess import ImagePreprocess, decode
from ..artifact.token_inputs import for_network
from ..errors import DataError
from .data_source import NOT_FINITE, DataSource
from .splits import Splits
from .task import Inputs


class SampleStream:
    """Samples of a split as ``(inputs, index)``, bad ones counted.

    Args:
        source, splits: what there is, and which part of it is which.
        preprocess: how an image becomes an input; None for arrays.
        dtypes: of the network's inputs by name; of one unless the source gives several by name.
        calibration_source: where calibration samples come from instead of `source`.
        on_bad_sample: ``error`` refuses an unreadable, non-finite or wrongly labelled sample;
            ``skip`` leaves it out and counts it.
    """

    def __init__(
        self,
        source: DataSource,
        splits: Splits,
        preprocess: ImagePreprocess | None,
        dtypes: Mapping[str, str],
        calibration_source: DataSource | None = None,
        on_bad_sample: str = "error",
        seed: int = 0,
    ) -> None:
        self.source, self.splits = source, splits
        self._preprocess, self._dtypes = preprocess, dict(dtypes)
        self._calibration = calibration_source
        self._skip = on_bad_sample == "skip"
        self._bad: dict[tuple[str, int], str] = {}
        self._calibration_order = self._order_calibration(seed)

    def indices(self, split: str) -> np.ndarray:
        """Indices of a split in the stream's order, bad samples included."""
        if split == "calibration" and self._calibration is not None:
            return self._calibration_order
        return self.splits.parts.get(split, np.array([], np.int64))

    def samples(self, split: str) -> Iterator[tuple[Inputs, int]]:
        """Yield ``({name: array without batch axis}, index)``.

        Raises:
            DataError: a sample is bad and `on_bad_sample` is ``error``.
        """
        own = split == "calibration" and self._calibration is not None
        source = self._calibration if own else self.source
        for index in self.indices(split).tolist():
            if (source.name, index) in self._bad:
                continue
            try:
                inputs = self._inputs(source.read(index))
            except DataError as e:
                self.bad(source, index, "unreadable", str(e))
                continue
            if any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in inputs.values()):
                self.bad(source, index, *NOT_FINITE)
                continue
            yield inputs, index

    def kept(self, split: str) -> list[int]:
        """Indices of a split without the bad samples met so far: those that `samples` yields."""
        name = self.source.name
        return [i for i in self.indices(split).tolist() if (name, i) not in self._bad]

    def look(self) -> None:
        """Refuse, or count, the samples that one reading shows to be bad: before any work.

        Raises:
            DataError: a sample is bad and `on_bad_sample` is ``error``; or every one is.
        """
        for source in (self.source, self._calibration):
            for index, (kind, reason) in source.faults.items() if source else ():
                self.bad(source, index, kind, reason)
            if source and len(source.faults) == len(source):
                raise DataError(f"{source.name}: every sample is bad; the first {reason}")

    def bad(self, source: DataSource, index: int, kind: str, reason: str) -> None:
        """Refuse a sample, or count it."""
        if not self._skip:
            raise DataError(
                f"{source.name}: {source.places[index]}: {reason} (--on-bad-sample skip leaves such samples out)"
            )
        self._bad[source.name, index] = kind

    def counts(self) -> dict[str, int]:
        """Bad samples met so far by kind, and duplicates."""
        found = dict(Counter(self._bad.values()))
        if self.splits.duplicates:
            found["duplicate"] = self.splits.duplicates
        return found

    def _inputs(self, sample: bytes | np.ndarray | Mapping[str, np.ndarray]) -> Inputs:
        """By the network's own names."""
        if isinstance(sample, bytes):
            sample = self._preprocess.apply(decode(sample))
        if isinstance(sample, Mapping):
            found = for_network(dict(sample), self._dtypes) or {}
        else:
            ((name, _),) = self._dtypes.items()
            found = {name: np.asarray(sample)}
        return {name: _typed(array, self._dtypes[name]) for name, array in found.items()}

    def _order_calibration(self, seed: int) -> np.ndarray:
        """A seeded order of the calibration source without what is also scored."""
        source = self._calibration
        if source is None:
            return np.array([], np.int64)
        order = np.random.default_rng(seed).permutation(len(source))
        if source.kind != self.source.kind or source.name == self.source.name:
            return order
        parts = (self.splits.parts.get(name, ()) for name in ("validation", "test"))
        scored = {self.source.hashes[i] for part in parts for i in part} - {b""}
        kept = [i for i in order.tolist() if source.hashes[i] not in scored]
        if not kept:
            raise DataError(
                f"every sample of {source.name} is also scored: nothing to calibrate on"
            )
        return np.array(kept, np.int64)


def stream_of(task: object) -> SampleStream | None:
    """The stream behind a built-in task; None of a user's own, which makes its samples itself."""
    found = getattr(task, "stream", None)
    return found if isinstance(found, SampleStream) else None


def _typed(array: np.ndarray, dtype: str) -> np.ndarray:
    wanted = np.dtype(dtype)
    if array.dtype == wanted:
        return array
    if array.dtype.kind != wanted.kind:
        raise DataError(
            f"is {array.dtype}, the network takes {wanted}; arrays are fed as they are: "
            "convert and scale them first"
        )
    return array.astype(wanted)
