"""From a recipe's words (--data, --task, --calibration-data) to a task and its calibration stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.content_hash import hash_file, hash_json
from ..artifact.preprocess import ImagePreprocess
from ..artifact.tensor_spec import TensorSpec
from ..errors import DataError, TaskError
from .agreement import Agreement
from .classification import Classification
from .data_source import DataSource, open_source
from .evaluate import read_samples
from .load_task import check_samples, load_task
from .sample_stream import SampleStream
from .sources.tokens import tokenizer_file
from .splits import make_splits
from .task import Inputs, Task


@dataclass(frozen=True)
class OpenedTask:
    """A task ready to be scored.

    Attributes:
        task: the task.
        calibration: opens the stream of calibration inputs (without the batch axis).
        calibration_fingerprint: stands for that stream's content; None where only the stream tells.
        fingerprint: stands for the scored content; None where only the stream tells.
        preprocess: how an image becomes an input; None for arrays and users' own tasks.
        facts: for the manifest: sources, how splits were made.
        notes: what the user should read before the numbers.
        tokenizer: the file that makes a text the network's input; None for other data.
    """

    task: Task
    calibration: Callable[[], Iterator[Inputs]]
    calibration_fingerprint: str | None
    fingerprint: str | None
    preprocess: ImagePreprocess | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tokenizer: Path | None = None


def open_user_task(
    reference: str,
    specs: Sequence[TensorSpec],
    names_only: bool = False,
    calibrates: bool = True,
) -> OpenedTask:
    """A task of the user's own file.

    Args:
        specs: what the network takes.
        names_only: only the names in `specs` are known (a torch module says no shapes).
        calibrates: its train split is calibrated on.

    Raises:
        TaskError: the file breaks the contract of `train.task.Task`.
    """
    task = load_task(reference)
    names = ("validation", "test", *(["train"] if calibrates else []))
    firsts = [check_samples(task, split, specs, names_only) for split in names]
    notes = [
        f"{a} and {b} begin with the same sample: splits must not overlap, see docs/tasks.md"
        for (a, x), (b, y) in combinations(zip(names, firsts, strict=True), 2)
        if all(np.array_equal(x[name], y[name]) for name in x)
    ]

    def calibration() -> Iterator[Inputs]:
        for inputs, _ in read_samples(task, "train", None):
            yield inputs

    path = reference.rpartition(":")[0] or reference
    facts = {"source": reference, "task_sha256": hash_file(Path(path))}
    return OpenedTask(task, calibration, None, None, facts=facts, notes=notes)


def open_data(
    data: str,
    specs: TensorSpec | Sequence[TensorSpec],
    *,
    calibration_data: str | None = None,
    classes: list[str] | None = None,
    preprocess: ImagePreprocess | None = None,
    outputs: int | None = None,
    seed: int = 0,
    on_bad_sample: str = "error",
    tokenizer: Path | None = None,
    model_classes: list[str] | None = None,
) -> OpenedTask:
    """Classification over a source with labels, agreement with the reference over one without.

    Args:
        specs: the network's input (batch axis first); open axes are left to the preprocessing.
            Several, where the source gives them by name.
        preprocess: None assumes one that fits the input, and says so in the notes.
        outputs: the number of the network's classes, where it is known.
        tokenizer: comes with the model; makes texts its inputs.
        model_classes: names that come with the model, in its outputs' order: taken where the
            data's labels are among them and `classes` gives none.

    Raises:
        DataError: the source, its splits or its samples cannot be used.
    """
    specs = [specs] if isinstance(specs, TensorSpec) else list(specs)
    spec, words = specs[0], data
    source = open_source(data, classes=classes)
    if classes is None and model_classes and set(source.classes or ()) <= set(model_classes):
        classes = model_classes
        source = open_source(data, classes=classes)
    if source.kind == "text":
        if tokenizer is None:
            raise DataError(
                f"{data} gives texts, and the model brings no tokenizer; give "
                f"tokens:TOKENIZER.json:{data}"
            )
        words = f"tokens:{tokenizer}:{data}"
        source = open_source(words, classes=classes)
        if calibration_data is not None:
            calibration_data = f"tokens:{tokenizer}:{calibration_data}"
    names = [spec.name for spec in specs]
    if len(specs) > 1 and not set(names) <= set(source.inputs):
        have = f"one input, or {', '.join(source.inputs)}" if source.inputs else "one input"
        raise DataError(
            f"{data} feeds networks of {have}; this one has {', '.join(names)}; write a --task"
        )
    notes: list[str] = []
    if source.kind == "image" and preprocess is None:
        preprocess = assumed_preprocess(spec)
        notes.append(
            f"preprocessing was not declared; assumed {describe(preprocess)} "
            "(--resize --crop --scale --mean --std --layout declare it)"
        )
    if source.kind == "array":
        preprocess = None
    calibration_source: DataSource | None = None
    if calibration_data:
        calibration_source = open_source(calibration_data, classes=classes)
    splits = make_splits(source, seed=seed, want_calibration=calibration_source is None)
    notes += splits.notes
    stream = SampleStream(
        source,
        splits,
        preprocess,
        {spec.name: spec.dtype for spec in specs},
        calibration_source=calibration_source,
        on_bad_sample=on_bad_sample,
        seed=seed,
    )
    stream.look()
    task: Task
    if source.labels is None:
        task = Agreement(stream, outputs)
        notes.append(
            f"{data} has no labels: engines are judged by their agreement with the original network"
        )
    else:
        task = Classification(stream, outputs)
    how = hash_json(
        {
            "seed": seed,
            "skip": on_bad_sample,
            "input": ", ".join(map(str, specs)),
            "preprocess": preprocess.model_dump(mode="json") if preprocess else None,
        }
    )
    fingerprint = source.fingerprint
    calibration_fingerprint = calibration_source.fingerprint if calibration_source else fingerprint

    def calibration() -> Iterator[Inputs]:
        for inputs, _ in stream.samples("calibration"):
            yield inputs

    facts = {
        "source": data,
        "fingerprint": fingerprint,
        "calibration_source": calibration_data or f"part of {data}",
        "calibration_fingerprint": calibration_fingerprint,
        "splits": splits.facts(),
    }
    return OpenedTask(
        task,
        calibration,
        # What is scored is left out of calibration, which so depends on both.
        f"{calibration_fingerprint}:{fingerprint}:{how}",
        f"{fingerprint}:{how}",
        preprocess,
        facts,
        notes,
        tokenizer_file(words),
    )


def assumed_preprocess(spec: TensorSpec) -> ImagePreprocess:
    """A plain guess that fits the input: short side to the crop, centre crop, pixels in [0, 1].

    Raises:
        DataError: the input is no image, or its sides are open.
    """
    shape = spec.shape
    if len(shape) != 4:
        raise DataError(
            f"images do not fit input {spec}, which is no N×C×H×W; give --task or npz: data"
        )
    layout = "NHWC" if shape[3] in (1, 3) and shape[1] not in (1, 3) else "NCHW"
    channels, sides = (shape[3], shape[1:3]) if layout == "NHWC" else (shape[1], shape[2:4])
    if None in sides or channels is None:
        raise DataError(f"input {spec} does not say its size; give --resize and --crop")
    return ImagePreprocess(
        resize=max(sides),
        crop=sides,
        layout=layout,
        color="L" if channels == 1 else "RGB",
        # A network that takes bytes has its arithmetic inside.
        folded=spec.dtype == "uint8" and layout == "NHWC",
    )


def describe(preprocess: ImagePreprocess) -> str:
    """One clause that says what happens to an image."""
    parts = [
        f"resize {preprocess.resize}" if preprocess.resize else "",
        f"crop {preprocess.crop}" if preprocess.crop else "",
        f"scale {preprocess.scale:.6g}",
        f"mean {preprocess.mean}",
        f"std {preprocess.std}",
        preprocess.layout,
        preprocess.color,
    ]
    return ", ".join(part for part in parts if part)


def require_samples(task: Task, split: str) -> Inputs:
    """The first sample's inputs of a split.

    Raises:
        TaskError: there is none.
    """
    for inputs, _ in read_samples(task, split, 1):
        return inputs
    raise TaskError(f"the task yields no {split} samples; edgeml needs validation and test")
