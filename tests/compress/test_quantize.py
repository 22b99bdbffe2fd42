"""Each quantization route by itself: what it writes, what it must refuse, and memory that stays flat."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgeml.artifact.content_hash import hash_file
from edgeml.artifact.tensor_spec import TensorSpec
from edgeml.compress import quantize
from edgeml.compress.calibration import Calibration, random_calibration
from edgeml.compress.candidates import ROUTES
from edgeml.compress.node_names import match_nodes
from edgeml.compress.step import StepResult, apply
from edgeml.errors import BuildError, DataError, InputError
from edgeml.runtime.engine import EngineOptions, load_file
from edgeml.runtime.int8_share import int8_share

# Python 3.10's last ONNX Runtime is too old to quantize (compress/quantize_onnxruntime.py).
new_enough = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="its last release for 3.10 is old"
)
SHAPES = EngineOptions(input_shapes=(("x", (1, 3, 16, 16)),))


def routes(*names: str) -> list:
    """The routes as parameters, those of ONNX Runtime where its release is new enough."""
    old = {name: (new_enough,) for name in names if name.startswith("onnxruntime")}
    return [pytest.param(name, marks=old.get(name, ())) for name in names]


@pytest.fixture
def stream(draw):
    """stream(): 24 calibration samples."""
    return lambda: Calibration(lambda: ({"x": x} for x in draw(24)), 24)


# TensorRT's form, and ModelOpt's, run in no INT8 here; they have tests of their own.
# (What the dynamic route does to a recurrent network: test_quantize_dynamic.py.)
HERE = [n for n in ROUTES if n.startswith(("nncf", "onnxruntime")) and "dynamic" not in n]


@pytest.mark.parametrize("route", routes(*HERE))
def test_a_route_writes_a_network_that_runs_in_int8(route, small, tmp_path, stream, draw):
    result = apply(ROUTES[route](()), Path(small["model"]), stream(), tmp_path)
    runtime = "openvino" if result.path.suffix == ".xml" else "onnxruntime"
    x = draw(8)[:1]
    with (
        load_file(Path(small["model"]), runtime, SHAPES) as original,
        load_file(result.path, runtime, SHAPES) as engine,
    ):
        assert int8_share(engine.profile({"x": x})) > 0.9
        expected, got = original.run({"x": x})["y"], engine.run({"x": x})["y"]
    assert not np.array_equal(expected, got)
    np.testing.assert_allclose(got, expected, atol=0.2 * np.abs(expected).max())
    assert result.quantizers > 0 and result.weights_bytes > 0


@pytest.mark.parametrize("route", routes("nncf performance", "onnxruntime minmax"))
def test_excluded_nodes_stay_in_float(route, small, tmp_path, stream, draw):
    directory = tmp_path / "all"
    directory.mkdir()
    whole = apply(ROUTES[route](()), Path(small["model"]), stream(), directory)
    directory = tmp_path / "some"
    directory.mkdir()
    part = apply(ROUTES[route](("conv2", "^head$")), Path(small["model"]), stream(), directory)
    assert part.quantizers < whole.quantizers
    runtime = "openvino" if part.path.suffix == ".xml" else "onnxruntime"
    with load_file(part.path, runtime, SHAPES) as engine:
        share = int8_share(engine.profile({"x": draw(1)}))
    assert 0.1 < share < 0.5  # conv1 alone: 27 of 27 + 144 + a few multiply-accumulates


@new_enough
def test_weights_are_quantized_per_channel(small, tmp_path, stream):
    apply(ROUTES["onnxruntime minmax"](()), Path(small["model"]), stream(), tmp_path)
    graph = onnx.load(tmp_path / "model.int8.onnx").graph
    scales = [i for i in graph.initializer if i.name.startswith("w1") and i.name.endswith("scale")]
    assert [list(s.dims) for s in scales] == [[16]]


@pytest.mark.parametrize("route", routes("onnxruntime minmax", "onnxruntime percentile"))
def test_calibrating_in_chunks_gives_the_ranges_of_all_samples(
    route, small, tmp_path, monkeypatch, stream
):
    """The library keeps every tensor of the samples it is given: chunks bound that."""
    from edgeml.compress import quantize_onnxruntime

    found = []
    for chunk in (4, 10**6):
        monkeypatch.setattr(quantize_onnxruntime, "_CHUNK", chunk)
        directory = tmp_path / str(chunk)
        directory.mkdir()
        apply(ROUTES[route](()), Path(small["model"]), stream(), directory)
        graph = onnx.load(directory / "model.int8.onnx").graph
        found.append(
            {
                i.name: onnx.numpy_helper.to_array(i)
                for i in graph.initializer
                if i.name.endswith("_scale")
            }
        )
    assert found[0].keys() == found[1].keys()
    # Percentile bins its histograms by the first chunk: the ranges move by a bin at most.
    tolerance = 1e-6 if route.endswith("minmax") else 0.15
    for name, scale in found[0].items():
        np.testing.assert_allclose(scale, found[1][name], rtol=tolerance)


def test_a_step_that_did_nothing_is_told(small, tmp_path, stream):
    class Idle:
        route, runtimes = "idle", ("openvino",)

        def settings(self):
            return {}

        def __call__(self, model, calibration, directory):
            return StepResult(directory / "model.xml", 0, 0)

    with pytest.raises(BuildError, match="idle inserted no quantizer"):
        apply(Idle(), Path(small["model"]), stream(), tmp_path)


@new_enough
def test_settings_tell_routes_apart():
    settings = [str(make(()).settings()) for make in ROUTES.values()]
    assert len(set(settings)) == len(settings)
    excluded = ROUTES["nncf mixed"](("a",)).settings()
    assert excluded != ROUTES["nncf mixed"](()).settings()
    assert "nncf" in excluded["versions"]


def test_the_library_call_writes_files_and_their_hashes(small, tmp_path):
    files = quantize(small["model"], tmp_path / "q", data=small["data"], samples=16)
    assert list(files) == ["model.xml", "model.bin"]
    assert all(hash_file(tmp_path / "q" / name) == digest for name, digest in files.items())


def test_the_library_call_refuses_what_it_cannot_use(small, tmp_path):
    with pytest.raises(InputError, match="unknown route 'ncf mixed', did you mean nncf mixed"):
        quantize(small["model"], tmp_path, data=small["data"], route="ncf mixed")
    with pytest.raises(InputError, match="no calibration data: give data or task"):
        quantize(small["model"], tmp_path)


def test_calibration_streams_and_counts(small, draw):
    calibration = Calibration(lambda: ({"x": x} for x in draw(5)), 3)
    for _ in range(2):
        seen = list(calibration)
        assert [s["x"].shape for s in seen] == [(1, 3, 16, 16)] * 3
    assert calibration.seen == 3


def test_calibration_is_identified_by_its_content(draw):
    def made(scale, n=5):
        return Calibration(lambda: ({"x": x * scale} for x in draw(5)), n).fingerprint

    assert made(1) == made(1) != made(2)
    assert made(1) != made(1, 4)


def test_no_calibration_sample_is_told():
    with pytest.raises(DataError, match="no calibration samples: the data has no train split"):
        list(Calibration(lambda: iter(()), 3))


def test_random_calibration_is_seeded_and_needs_shapes():
    spec = TensorSpec("x", (None, 2, 3), "float32")
    a, b = (list(random_calibration([spec], 4, seed=1)) for _ in range(2))
    assert len(a) == 4 and all((p["x"] == q["x"]).all() for p, q in zip(a, b, strict=True))
    with pytest.raises(DataError, match="needs known shapes"):
        random_calibration([TensorSpec("x", (None, 2, None), "float32")], 4, seed=1)


def test_node_patterns_are_regular_expressions_over_names(small):
    assert match_nodes(Path(small["model"]), ["^conv", "head"]) == ["conv1", "conv2", "head"]
    with pytest.raises(InputError, match="'cnv' matches none of the 7 nodes, as in conv1"):
        match_nodes(Path(small["model"]), ["cnv"])
    with pytest.raises(InputError, match=r"'\(' is no regular expression"):
        match_nodes(Path(small["model"]), ["("])


def test_a_step_that_left_the_weights_in_float_says_so(small, tmp_path, stream, monkeypatch):
    from edgeml.compress import step as module

    class Lazy:
        route, runtimes, calibrates = "lazy", ("onnxruntime",), True

        def __call__(self, model, calibration, directory):
            copy = directory / "model.int8.onnx"
            copy.write_bytes(model.read_bytes())
            return StepResult(copy, 1, copy.stat().st_size)

    assert apply(Lazy(), Path(small["model"]), stream(), tmp_path).notes == []  # too small to tell
    monkeypatch.setattr(module, "SMALL_BYTES", 0)
    (note,) = apply(Lazy(), Path(small["model"]), stream(), tmp_path).notes
    assert "100% of the float one's size" in note
