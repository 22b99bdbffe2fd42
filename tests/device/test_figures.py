"""What the device computes is what the host would: differences, preprocessing, tensor files, rounds."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from edgeml.artifact.preprocess import ImagePreprocess
from edgeml.errors import InputError
from edgeml.runtime.device import check, device_bench
from edgeml.runtime.device.check import Sums, check_engine
from edgeml.runtime.device.preprocess_image import preprocess
from edgeml.runtime.device.tensor_file import (
    from_array,
    parse_tensors,
    read_tensors,
    samples,
    to_array,
    to_numbers,
    write_tensors,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load, save

DTYPES = ["float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensor_files_are_safetensors(dtype):
    arrays = {"b": np.arange(6).reshape(2, 3).astype(dtype), "a.x": np.zeros((), dtype)}
    assert list(to_array(parse_tensors(save(arrays), "f")["b"]).ravel()) == list(
        arrays["b"].ravel()
    )
    back = load(write_tensors({name: from_array(array) for name, array in arrays.items()}))
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype and np.array_equal(back[name], array)
    assert to_numbers(from_array(arrays["b"])) == arrays["b"].ravel().tolist()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_tensor_file_or_one_error(content):
    try:
        parse_tensors(content, "f")
    except InputError as e:
        assert "f is no tensor file" in str(e)


def test_a_tensor_file_that_is_cut_or_lies_is_refused(tmp_path):
    whole = save({"x": np.zeros(10, np.float32)})
    for cut in (4, 40, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:cut])
        with pytest.raises(InputError, match="is no tensor file"):
            read_tensors(str(tmp_path / "cut"))
    with pytest.raises(InputError, match="lies outside"):
        parse_tensors(whole.replace(b'"shape":[10]', b'"shape":[11]'), "f")


def pair(seed: int = 0):
    rng = np.random.default_rng(seed)
    want = rng.standard_normal((3, 7)).astype(np.float32)
    return want, want + rng.standard_normal((3, 7)).astype(np.float32) * 0.01


def test_differences_are_as_the_hosts_parity_defines_them():
    want, got = pair()
    sums = Sums()
    for a, b in zip(want, got, strict=True):
        sums.add(from_array(a), from_array(b))
    row = sums.row()
    off = np.abs(got.astype(np.float64) - want)
    assert row["max_abs"] == pytest.approx(off.max())
    assert row["max_rel"] == pytest.approx(off.max() / np.abs(want).max())
    power = (want.astype(np.float64) ** 2).sum() / (off**2).sum()
    assert row["sqnr_db"] == pytest.approx(10 * math.log10(power))
    assert not row["equal"] and row["differing"] is None


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
def test_without_numpy_the_figures_are_the_same(monkeypatch, dtype):
    want, got = pair(1)
    want, got = (want * 50).astype(dtype), (got * 50).astype(dtype)
    rows = []
    for numbers in (False, True):
        if numbers:
            by_numpy = check._pair
            monkeypatch.setattr(
                check, "_pair", lambda a, b: check._pair_in_python(to_numbers(a), to_numbers(b))
            )
            assert check._pair is not by_numpy
        sums = Sums()
        sums.add(from_array(want), from_array(got))
        rows.append(sums.row())
    assert rows[0] == pytest.approx(rows[1])


def test_equal_outputs_and_broken_ones():
    x = from_array(np.ones((1, 3), np.float32))
    sums = Sums()
    sums.add(x, x)
    assert sums.row()["equal"] and sums.row()["sqnr_db"] is None and sums.row()["max_rel"] == 0
    with pytest.raises(ValueError, match="NaN or infinite"):
        sums.add(x, from_array(np.array([[1, np.nan, 1]], np.float32)))
    with pytest.raises(ValueError, match="has shape"):
        sums.add(x, from_array(np.ones((1, 4), np.float32)))


def test_a_reference_without_a_number_proves_nothing(tmp_path):
    path = tmp_path / "r"
    x, nan = np.zeros(1, np.float32), np.full(3, np.nan, np.float32)
    path.write_bytes(save({"000.input.x": x, "000.output.y": nan}))

    class Runner:
        def run(self, inputs):
            return {"y": from_array(np.ones(3, np.float32))}

    found = check_engine(Runner(), str(path))
    assert found["status"] == "failed" and "all NaN or infinite" in found["reason"]


def test_a_check_needs_inputs_and_outputs(tmp_path):
    path = tmp_path / "r"
    path.write_bytes(save({"000.output.y": np.zeros(1, np.float32)}))
    assert "no inputs" in check_engine(None, str(path))["reason"]


DECLARED = [
    {},
    {"crop": 224, "scale": 1.0, "mean": [127.0], "std": [128.0]},
    {"resize": 40, "crop": [30, 36], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    {"resize": [20, 24], "layout": "NHWC", "color": "BGR"},
    {"resize": 32, "color": "L"},
    {"crop": 33, "folded": True},
]


@pytest.mark.parametrize("values", DECLARED, ids=str)
@pytest.mark.parametrize("size", [(300, 240), (225, 301)])
def test_a_device_preprocesses_to_the_same_bits(values, size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    expected = ImagePreprocess.from_values(values).apply(image)
    found = preprocess(image, values)
    assert found.dtype == expected.dtype and np.array_equal(found, expected)


class Call:
    """A runner whose inference takes a made time on a made clock."""

    how, load_ms = "made", 1.0

    def __init__(self, clock, ms):
        self.clock, self.ms = clock, ms

    def bound(self, feed):
        def infer():
            self.clock.now += self.ms / 1e3

        return infer


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def reference_file(tmp_path, reference) -> str:
    (tmp_path / "reference").write_bytes(reference)
    return str(tmp_path / "reference")


def test_rounds_are_interleaved_and_hold_what_was_measured(reference_file):
    clock = Clock()
    runners = {"slow": Call(clock, 5.0), "fast": Call(clock, 2.0)}
    found = device_bench.bench_engines(
        runners, reference_file, duration_s=0.5, steady=False, clock=clock, root="/nowhere"
    )
    for row, ms in zip(found["engines"], (5.0, 2.0), strict=True):
        times = list(itertools.chain(*row["rounds_ms"]))
        assert times == pytest.approx([ms] * len(times)) and sum(times) >= 500
        assert len(row["rounds_ms"]) >= 6 and row["first_inference_ms"] == pytest.approx(ms)
    assert len({len(row["rounds_ms"]) for row in found["engines"]}) == 1
    assert found["steady"] is None  # no zone can be read: not known


def made_zone(root: Path, value) -> None:
    zone = root / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "type").write_text("tj-thermal")
    (zone / "temp").write_text(str(int(value * 1e3)))


@pytest.mark.parametrize(("slope", "steady"), [(0.0, True), (0.02, True), (0.5, False)])
def test_a_board_that_still_warms_is_told(reference_file, tmp_path, slope, steady):
    clock = Clock()

    class Warming(Call):
        told = 0.0

        def bound(self, feed):
            inner = super().bound(feed)

            def infer():
                inner()
                if clock.now >= self.told + 1:
                    self.told = clock.now
                    made_zone(tmp_path, 40 + slope * clock.now)

            return infer

    made_zone(tmp_path, 40)
    found = device_bench.bench_engines(
        {"e": Warming(clock, 200.0)},
        reference_file,
        duration_s=80,  # timed after the wait, and no part of it
        max_s=60,
        clock=clock,
        root=str(tmp_path),
    )
    assert found["steady"] is steady
    assert clock.now < 60 + 20 + 4 * 80 + 10  # three calls of each block are not timed


def test_a_rate_that_cannot_be_held_says_how_many_were_late():
    clock = Clock()

    def sleep(seconds):
        clock.now += seconds

    held = device_bench.at_rate(Call(clock, 10.0).bound(None), 30.0, 2.0, None, clock, sleep)
    assert held["held_hz"] == pytest.approx(30, rel=0.02) and held["late"] == 0
    late = device_bench.at_rate(Call(clock, 50.0).bound(None), 30.0, 2.0, None, clock, sleep)
    assert late["held_hz"] == pytest.approx(20, rel=0.05) and late["late"] > 10


def test_one_engine_that_fails_is_a_row(reference_file):
    clock = Clock()

    class Broken(Call):
        def bound(self, feed):
            raise InputError("does not fit")

    runners = {"a": Broken(clock, 1.0), "b": Call(clock, 1.0)}
    rows = device_bench.bench_engines(
        runners, reference_file, duration_s=0.1, steady=False, clock=clock, root="/nowhere"
    )["engines"]
    assert [row["status"] for row in rows] == ["failed", "timed"]
    assert rows[0]["reason"] == "does not fit"


def test_a_rate_or_frames_that_fail_leave_the_latencies(reference_file, tmp_path):
    clock, said = Clock(), []
    (tmp_path / "no image").write_bytes(b"text")
    (row,) = device_bench.bench_engines(
        {"a": Call(clock, 1.0)},
        reference_file,
        duration_s=0.1,
        steady=False,
        end_to_end=([str(tmp_path / "no image")], {}),
        log=said.append,
        clock=clock,
        root="/nowhere",
    )["engines"]
    assert row["status"] == "timed" and len(row["rounds_ms"]) >= 6
    assert row["end_to_end_ms"] is None and "not measured: unreadable image" in said[-1]


def test_samples_are_grouped_by_number():
    tensors = {
        k: from_array(np.zeros(1, np.int8)) for k in ("1.input.a.b", "0.input.x", "0.output.y")
    }
    assert list(samples(tensors, "input")) == ["0", "1"]
    assert list(samples(tensors, "input")["1"]) == ["a.b"]
