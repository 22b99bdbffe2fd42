"""Preprocessing is declared once and does what torchvision does on PIL images."""

import doctest
import io
from importlib import import_module

import numpy as np
import pytest
from edgeml.artifact.preprocess import ImagePreprocess, decode
from edgeml.errors import DataError, InputError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


def picture(width, height, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_docstring_example():
    assert doctest.testmod(import_module("edgeml.artifact.preprocess")).failed == 0


def test_short_side_is_resized_then_the_centre_is_cut():
    image = picture(50, 31)
    got = ImagePreprocess(resize=20, crop=(16, 18)).pixels(image)
    # int(20 · 50 / 31) = 32: torchvision cuts the long side down.
    small = image.resize((32, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(got, np.asarray(small)[2:18, 7:25])


def test_a_pair_is_height_by_width():
    assert ImagePreprocess(resize=(8, 12)).apply(picture(50, 31)).shape == (3, 8, 12)


def test_arithmetic_comes_after_the_scale_channel_by_channel():
    declared = ImagePreprocess(mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 2.0))
    got = declared.apply(Image.new("RGB", (2, 2), (255, 0, 51)))
    np.testing.assert_allclose(got[:, 0, 0], [1.0, -0.5, 0.1], rtol=1e-6)
    assert got.dtype == np.float32 and got.flags.c_contiguous


@pytest.mark.parametrize(
    ("color", "first_pixel"), [("RGB", [10, 20, 30]), ("BGR", [30, 20, 10]), ("L", [18])]
)
def test_color_orders_the_channels(color, first_pixel):
    declared = ImagePreprocess(scale=1, color=color, layout="NHWC")
    got = declared.apply(Image.new("RGB", (4, 3), (10, 20, 30)))
    assert got.shape == (3, 4, len(first_pixel))
    np.testing.assert_array_equal(got[0, 0], first_pixel)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_any_mode_of_image_becomes_the_declared_channels(mode):
    assert ImagePreprocess().apply(picture(5, 4, "L" if mode == "LA" else mode)).shape == (3, 4, 5)


def test_folded_leaves_bytes_for_the_graph():
    got = ImagePreprocess(crop=2, mean=(0.5,), folded=True).apply(picture(5, 4))
    assert got.dtype == np.uint8 and got.shape == (2, 2, 3)


def test_an_image_smaller_than_the_crop_is_refused_not_padded():
    with pytest.raises(DataError, match="5×4 is smaller than the crop 8×2; resize it first"):
        ImagePreprocess(crop=(2, 8)).apply(picture(5, 4))


@given(
    st.integers(1, 80), st.integers(1, 80), st.integers(1, 40), st.sampled_from(["NCHW", "NHWC"])
)
@settings(max_examples=60, deadline=None)
def test_resize_to_the_crop_always_gives_the_shape(width, height, side, layout):
    declared = ImagePreprocess(resize=side, crop=side, layout=layout)
    shape = (3, side, side) if layout == "NCHW" else (side, side, 3)
    assert declared.apply(Image.new("RGB", (width, height))).shape == shape


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"croop": 3}, "unknown key 'croop', did you mean crop"),
        ({"mean": [1, 2]}, "mean has 2 values, RGB has 3 channels"),
        ({"color": "L", "std": [1, 1, 1]}, "std has 3 values, L has 1 channels"),
        ({"std": [0.0]}, "must not be 0"),
        ({"mean": [float("nan")]}, "mean is not finite"),
        ({"crop": 0}, "crop: sides are at least 1"),
        ({"layout": "CHW"}, "layout"),
        ({"resize": [1, 2, 3]}, "resize"),
    ],
)
def test_wrong_values_are_named(values, said):
    with pytest.raises(InputError, match=said):
        ImagePreprocess.from_values(values)


def test_file_round_trip(tmp_path):
    declared = ImagePreprocess(resize=256, crop=(224, 192), mean=(0.5,), color="BGR")
    (tmp_path / "p.json").write_text(declared.model_dump_json())
    (tmp_path / "p.yaml").write_text("resize: 256\ncrop: [224, 192]\nmean: 0.5\ncolor: BGR\n")
    assert ImagePreprocess.from_file(tmp_path / "p.json") == declared
    assert ImagePreprocess.from_file(tmp_path / "p.yaml") == declared


@pytest.mark.parametrize("text", ["{", "[1]", "- a\n: b", "\0"])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    for name in ("p.json", "p.yaml"):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=f"preprocessing .*{name}"):
            ImagePreprocess.from_file(tmp_path / name)


def test_unreadable_images_are_data_errors():
    whole = png(picture(40, 40))
    for data in (b"", b"no image", whole[: len(whole) // 2]):
        with pytest.raises(DataError, match="unreadable image"):
            decode(data)
    assert decode(whole).size == (40, 40)
