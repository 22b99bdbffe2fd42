"""`artifact.preprocess.ImagePreprocess.apply` for a device: the same arithmetic without pydantic.

A test holds the two equal to the bit; end-to-end times on the device are of this file.
"""

from __future__ import annotations

import io
from typing import Any

from ...errors import DataError


def decode(data: bytes) -> Any:
    """An encoded image as a Pillow image in memory.

    Raises:
        DataError: Pillow cannot read it.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as e:  # Pillow raises of all kinds
        raise DataError(f"unreadable image: {e}") from e
    return image


def preprocess(image: Any, declared: dict[str, Any]) -> Any:
    """float32 ``[C, H, W]`` or ``[H, W, C]``, uint8 ``[H, W, C]`` when folded, as declared.

    Args:
        declared: the values of a bundle's ``preprocess.json``.
    """
    import numpy as np
    from PIL import Image

    color = declared.get("color", "RGB")
    image = image.convert("L" if color == "L" else "RGB")
    if declared.get("resize") is not None:
        size = _resized(declared["resize"], image.width, image.height)
        if size != image.size:
            image = image.resize(size, getattr(Image, "Resampling", Image).BILINEAR)
    if declared.get("crop") is not None:
        crop = declared["crop"]
        height, width = crop if isinstance(crop, (list, tuple)) else (crop, crop)
        left = round((image.width - width) / 2.0)
        top = round((image.height - height) / 2.0)
        image = image.crop((left, top, left + width, top + height))
    x = np.asarray(image)
    x = x[..., None] if x.ndim == 2 else x
    x = np.ascontiguousarray(x[..., ::-1]) if color == "BGR" else x
    if declared.get("folded"):
        return x
    ready = np.multiply(x, np.float32(declared.get("scale", 1 / 255)), dtype=np.float32)
    ready -= np.float32(declared.get("mean", (0.0,)))
    ready /= np.float32(declared.get("std", (1.0,)))
    if declared.get("layout", "NCHW") == "NCHW":
        return np.ascontiguousarray(ready.transpose(2, 0, 1))
    return ready


def _resized(resize: Any, width: int, height: int) -> tuple[int, int]:
    if isinstance(resize, (list, tuple)):
        return resize[1], resize[0]
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize
