"""scikit-learn's 1,797 handwritten digits of 8×8 pixels (UCI Optical Recognition, NIST)."""

from __future__ import annotations

import numpy as np

from ...errors import MissingPart
from ..data_source import DataSource
from ..splits import named_parts


def digits(classes: list[str] | None = None) -> DataSource:
    """float32 ``[1, 8, 8]`` in [0, 1]; 60 % train, 20 % validation, 20 % test, seeded.

    Raises:
        MissingPart: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise MissingPart(
            "digits come with scikit-learn: pip install 'edgeml-toolchain[train]'"
        ) from e
    data = load_digits()
    images = (data.images / 16).astype(np.float32)[:, None]
    labels = data.target.astype(np.int64)
    return DataSource(
        name="digits",
        kind="array",
        read=images.__getitem__,
        places=[f"digits[{i}]" for i in range(len(images))],
        labels=labels,
        splits=named_parts(labels, {"train": 0.6, "validation": 0.2, "test": 0.2}),
        classes=classes or [str(i) for i in range(10)],
    )
