"""One spec, every runtime: the same answers, the same refusals."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest
import torch
from edgeml.artifact.tensor_spec import TensorSpec
from edgeml.errors import InputError, MissingPart, ModelError
from edgeml.runtime import load
from edgeml.runtime.engine import EngineOptions, load_file
from edgeml.runtime.null_engine import NullEngine
from edgeml.runtime.torch_engine import TorchEngine
from onnx import helper

RUNTIMES = ["openvino", "openvino-ir", "onnxruntime", "torch"]


class Net(torch.nn.Module):
    """`conv_onnx` in torch."""

    def __init__(self, weights):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.fc = torch.nn.Linear(16, 4, bias=False)
        self.conv.weight.data = torch.from_numpy(weights["conv.weight"].copy())
        self.fc.weight.data = torch.from_numpy(weights["fc.weight"].T.copy())

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture
def open_engine(conv_onnx, conv_xml, conv_weights, images):
    """A function that opens `conv_onnx` in any runtime."""
    opened = []

    def make(runtime, batch=1):
        options = EngineOptions(threads=1, batch=batch)
        if runtime == "torch":
            engine = TorchEngine(Net(conv_weights), {"x": images[: batch or 2]}, ["y"], options)
        elif runtime == "openvino-ir":
            engine = load_file(conv_xml, "openvino", options)
        else:
            engine = load_file(conv_onnx, runtime, options)
        opened.append(engine)
        return engine

    yield make
    for engine in opened:
        engine.close()


@pytest.fixture
def expected(conv_weights, images):
    with torch.no_grad():
        return Net(conv_weights)(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("batch", [1, 3, None])
def test_outputs_are_equal_at_static_and_dynamic_batch(
    open_engine, runtime, batch, images, expected
):
    engine = open_engine(runtime, batch)
    assert engine.input_specs == [TensorSpec("x", (batch, 3, 16, 16), "float32")]
    assert engine.output_specs == [TensorSpec("y", (batch, 4), "float32")]
    for n in [batch] if batch else [1, 5, 2]:
        outputs = engine.run({"x": images[:n]})
        assert list(outputs) == ["y"]
        assert outputs["y"].dtype == np.float32
        np.testing.assert_allclose(outputs["y"], expected[:n], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: {}, "input 'x' is missing"),
        (lambda x: {"image": x}, r"input 'x' is missing .given: image.; the engine takes x"),
        (lambda x: {"x": x, "y": x}, "unknown input 'y'"),
        (lambda x: {"x": x.astype(np.float64)}, "has dtype float64, the engine takes float32"),
        (lambda x: {"x": x[0]}, "has shape 3×16×16, the engine takes 1×3×16×16"),
        (lambda x: {"x": np.repeat(x, 2, 0)}, "has shape 2×3×16×16"),
        (lambda x: {"x": x.transpose(0, 2, 3, 1)}, "has shape 1×16×16×3"),
        (lambda x: {"x": x.tolist()}, "is a list, give a numpy array of float32"),
    ],
)
def test_wrong_inputs_are_told_in_our_words(open_engine, runtime, make, message, images, expected):
    engine = open_engine(runtime)
    with pytest.raises(InputError, match=message):
        engine.run(make(images[:1]))
    outputs = engine.run({"x": images[:1]})  # and it still runs
    np.testing.assert_allclose(outputs["y"], expected[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("batch", [1, None])
def test_outputs_are_the_callers_own(open_engine, runtime, batch, images, expected):
    engine = open_engine(runtime, batch)
    first = engine.run({"x": images[:1]})["y"]
    second = engine.run({"x": images[1:2]})["y"]
    np.testing.assert_allclose(first, expected[:1], rtol=1e-5, atol=1e-5)
    first[:] = second[:] = np.nan
    third = engine.run({"x": images[2:3]})["y"]
    np.testing.assert_allclose(third, expected[2:3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("batch", [1, None])
def test_inputs_may_lie_in_memory_as_they_like(open_engine, runtime, batch, images, expected):
    engine = open_engine(runtime, batch)
    strided = np.asarray(images[:1].transpose(0, 2, 3, 1), order="C").transpose(0, 3, 1, 2)
    flipped = images[:1, :, ::-1, ::-1].copy()[:, :, ::-1, ::-1]
    frozen = images[:1].copy()
    frozen.flags.writeable = False
    for x in (strided, flipped, frozen):
        outputs = engine.run(MappingProxyType({"x": x}))
        np.testing.assert_allclose(outputs["y"], expected[:1], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(strided, images[:1])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_closed_engine_says_so(open_engine, runtime, images):
    with open_engine(runtime) as engine:
        engine.run({"x": images[:1]})
        assert not engine.closed
    assert engine.closed
    for call in (engine.run, engine.profile) if runtime != "torch" else (engine.run,):
        with pytest.raises(InputError, match="engine was closed; load it again"):
            call({"x": images[:1]})
    engine.close()  # twice does no harm


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_two_inputs_and_outputs_keep_their_names(tmp_path, runtime, save_graph):
    path = save_graph(
        tmp_path / "two.onnx",
        [
            helper.make_node("Sub", ["a", "b"], ["difference"]),
            helper.make_node("ReduceSum", ["a"], ["total"], keepdims=0),
        ],
        [("a", ["n", 2]), ("b", ["n", 2])],
        [("difference", ["n", 2]), ("total", [])],
    )
    a, b = np.array([[5, 6]], np.float32), np.array([[1, 3]], np.float32)
    with load_file(path, runtime, EngineOptions()) as engine:
        outputs = engine.run({"b": b, "a": a})
        assert outputs["difference"].tolist() == [[4, 3]]
        assert outputs["total"].shape == () and outputs["total"] == 11
    with load_file(path, runtime, EngineOptions(batch=None)) as engine:
        assert engine.run({"a": a, "b": b})["difference"].tolist() == [[4, 3]]
        two, three = np.zeros((2, 2), np.float32), np.zeros((3, 2), np.float32)
        with pytest.raises(InputError, match=r"cannot run .*two\.onnx on this: "):
            engine.run({"a": two, "b": three})
        assert engine.run({"a": two, "b": two})["difference"].shape == (2, 2)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_given_shapes_close_every_axis(tmp_path, runtime, save_graph):
    path = save_graph(
        tmp_path / "open.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        [("x", ["n", 3, "height", "width"])],
        [("y", ["n", 3, "height", "width"])],
    )
    options = EngineOptions(input_shapes=(("x", (2, 3, 4, 5)),))
    with load_file(path, runtime, options) as engine:
        assert engine.input_specs[0].shape == engine.output_specs[0].shape == (2, 3, 4, 5)
        assert engine.run({"x": np.ones((2, 3, 4, 5), np.float32)})["y"].shape == (2, 3, 4, 5)
    with load_file(path, runtime, EngineOptions(batch=2)) as engine:
        assert engine.input_specs[0].shape == (2, 3, None, None)
        assert engine.run({"x": np.ones((2, 3, 6, 7), np.float32)})["y"].shape == (2, 3, 6, 7)
    for shape in ((2, 4, 4, 5), (2, 3, 4)):
        with pytest.raises(ModelError, match=r"open\.onnx.* does not take shape"):
            load_file(path, runtime, EngineOptions(input_shapes=(("x", shape),)))


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_parallel_requests_are_counted(open_engine, runtime, images):
    count, seconds = open_engine(runtime).throughput({"x": images[:1]}, 0.05)
    assert count >= 1 and seconds >= 0.05
    with pytest.raises(InputError, match="missing"):
        open_engine(runtime).throughput({}, 0.05)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("data", [b"", b"no model", None])
def test_a_file_that_is_no_model_is_the_users_to_mend(tmp_path, runtime, data):
    path = tmp_path / "bad.onnx"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ModelError, match=r"bad\.onnx") as caught:
        load_file(path, runtime, EngineOptions())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_an_execution_precision_that_is_not_there_is_a_missing_part(conv_onnx, runtime):
    with pytest.raises(MissingPart, match=r"executes fp32.*, not int4"):
        load_file(conv_onnx, runtime, EngineOptions(execution="int4"))


# ── load ─────────────────────────────────────────────────────────────────────────────────────────


def test_load_takes_a_bundle_or_a_file(
    make_bundle, conv_onnx, conv_xml, tmp_path, images, expected
):
    bundle = make_bundle(tmp_path / "out")
    for path, runtime in (
        (bundle, "onnxruntime"),
        (str(conv_onnx), "onnxruntime"),
        (conv_xml, "openvino"),
    ):
        with load(path) as engine:
            assert engine.runtime == runtime
            assert engine.version[0].isdigit()
            outputs = engine.run({"x": images[:1]})
            np.testing.assert_allclose(outputs["y"], expected[:1], rtol=1e-5, atol=1e-5)


def test_a_bundles_engine_is_compiled_as_it_was_measured(make_bundle, tmp_path):
    bundle = make_bundle(tmp_path / "out")
    with load(bundle) as engine:
        assert engine.options == EngineOptions(threads=1, input_shapes=(("x", (1, 3, 16, 16)),))
    with load(bundle, EngineOptions(batch=2)) as engine:
        assert engine.input_specs[0].shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.onnx", "no engine at .*none.onnx; give a bundle"),
        ("notes.txt", "notes.txt is no engine file"),
        ("n" * 300, "no engine at"),
    ],
)
def test_load_says_what_it_takes(tmp_path, name, message):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=message):
        load(tmp_path / name)


def test_an_unknown_runtime_is_told_with_the_nearest(conv_onnx):
    with pytest.raises(InputError, match="unknown runtime 'opnvino', did you mean openvino"):
        load_file(conv_onnx, "opnvino", EngineOptions())


# ── torch ────────────────────────────────────────────────────────────────────────────────────────


class Returns(torch.nn.Module):
    """Returns what `make` makes of its input."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


X = np.ones((1, 2), np.float32)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda x: x, ["output"]),
        (lambda x: (x, x + 1), ["output_0", "output_1"]),
        (lambda x: {"a": x, "b": x, "note": 3}, ["a", "b"]),
    ],
)
def test_a_modules_outputs_get_names(make, names):
    assert [s.name for s in TorchEngine(Returns(make), {"x": X}).output_specs] == names


@pytest.mark.parametrize("make", [lambda x: None, lambda x: 3, lambda x: (), lambda x: (x, x)])
def test_a_module_that_returns_something_else_is_told(make):
    with pytest.raises(ModelError, match=r"Returns\.forward returns \w+ with \d tensors; expected"):
        TorchEngine(Returns(make), {"x": X}, ["y"])


def test_a_module_that_works_in_place_leaves_the_callers_array_alone():
    x = X.copy()
    engine = TorchEngine(Returns(lambda t: t.mul_(2)), {"x": x})
    assert engine.run({"x": x})["output"].tolist() == [[2, 2]]
    assert x.tolist() == [[1, 1]]


# ── null ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_null_engine_gives_zeros_of_its_specs():
    with NullEngine(
        [TensorSpec("x", (None, 3), "float32")],
        [TensorSpec("y", (None, 2), "int64")],
        sleep_ms=0.01,
    ) as engine:
        assert engine.run({"x": np.ones((4, 3), np.float32)})["y"].tolist() == [[0, 0]] * 4
        assert engine.profile({}) == []
    with pytest.raises(InputError, match="null engine was closed"):
        engine.run({"x": np.ones((4, 3), np.float32)})
