"""From a detector's map of probabilities to boxes (left, top, right, bottom), in numpy alone."""

from collections.abc import Iterator

import numpy as np

Box = tuple[float, ...]
THRESHOLD = 0.3  # of the package's own config.yaml
UNCLIP = 1.6  # the same: lines of the map are drawn thinner than the text, by this share


def boxes_of(probabilities: np.ndarray) -> list[Box]:
    """The upright boxes of a map [height, width]."""
    return [_grown(box) for box in _cut(probabilities > THRESHOLD, 0, 0)]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0 to 1."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (_area(a) + _area(b) - shared)


def page_score(found: list[Box], truth: list[Box]) -> float:
    """The mean over the true boxes of their best overlap; boxes too many count as overlap 0."""
    best = [max((overlap(box, other) for other in found), default=0.0) for box in truth]
    return sum(best) / max(len(truth), len(found))


def _cut(mask: np.ndarray, left: int, top: int) -> Iterator[Box]:
    """Cut at empty rows, then at empty columns, until nothing is left to cut."""
    for y0, y1 in _runs(mask.any(axis=1)):
        for x0, x1 in _runs(mask[y0:y1].any(axis=0)):
            part = mask[y0:y1, x0:x1]
            if part.shape == mask.shape:
                yield (left, top, left + x1, top + y1)
            else:
                yield from _cut(part, left + x0, top + y0)


def _runs(line: np.ndarray) -> list[tuple[int, int]]:
    """Where a line of booleans is True: pairs (first, one past the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], line, [0]]))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _grown(box: Box) -> Box:
    """By area × UNCLIP / perimeter on every side (Liao et al. 2020, section 3.5)."""
    by = _area(box) * UNCLIP / (2 * (box[2] - box[0] + box[3] - box[1]))
    return (box[0] - by, box[1] - by, box[2] + by, box[3] + by)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
