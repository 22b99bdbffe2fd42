"""Wrong names, shapes and dtypes are told in our words, whatever the runtime."""

from __future__ import annotations

import numpy as np
import pytest
from edgeml.artifact.tensor_spec import TensorSpec, check_inputs
from edgeml.errors import InputError
from hypothesis import given
from hypothesis import strategies as st

IMAGE = TensorSpec("image", (None, 3, 8, 8), "float32")
LENGTH = TensorSpec("length", (1,), "int64")
GOOD = {"image": np.zeros((2, 3, 8, 8), np.float32), "length": np.zeros(1, np.int64)}


def test_what_fits_passes():
    check_inputs(GOOD, [IMAGE, LENGTH])
    check_inputs({}, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image": None},
            r"input 'image' is missing .given: length..*takes image \?×3×8×8 float32",
        ),
        ({"image": GOOD["image"].astype(np.float64)}, "dtype float64, the engine takes float32"),
        ({"image": GOOD["image"].astype(">f4")}, "dtype >f4, the engine takes float32"),
        ({"image": GOOD["image"][0]}, r"shape 3×8×8, the engine takes \?×3×8×8"),
        ({"image": np.zeros((1, 8, 8, 3), np.float32)}, r"shape 1×8×8×3, .* \?×3×8×8"),
        ({"length": np.zeros(2, np.int64)}, "shape 2, the engine takes 1"),
        ({"length": [0]}, "is a list, give a numpy array of int64"),
        ({"mask": np.zeros(1)}, "unknown input 'mask'; the engine takes image, length"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    inputs = {name: a for name, a in {**GOOD, **change}.items() if a is not None}
    with pytest.raises(InputError, match=message):
        check_inputs(inputs, [IMAGE, LENGTH])


def test_nothing_given_says_so():
    with pytest.raises(InputError, match=r"given: nothing"):
        check_inputs({}, [IMAGE])


def test_a_type_that_numpy_does_not_know_is_a_mismatch_and_no_crash():
    spec = TensorSpec("text", (1,), "tensor(string)")
    with pytest.raises(InputError, match=r"takes tensor\(string\)"):
        check_inputs({"text": np.zeros(1, np.float32)}, [spec])


shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
open_shapes = st.lists(st.none() | st.integers(0, 3), max_size=3).map(tuple)


@given(shapes, open_shapes)
def test_a_shape_fits_when_each_closed_axis_is_equal(shape, want):
    fits = len(shape) == len(want) and all(w in (None, n) for n, w in zip(shape, want, strict=True))
    reason = TensorSpec("x", want, "uint8").mismatch(np.zeros(shape, np.uint8))
    assert (reason is None) is fits
    if fits:
        check_inputs({"x": np.zeros(shape, np.uint8)}, [TensorSpec("x", want, "uint8")])
