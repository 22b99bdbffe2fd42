"""A training's data: opened, cut into splits, decoded once, ready as batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..artifact.atomic_file import write_json, write_text
from ..artifact.preprocess import ImagePreprocess, decode
from ..artifact.tensor_spec import TensorSpec
from ..errors import DataError, InputError, one_line
from .batches import Augment, flip, shift_crop
from .data_source import DataSource, open_source
from .decoded import DecodedSplits, decode_split
from .losses import Loss, classification_loss
from .metrics import ClassificationScores, score_classifier, validator
from .open_task import open_data
from .settings import TrainSettings
from .sources.cut import DEFAULT
from .tokenizer import TokenizerSettings, learn_tokenizer
from .trained_bundle import TOKENIZER
from .zoo.catalogue import ZOO

if TYPE_CHECKING:
    from .training_run import TrainingRequest

# Splits do not follow the training's seed: what was trained with another seed is judged on the
# same samples, and `edgeml compress` (whose seed is 0) cuts them the same way.
SPLIT_SEED = 0
# Of 32 pixels: He et al. 2015, section 4.2.
CROP_SHIFT_SHARE = 4 / 32
EVALUATION_BATCH = 256


@dataclass(frozen=True)
class TrainingData(DecodedSplits):
    """Labelled samples of a source: a classification.

    Attributes:
        class_count: of the data, whether its classes have names or numbers.
        tokenizer, vocabulary: for texts, the tokenizer's file and its number of ids (None where it
            comes with the model).
    """

    classes: list[str] | None = None
    class_count: int = 0
    preprocess: ImagePreprocess | None = None
    tokenizer: Path | None = None
    vocabulary: int | None = None

    def augmentation(self, names: Sequence[str]) -> Augment | None:
        if not names:
            return None
        if self.preprocess is None or self.preprocess.layout != "NCHW":
            raise DataError(f"--augment {names[0]} is for images in NCHW layout")
        side = next(iter(self.arrays["train"][0].values())).shape[1]
        known = {"flip": flip, "crop": shift_crop(max(1, round(side * CROP_SHIFT_SHARE)))}
        chosen = [known[name] for name in names]

        def augment(images: Tensor, random: torch.Generator) -> Tensor:
            for one in chosen:
                images = one(images, random)
            return images

        return augment

    def loss(self, settings: TrainSettings) -> Loss:
        """What a step minimises."""
        return classification_loss(settings)

    def score(self, module: nn.Module, split: str, loss: Loss) -> ClassificationScores:
        """All scores over a split."""
        return score_classifier(
            module, self.batches(split, EVALUATION_BATCH), loss, self.class_count
        )

    def validate(self, module: nn.Module, loss: Loss) -> dict[str, float]:
        """Loss and accuracy over the validation split, for `fit`."""
        held_out = self.batches("validation", EVALUATION_BATCH)
        return validator(held_out, loss, self.class_count)(module)

    def write(self, root: Path) -> None:
        """What turns a sample into the network's input, and its answer into a name."""
        if self.preprocess is not None:
            write_json(root / "preprocess.json", self.preprocess.model_dump(mode="json"))
        if self.tokenizer is not None:
            write_text(root / TOKENIZER, self.tokenizer.read_text(encoding="utf-8"))
        if self.classes:
            write_text(root / "classes.txt", "".join(f"{name}\n" for name in self.classes))

    def facts_in(self, output: Path) -> dict[str, Any]:
        """For the manifest. The cache may be emptied: the run's own tokenizer stays with it."""
        moved = self.source.replace(str(self.tokenizer), f"{output}/{TOKENIZER}")
        return {**self.facts, "source": moved} if self.tokenizer is not None else self.facts


def open_training_data(
    request: TrainingRequest, folder: Path | None, names: Sequence[str] = ()
) -> TrainingData:
    """Open, cut and decode.

    A source without a train split is cut into 60 % train, 20 % validation, 20 % test.

    Args:
        folder: for arrays that are too large for memory.
        names: of the network's inputs, where there is a network already: of a source with several
            arrays a sample it takes those.

    Raises:
        DataError: the source cannot be read, has no labels, or has one class only.
    """
    words, classes = request.data, _read_classes(request.classes)
    source = open_source(words, classes)
    if source.labels is None:
        raise DataError(f"{words} has no labels; there is nothing to train on")
    if source.splits is None or len(set(source.splits)) == 1:
        words = f"cut:{DEFAULT}:{words}"
    elif "train" not in source.splits:
        raise DataError(f"{words} has no train split; there is nothing to train on")
    tokenizer, vocabulary = None, None
    inputs: Sequence[str] = ("x",)  # until the network is there, whose word it is
    if source.kind == "text":
        if request.model.startswith("hf:"):
            tokenizer, inputs, classes = _hf_text(request, source, classes)
        else:
            texts = _training_texts(open_source(words, classes))
            tokenizer, vocabulary = learn_tokenizer(texts, request.tokenizer)
        words = f"tokens:{tokenizer}:{words}"
        source = open_source(words, classes)
    elif request.model.startswith("hf:"):
        raise DataError(f"{request.model} takes texts, as text-csv: gives; {words} has none")
    notes: list[str] = []
    if source.kind == "image":
        preprocess = _preprocess(request, source, notes)
        stored, dtype = preprocess.model_copy(update={"folded": True}), "uint8"
    else:
        kinds = {"f": "float32", "i": "int64", "u": "int64", "b": "int64"}
        first = source.read(0)
        if isinstance(first, Mapping):  # ``tokens:``, as a training's own directory names it
            first, inputs = next(iter(first.values())), names or inputs
        dtype = "int64" if tokenizer else kinds[np.asarray(first).dtype.kind]
        preprocess, stored = None, None
    opened = open_data(
        words,
        [TensorSpec(name, (None,), dtype) for name in inputs],
        classes=classes,
        preprocess=stored,
        seed=SPLIT_SEED,
        on_bad_sample=request.on_bad_sample,
    )
    sizes = opened.facts["splits"]["sizes"]
    arrays = {}
    for split in ("train", "validation", "test"):
        decoded, targets = decode_split(opened.task, split, sizes[split], folder)
        arrays[split] = decoded, np.asarray(targets, np.int64)
    names = getattr(opened.task, "classes", None)
    report = opened.task.report()
    notes += opened.notes
    if report:
        notes.append("bad samples: " + ", ".join(f"{n} {kind}" for kind, n in report.items()))
    return TrainingData(
        source=words,
        arrays=arrays,
        classes=names,
        class_count=len(names) if names else int(source.labels.max()) + 1,
        preprocess=preprocess,
        prepare=None if preprocess is None else _pixels_to_input(preprocess),
        fingerprint=str(opened.fingerprint),
        facts={**opened.facts, "bad_samples": report},
        notes=notes,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
    )


def _hf_text(
    request: TrainingRequest, source: DataSource, classes: list[str] | None
) -> tuple[Path, Sequence[str], list[str] | None]:
    """The model's own tokenizer and inputs, and its class names where the data has those too."""
    from .hf_model import INPUTS, head_classes, hf_tokenizer

    if request.tokenizer != TokenizerSettings(max_length=request.tokenizer.max_length):
        raise InputError(
            f"{request.model} brings its tokenizer; leave out --tokenizer, --vocabulary"
        )
    name = request.model.removeprefix("hf:")
    # The usual length is no wish: a model that takes fewer tokens gets fewer.
    length = request.tokenizer.max_length
    tokenizer = hf_tokenizer(name, None if length == TokenizerSettings().max_length else length)
    own = head_classes(name)
    if classes is None and own and set(source.classes or ()) <= set(own):
        classes = own
    return tokenizer, INPUTS, classes


def _training_texts(source: DataSource) -> Iterator[str]:
    """Texts of the train split alone: a word that only test has must stay unknown."""
    for index, split in enumerate(source.splits or ()):
        if split == "train":
            with suppress(DataError):  # an empty text; decoding counts or refuses it
                yield source.read(index)


def _preprocess(request: TrainingRequest, source: DataSource, notes: list[str]) -> ImagePreprocess:
    """As declared; for a zoo network, size and colour that are not declared follow from it and
    from the first image."""
    values = dict(request.preprocess or {})
    name = request.model.removeprefix("zoo:")
    if name in ZOO and "resize" not in values and "crop" not in values:
        size = request.options.get("size", ZOO[name].size)
        values["resize"] = [size, size]
    if "color" not in values:
        mode = decode(source.read(0)).mode
        values["color"] = "L" if mode in ("1", "L", "I;16", "LA") else "RGB"
    found = ImagePreprocess.from_values(values)
    if values != (request.preprocess or {}):
        told = {k: v for k, v in values.items() if k not in (request.preprocess or {})}
        words = ", ".join(f"{k} {v}" for k, v in told.items())
        notes.append(f"preprocessing that was not declared: {words}")
    return found


def _pixels_to_input(preprocess: ImagePreprocess) -> Callable[[Tensor], Tensor]:
    """What `ImagePreprocess.apply` does after resize and crop, for a batch: uint8 [N, H, W, C] ->
    float32 in its layout."""
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    scale = torch.tensor(preprocess.scale, dtype=torch.float32)

    def prepare(pixels: Tensor) -> Tensor:
        ready = (pixels.float() * scale - mean) / std
        return ready.permute(0, 3, 1, 2).contiguous() if preprocess.layout == "NCHW" else ready

    return prepare


def _read_classes(file: str | None) -> list[str] | None:
    if file is None:
        return None
    try:
        names = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"--classes {file} cannot be read: {one_line(e)}") from e
    return [name.strip() for name in names if name.strip()]
