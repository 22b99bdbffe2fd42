"""Order of calls, reuse of buffers, refusals: against a made library and a made libcudart."""

from __future__ import annotations

import numpy as np
import pytest
from edgeml.errors import EdgemlError, InputError, MissingPart
from edgeml.runtime.device.cuda_runtime import CudaRuntime, OutOfGpuMemory
from edgeml.runtime.device.tensorrt_runner import TensorRTRunner

X = np.arange(3, dtype=np.float32)[None]


@pytest.fixture
def open_runner(cudart, make_tensorrt):
    opened = []

    def make(graphs=True, shapes=None, prepare=lambda trt: None, **engine):
        trt = make_tensorrt(**engine)
        prepare(trt)
        runner = TensorRTRunner(b"plan", trt, shapes, CudaRuntime(cudart), graphs)
        opened.append(runner)
        return runner

    yield make
    for runner in opened:
        runner.close()


def test_it_computes_through_the_addresses_it_bound(open_runner):
    runner = open_runner()
    for k in range(4):  # plain, captured, replayed
        np.testing.assert_array_equal(runner.run({"x": X + k})["y"], 2 * (X + k))
    assert [p.name for p in runner.inputs] == ["x"] and runner.inputs[0].dtype == "float32"
    assert runner.memory_bytes == 24 and runner.version == "10.3.0"


def test_code_in_a_plan_is_not_allowed(open_runner):
    assert open_runner()._trt.allowed is False


def test_buffers_are_bound_once_and_results_are_overwritten(open_runner, cudart):
    runner = open_runner()
    first = runner.run({"x": X})["y"]
    second = runner.run({"x": X + 1})["y"]
    assert first is second and np.array_equal(first, 2 * (X + 1))
    assert cudart.names().count("bind") == 2
    assert cudart.names().count("malloc-device") == cudart.names().count("malloc-host") == 2


def test_the_first_inference_runs_plainly_the_second_is_captured(open_runner, cudart):
    runner = open_runner()
    cudart.calls.clear()
    for _ in range(3):
        runner.run({"x": X})
    steps = [n for n in cudart.names() if not n.startswith("cuda")]
    once = ["copy-in", "execute", "copy-out"]
    capture = ["copy-in", "begin-capture", "execute", "end-capture", "launch", "copy-out"]
    assert steps == [*once, *capture, "copy-in", "launch", "copy-out"]
    assert runner.graph_refused is None


def test_an_engine_that_cannot_be_captured_runs_plainly(open_runner, cudart):
    cudart.refuse_capture = True
    runner = open_runner()
    for k in range(3):
        np.testing.assert_array_equal(runner.run({"x": X * k})["y"], 2 * X * k)
    assert "CUDA error 901" in runner.graph_refused and cudart.names().count("begin-capture") == 1


def test_without_graphs_nothing_is_captured(open_runner, cudart):
    runner = open_runner(graphs=False)
    runner.run({"x": X})
    runner.run({"x": X})
    assert "begin-capture" not in cudart.names()


def test_shapes_change_within_the_profile_and_buffers_stay(open_runner, cudart):
    runner = open_runner(low=1, high=8)
    for batch in (1, 8, 1, 3):
        x = np.random.default_rng(batch).standard_normal((batch, 3)).astype(np.float32)
        for _ in range(3):
            np.testing.assert_array_equal(runner.run({"x": x})["y"], 2 * x)
    assert cudart.names().count("malloc-device") == 2
    assert {c[1] for c in cudart.calls if c[0] == "malloc-device"} == {8 * 3 * 4}
    # A graph holds its shapes: each new one is captured anew.
    assert cudart.names().count("begin-capture") == 4
    with pytest.raises(InputError, match="input 'x' has shape 9×3, the engine takes 1×3 to 8×3"):
        runner.run({"x": np.zeros((9, 3), np.float32)})
    np.testing.assert_array_equal(runner.run({"x": X})["y"], 2 * X)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "the engine takes x; given: nothing"),
        ({"z": X}, "the engine takes x; given: z"),
        ({"x": X.astype(np.float64)}, "has dtype float64, the engine takes float32"),
        ({"x": np.zeros((2, 3), np.float32)}, "has shape 2×3, the engine takes 1×3"),
    ],
)
def test_inputs_that_do_not_fit(open_runner, inputs, said):
    with pytest.raises(InputError, match=said):
        open_runner().run(inputs)


def test_int64_inputs_are_int32_before_tensorrt_10(open_runner):
    runner = open_runner(dtype="INT32")
    runner.run({"x": np.array([[1, -2, 30522]], np.int64)})
    assert runner._lanes[0]._feeds["x"].tolist() == [[1, -2, 30522]]
    with pytest.raises(InputError, match="int32 does not hold"):
        runner.run({"x": np.array([[1, 2, 2**31]], np.int64)})


def test_parts_are_timed_by_events_and_the_whole_by_the_host(open_runner):
    times = open_runner().run_timed({"x": X})
    assert times[:3] == pytest.approx((0.25, 0.25, 0.25)) and times.host > 0


def test_throughput_keeps_two_in_flight(open_runner, cudart):
    runner = open_runner()
    count, seconds = runner.throughput({"x": X}, 0.05)
    assert count > 2 and seconds >= 0.05
    assert cudart.names().count("malloc-device") == 4


def test_layers(open_runner, cudart):
    runner = open_runner()
    before = cudart.used()
    assert runner.profile({"x": X}) == {"double": pytest.approx(0.5)}
    assert runner.layers()[0]["LayerType"] == "conv"
    assert cudart.used() == before


def test_closing_gives_everything_back(open_runner, cudart):
    runner = open_runner()
    runner.throughput({"x": X}, 0.01)
    runner.close()
    runner.close()
    assert not cudart.blocks


def test_a_plan_that_the_library_refuses(open_runner):
    def refuse(trt):
        trt.refuses = "The engine plan file is generated on an incompatible device"

    with pytest.raises(
        InputError, match=r"does not take this plan \(.*incompatible device\); build"
    ):
        open_runner(prepare=refuse)


def test_types_that_numpy_lacks_are_told(open_runner):
    with pytest.raises(InputError, match="tensor x has type BF16"):
        open_runner(dtype="BF16")
    with pytest.raises(InputError, match="tensor x holds a shape"):
        open_runner(shape_tensor=True)


def test_a_failing_inference_is_told(open_runner):
    def fail(trt):
        trt.execute_fails = "Cask convolution execution"

    with pytest.raises(EdgemlError, match="could not run the engine: Cask"):
        open_runner(prepare=fail).run({"x": X})


def test_no_room_for_buffers_and_none_for_activations(cudart, open_runner):
    cudart.limit = 40
    with pytest.raises(OutOfGpuMemory, match="out of GPU memory: cudaMalloc 24 bytes"):
        open_runner(low=1, high=2)
    assert not cudart.blocks

    def fail(trt):
        trt.context_fails = "OutOfMemory: cannot allocate memory"

    with pytest.raises(OutOfGpuMemory, match="no room for the engine's activations"):
        open_runner(prepare=fail)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"devices": 0}, "no NVIDIA GPU answers"),
        ({"init_status": 35}, "driver is missing or too old"),
    ],
)
def test_no_gpu_and_a_driver_too_old(make_cudart, options, said):
    with pytest.raises(MissingPart, match=said):
        CudaRuntime(make_cudart(**options))


def test_what_the_gpu_is(cudart):
    cuda = CudaRuntime(cudart)
    assert cuda.capability() == "SM87" and cuda.integrated()
    assert cuda.versions() == ("12.6", "12.6") and cuda.memory() == (1 << 20, 1 << 20)
    with pytest.raises(MissingPart, match="there is no GPU 1: this machine has 1"):
        CudaRuntime(cudart, device=1)


def test_with_tensorrt_8_an_open_shape_has_one_context(open_runner):
    def old(trt):
        trt.__version__ = "8.6.2"

    runner = open_runner(prepare=old, low=1, high=8)
    assert runner.throughput({"x": X}, 0.02)[0] > 1
    assert runner.profile({"x": X}) == {"double": pytest.approx(0.5)}
    for k in range(3):  # as before
        np.testing.assert_array_equal(runner.run({"x": X + k})["y"], 2 * (X + k))
    assert runner.graph_refused is None
