"""How an image becomes a network's input: declared once, stored in the bundle, executed everywhere.

Pillow and numpy only, so that a device, an engine's bench and the training loop run the same code.
Pillow's own resampling is antialiased; torchvision does the same on PIL images, so that a network
trained there sees the pixels it knows.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from ..errors import DataError, InputError, nearest, one_line

if TYPE_CHECKING:
    from PIL import Image

Size = int | tuple[int, int]


class ImagePreprocess(BaseModel):
    """Resize, crop, then ``(x · scale − mean) / std``, in that order.

    Attributes:
        resize: an integer is the short side's new length, a pair (height, width) both; bilinear.
        crop: a centre crop of that side, or of (height, width).
        scale: multiplied with the pixels 0…255 before `mean` is subtracted.
        mean, std: one number, or one a channel in the order of `color`.
        layout: NCHW or NHWC, of the batch.
        color: RGB, BGR, or L for one channel of luma.
        folded: cast, arithmetic and layout are in the graph: what is left gives uint8 HWC.

    >>> declared = ImagePreprocess(crop=224, scale=1.0, mean=(127.0,), std=(128.0,))
    >>> from PIL import Image
    >>> declared.apply(Image.new("RGB", (227, 240), (255, 127, 0)))[:, 0, 0].tolist()
    [1.0, 0.0, -0.9921875]
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: Size | None = None
    crop: Size | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    color: Literal["RGB", "BGR", "L"] = "RGB"
    folded: bool = False

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (int, float)) else value

    @field_validator("resize", "crop")
    @classmethod
    def _positive(cls, size: Size | None) -> Size | None:
        sides = size if isinstance(size, tuple) else (size,)
        if any(side is not None and side < 1 for side in sides):
            raise ValueError("sides are at least 1")
        return size

    @model_validator(mode="after")
    def _channels_fit(self) -> ImagePreprocess:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(
                    f"{name} has {len(values)} values, {self.color} has {self.channels} channels"
                )
            if not all(math.isfinite(v) for v in values):
                raise ValueError(f"{name} is not finite")
        if not all(self.std) or not self.scale or not math.isfinite(self.scale):
            raise ValueError("std and scale must not be 0")
        return self

    @classmethod
    def from_values(cls, values: dict[str, Any], where: str = "preprocessing") -> ImagePreprocess:
        """From plain values.

        Raises:
            InputError: an unknown key (the nearest is named), or a value that does not fit.
        """
        unknown = sorted(set(values) - set(cls.model_fields))
        if unknown:
            hint = nearest(unknown[0], cls.model_fields)
            raise InputError(f"{where}: unknown key {unknown[0]!r}, {hint}")
        try:
            return cls(**values)
        except ValidationError as e:
            first = e.errors()[0]
            place = ".".join(map(str, first["loc"]))
            place = f" {place}" if place else ""
            raise InputError(f"{where}{place}: {first['msg'].removeprefix('Value error, ')}") from e

    @classmethod
    def from_file(cls, path: Path) -> ImagePreprocess:
        """From a JSON or YAML file, such as a bundle's ``preprocess.json``.

        Raises:
            InputError: the file is missing, is neither, or holds other fields.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".json":
                values = json.loads(text)
            else:
                import yaml

                values = yaml.safe_load(text)
        except (OSError, UnicodeDecodeError) as e:
            raise InputError(f"preprocessing {path} cannot be read: {one_line(e)}") from e
        except Exception as e:  # JSON's and YAML's errors share no class
            raise InputError(f"preprocessing {path} is no JSON or YAML: {one_line(e)}") from e
        if not isinstance(values, dict):
            raise InputError(f"preprocessing {path} holds no mapping")
        return cls.from_values(values, f"preprocessing {path}")

    @property
    def channels(self) -> int:
        return 1 if self.color == "L" else 3

    def apply(self, image: Image.Image) -> np.ndarray:
        """The network's input for one image, without the batch axis.

        Returns:
            float32 ``[C, H, W]`` (NCHW) or ``[H, W, C]`` (NHWC); uint8 ``[H, W, C]`` when folded.

        Raises:
            DataError: the image is smaller than the crop.
        """
        x = self.pixels(image)
        if self.folded:
            return x
        ready = np.multiply(x, np.float32(self.scale), dtype=np.float32)
        ready -= np.float32(self.mean)
        ready /= np.float32(self.std)
        return np.ascontiguousarray(ready.transpose(2, 0, 1)) if self.layout == "NCHW" else ready

    def pixels(self, image: Image.Image) -> np.ndarray:
        """uint8 ``[H, W, C]``, resized and cropped."""
        from PIL import Image as Pillow

        image = image.convert("L" if self.color == "L" else "RGB")
        if self.resize is not None:
            size = _resized(self.resize, image.width, image.height)
            if size != image.size:
                image = image.resize(size, Pillow.Resampling.BILINEAR)
        if self.crop is not None:
            height, width = self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)
            if image.width < width or image.height < height:
                raise DataError(
                    f"an image of {image.width}×{image.height} is smaller than the crop "
                    f"{width}×{height}; resize it first (--resize)"
                )
            left = round((image.width - width) / 2.0)
            top = round((image.height - height) / 2.0)
            image = image.crop((left, top, left + width, top + height))
        x = np.asarray(image)
        x = x[..., None] if x.ndim == 2 else x
        return np.ascontiguousarray(x[..., ::-1]) if self.color == "BGR" else x


def _resized(resize: Size, width: int, height: int) -> tuple[int, int]:
    """Pillow's (width, height) after `resize`; the long side is cut down as torchvision does."""
    if isinstance(resize, tuple):
        return resize[1], resize[0]
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


# Formats that end with a mark of their own: JPEG, PNG, GIF.
_ENDS = (b"\xff\xd9", b"IEND\xaeB`\x82", b"\x00;")


def image_fault(data: bytes) -> str | None:
    """Why an encoded image cannot be decoded, as far as a look at its two ends tells.

    Decoding every image before a run would double its time; opening one takes 0.05 ms. Only one that
    lacks its end is decoded.
    """
    from PIL import Image as Pillow

    # Pillow raises of all kinds; decoding words them.
    with contextlib.suppress(Exception), Pillow.open(io.BytesIO(data)):
        if data.endswith(_ENDS):
            return None
    try:
        decode(data)
    except DataError as e:
        return str(e)
    return None


def decode(data: bytes) -> Image.Image:
    """An encoded image (any format that Pillow reads) as an image in memory.

    Raises:
        DataError: it is none, or is cut short.
    """
    from PIL import Image as Pillow

    try:
        image = Pillow.open(io.BytesIO(data))
        image.load()
    except (
        Exception
    ) as e:  # Pillow raises OSError, SyntaxError, ValueError, DecompressionBombError …
        reason = one_line(e)
        if "cannot identify" in reason:
            reason = f"{len(data):,} bytes of no known image format"
        raise DataError(f"unreadable image: {reason}") from e
    return image
