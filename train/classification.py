"""Classification: argmax, flips and confusion live in this file only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import DataError
from .sample_stream import SampleStream
from .task import Inputs, Outputs

# From so many classes on, the right one among the first five is a metric of its own.
TOP5_CLASSES = 20


class Classification:
    """The task of naming one class a sample: the largest of the network's first output.

    Args:
        stream: the samples; its source has labels.
        num_outputs: the network's number of classes, where it is known.

    Raises:
        DataError: labels do not fit the network, or there is only one class.
    """

    primary, lower_is_better = "accuracy", False

    def __init__(self, stream: SampleStream, num_outputs: int | None = None) -> None:
        self.stream = stream
        source = stream.source
        self.classes = source.classes
        if num_outputs == 1:
            raise DataError(
                "the network has one output, which names no class; write a --task with its own score"
            )
        names = len(self.classes) if self.classes else None
        if num_outputs is not None and names is not None and names != num_outputs:
            raise DataError(
                f"{source.name} has {names} class{'es' * (names != 1)}, the network {num_outputs} outputs; "
                "--classes FILE names them in the order of the outputs, a line each"
            )
        self.num_outputs = num_outputs or names
        seen = np.unique(source.labels[source.labels >= 0])
        if len(seen) < 2:
            what = "no label that is a class" if len(seen) == 0 else "one class only"
            raise DataError(f"{source.name} has {what}: an accuracy over it says nothing")
        for index in np.flatnonzero(self._wrong_labels()).tolist():
            word = source.unknown.get(index, str(source.labels[index]))
            of = f", the network has {num_outputs} (0 to {num_outputs - 1})" if num_outputs else ""
            stream.bad(source, index, "unknown label", f"label {word!r} names no class{of}")

    def _wrong_labels(self) -> np.ndarray:
        labels = self.stream.source.labels
        return (labels < 0) | (labels >= (self.num_outputs or np.inf))

    def indices(self, split: str) -> np.ndarray:
        return self.stream.indices(split)

    def samples(self, split: str) -> Iterator[tuple[Inputs, int]]:
        """``(inputs, class index)``; the split ``calibration`` yields inputs to calibrate on."""
        labels = self.stream.source.labels
        for inputs, index in self.stream.samples(split):
            yield inputs, 0 if split == "calibration" else int(labels[index])

    def score(self, outputs: Sequence[Outputs], targets: Sequence[int]) -> dict[str, float]:
        right = [self.per_sample(o, t) for o, t in zip(outputs, targets, strict=True)]
        found = {"accuracy": float(np.mean(right))}
        if (self.num_outputs or 0) >= TOP5_CLASSES:
            five = [
                target in np.argpartition(-_logits(o), 4)[:5]
                for o, target in zip(outputs, targets, strict=True)
            ]
            found["top5"] = float(np.mean(five))
        return found

    def per_sample(self, output: Outputs, target: int) -> float:
        return float(self.answer(output) == target)

    def answer(self, output: Outputs) -> int:
        return int(_logits(output).argmax())

    def report(self) -> dict[str, int]:
        """Bad samples met so far, by kind."""
        return self.stream.counts()

    def order_suspicion(self, outputs: Sequence[Outputs], targets: Sequence[int]) -> str | None:
        """Why the labels seem to be in another order than the network's outputs, or None.

        A renaming of labels is learnt on every second sample and tried on the others: where it makes
        a network right that was wrong, the order is at fault and not the network.
        """
        answers = [self.answer(output) for output in outputs]
        pairs = list(zip(targets, answers, strict=True))
        table: dict[int, dict[int, int]] = {}
        for target, answer in pairs[::2]:
            votes = table.setdefault(target, {})
            votes[answer] = votes.get(answer, 0) + 1
        meaning = {target: max(votes, key=votes.get) for target, votes in table.items()}
        if len(set(meaning.values())) < len(meaning) * 0.75:
            return None  # several labels share one answer: the network is at fault
        held = [(t, a) for t, a in pairs[1::2] if t in meaning]
        # 20: fewer samples say nothing of a renaming.
        if len(held) < 20:
            return None
        as_is = float(np.mean([t == a for t, a in held]))
        renamed = float(np.mean([meaning[t] == a for t, a in held]))
        if renamed < 0.5 or renamed - as_is < 0.3:
            return None
        moved = next(t for t, a in meaning.items() if t != a)
        name = self.classes[moved] if self.classes else moved
        how = (
            "--classes FILE names the classes in the order of the outputs"
            if self.classes
            else "number the labels in the order of the outputs"
        )
        return (
            f"the labels are in another order than the network's outputs: accuracy {as_is:.0%}, "
            f"{renamed:.0%} after renaming (its output {meaning[moved]} answers to label "
            f"{moved}, {name!r}); {how}"
        )


def _logits(output: Outputs) -> np.ndarray:
    return next(iter(output.values())).ravel()
