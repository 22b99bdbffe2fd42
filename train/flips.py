"""Samples that flipped: what the reference had right and the engine wrong, and the other way round."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact.preprocess import decode
from ..errors import EdgemlError
from .evaluate import class_label, class_name, samples_at
from .groups import sample_file, sample_indices
from .paired_interval import is_right_or_wrong, sample_values
from .sample_stream import SampleStream, stream_of

if TYPE_CHECKING:
    from .evaluate import Evaluation
    from .task import Task

# Shown of both kinds together; a page of them stays below 200 kB.
MOST_SHOWN = 24
THUMBNAIL = 64  # pixels of the longer side
LONGEST_TEXT = 600  # characters


def flipped(
    evaluation: Evaluation,
    task: Task,
    reference_id: str,
    engine_id: str,
    *,
    split: str = "test",
    show: bool = False,
) -> dict[str, Any] | None:
    """Which samples flipped; the ``flipped`` of ``docs/result-schema.md``.

    Args:
        split: the one that was evaluated.
        show: hold at most 24 samples themselves (``--samples``: data may be private).

    Returns:
        None for tasks that are not right/wrong a sample.
    """
    values = [
        sample_values(task, evaluation.outputs[name], evaluation.targets)
        for name in (reference_id, engine_id)
    ]
    if any(v is None or not is_right_or_wrong(v) for v in values):
        return None
    before, after = values
    places = {"lost": np.flatnonzero(before > after), "won": np.flatnonzero(before < after)}
    indices = sample_indices(task, split, evaluation.n)
    found: dict[str, Any] = {
        kind: [indices[place] for place in where.tolist()] for kind, where in places.items()
    }
    found["samples"] = []
    if show:
        lost = places["lost"].tolist()
        # Half of the room at least is for what was won, where as much was.
        room = max(MOST_SHOWN // 2, MOST_SHOWN - len(places["won"]))
        chosen = [(place, "lost") for place in lost[:room]]
        chosen += [(p, "won") for p in places["won"].tolist()[: MOST_SHOWN - len(chosen)]]
        looks = _looks(task, split, {place: indices[place] for place, _ in chosen})
        answers = {
            who: [evaluation.outputs[name][place] for place, _ in chosen]
            for who, name in (("reference", reference_id), ("engine", engine_id))
        }
        stream = stream_of(task)
        for at, (place, kind) in enumerate(chosen):
            found["samples"].append(
                {
                    "index": indices[place],
                    "kind": kind,
                    "place": sample_file(stream, indices[place]) if stream else None,
                    "target": _name(task, evaluation.targets[place]),
                    **{who: _answer(task, outputs[at]) for who, outputs in answers.items()},
                    **looks.get(place, {"image": None, "text": None}),
                }
            )
    return found


def _answer(task: Any, output: Any) -> str | None:
    answer = getattr(task, "answer", None)
    return None if answer is None else _name(task, answer(output))


def _name(task: Any, label: Any) -> str | None:
    label = class_label(label)
    return None if label is None else class_name(task, label)[:LONGEST_TEXT]


def _looks(task: Any, split: str, wanted: dict[int, int]) -> dict[int, dict[str, str | None]]:
    """How the samples at some places of a split look: an image or a text, where they are either."""
    stream = stream_of(task)
    if stream is not None and (stream.source.kind == "image" or stream.source.text is not None):
        return {place: _source_look(stream, index) for place, index in wanted.items()}
    return {
        place: {"image": thumbnail(next(iter(inputs.values()))), "text": None}
        for place, inputs in samples_at(task, split, wanted).items()
    }


def _source_look(stream: SampleStream, index: int) -> dict[str, str | None]:
    source = stream.source
    try:
        if source.text is not None:
            return {"image": None, "text": source.text(index)[:LONGEST_TEXT]}
        return {"image": _png(decode(source.read(index))), "text": None}
    except EdgemlError:  # the file went away since it was scored
        return {"image": None, "text": None}


def thumbnail(array: np.ndarray) -> str | None:
    """A PNG as a data URI of an array that is an image (grey or of three channels, in any range: it is
    stretched to what can be shown); None of any other."""
    from PIL import Image

    pixels = np.asarray(array, np.float64)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or min(pixels.shape[:2]) < 4:
        return None
    low, high = float(pixels.min()), float(pixels.max())
    shown = ((pixels - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
    return _png(Image.fromarray(shown[..., 0] if shown.shape[2] == 1 else shown))


def _png(image: Any) -> str:
    small = image.convert("RGB") if image.mode not in ("L", "RGB") else image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    kept = io.BytesIO()
    small.save(kept, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(kept.getvalue()).decode()
