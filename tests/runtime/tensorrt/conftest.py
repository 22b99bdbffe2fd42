"""A libcudart whose device memory is this process's, and a `tensorrt` that computes ``y = 2·x`` through the
addresses it was given: what is tested is the order of calls and where the bytes go. No NVIDIA code runs."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest


class FakeCudart:
    """Calls by name in `calls`; a copy outside a capture really copies."""

    def __init__(self, devices=1, memory=1 << 20, capability=(8, 7), init_status=0):
        self.devices, self.limit, self.capability = devices, memory, capability
        self.init_status = init_status
        self.calls, self.blocks, self.captures, self.graphs = [], {}, None, {}
        self.handles, self.refuse_capture, self.clock_ms = 100, False, 0.0
        self.events = {}

    # what a test asks

    def used(self):
        return sum(len(block) for kind, block in self.blocks.values() if kind == "device")

    def names(self):
        return [call[0] for call in self.calls]

    def do(self, work):
        """Run enqueued work, or record it while capturing."""
        if self.captures is None:
            work()
        else:
            self.captures.append(work)

    # libcudart

    def __getattr__(self, name):
        if not name.startswith("cuda"):
            raise AttributeError(name)
        return lambda *arguments: self._handle(name, arguments)

    def _handle(self, name, arguments):
        self.calls.append((name, *arguments))
        out = getattr(arguments[0], "_obj", None) if arguments else None
        if name.endswith("Create") or name.endswith("CreateWithFlags"):
            self.handles += 1
            out.value = self.handles
        return 0

    def cudaGetDeviceCount(self, count):
        count._obj.value = self.devices
        return self.init_status or (0 if self.devices else 100)

    def cudaGetErrorString(self, status):
        return b"made error"

    def cudaDeviceGetAttribute(self, value, number, device):
        value._obj.value = {75: self.capability[0], 76: self.capability[1], 18: 1}[number.value]
        return 0

    def cudaRuntimeGetVersion(self, value):
        value._obj.value = 12060
        return 0

    cudaDriverGetVersion = cudaRuntimeGetVersion

    def cudaMemGetInfo(self, free, total):
        free._obj.value, total._obj.value = self.limit - self.used(), self.limit
        return 0

    def _allocate(self, kind, address, size):
        self.calls.append((f"malloc-{kind}", size.value))
        if kind == "device" and self.used() + size.value > self.limit:
            return 2
        block = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(block)
        self.blocks[address._obj.value] = (kind, block)
        return 0

    def cudaMalloc(self, address, size):
        return self._allocate("device", address, size)

    def cudaMallocHost(self, address, size):
        return self._allocate("host", address, size)

    def cudaFree(self, address):
        self.calls.append(("cudaFree", address.value))
        return 0 if self.blocks.pop(address.value, None) else 1

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        self.calls.append(("copy-in" if kind.value == 1 else "copy-out", size.value))
        self.do(lambda: ctypes.memmove(to.value, source.value, size.value))
        return 0

    def cudaEventRecord(self, event, stream):
        self.clock_ms += 0.25
        self.events[event.value] = self.clock_ms
        return 0

    def cudaEventElapsedTime(self, found, first, last):
        found._obj.value = self.events[last.value] - self.events[first.value]
        return 0

    def cudaStreamBeginCapture(self, stream, mode):
        self.calls.append(("begin-capture",))
        self.captures = []
        return 0

    def cudaStreamEndCapture(self, stream, graph):
        self.calls.append(("end-capture",))
        work, self.captures = self.captures, None
        if self.refuse_capture:
            return 901
        self.handles += 1
        graph._obj.value = self.handles
        self.graphs[self.handles] = work
        return 0

    def cudaGraphInstantiateWithFlags(self, executable, graph, flags):
        executable._obj.value = graph.value
        return 0

    def cudaGraphLaunch(self, graph, stream):
        self.calls.append(("launch",))
        for work in self.graphs[graph.value]:
            work()
        return 0


class _Enum:
    def __init__(self, name, value=0):
        self.name, self.value = name, value

    def __int__(self):
        return self.value


class FakeEngine:
    """``x`` (float32, batch `low` to `high`) → ``y`` of the same shape."""

    num_io_tensors = 2

    def __init__(self, trt, low=1, high=1, dtype="FLOAT", shape_tensor=False):
        self.shape_tensor = shape_tensor
        self.trt, self.low, self.high, self.dtype = trt, low, high, dtype

    def get_tensor_name(self, i):
        return "xy"[i]

    def get_tensor_dtype(self, name):
        return _Enum(self.dtype)

    def is_shape_inference_io(self, name):
        return self.shape_tensor

    def get_tensor_mode(self, name):
        return self.trt.TensorIOMode.INPUT if name == "x" else self.trt.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name):
        return (self.low if self.low == self.high else -1, 3)

    def get_tensor_profile_shape(self, name, profile):
        return [(self.low, 3), (self.low, 3), (self.high, 3)]

    def create_execution_context(self):
        self.trt.contexts += 1
        if self.trt.__version__ < "8.9" and self.low != self.high and self.trt.contexts > 1:
            raise AssertionError("TensorRT 8: the profile is another context's")
        if self.trt.context_fails:
            self.trt.logged(self.trt.context_fails)
            return None
        return FakeContext(self)

    def create_engine_inspector(self):
        text = '{"Layers": [{"Name": "double", "LayerType": "conv", "Inputs": [{"Format/Datatype": "Int8"}]}]}'
        return SimpleNamespace(get_engine_information=lambda form: text)


class FakeContext:
    def __init__(self, engine):
        self.engine, self.addresses, self.profiler = engine, {}, None
        self.shape = (engine.low, 3)

    def set_input_shape(self, name, shape):
        self.engine.trt.cuda.calls.append(("set_input_shape", shape))
        self.shape = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        return self.shape

    def set_tensor_address(self, name, address):
        self.engine.trt.cuda.calls.append(("bind", name))
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        trt, shape, addresses = self.engine.trt, self.shape, dict(self.addresses)
        trt.cuda.calls.append(("execute",))
        if trt.execute_fails:
            trt.logged(trt.execute_fails)
            return False
        count = int(np.prod(shape))

        def work():
            x, y = (
                np.frombuffer((ctypes.c_float * count).from_address(addresses[n]), np.float32)
                for n in "xy"
            )
            y[:] = 2 * x

        trt.cuda.do(work)
        if self.profiler is not None:
            self.profiler.report_layer_time("double", 0.5)
        return True


class FakeTensorRT:
    """The names of the library that the runner uses."""

    __name__ = "tensorrt"
    __version__ = "10.3.0"
    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    LayerInformationFormat = SimpleNamespace(JSON="json")

    class IProfiler:
        pass

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self, cuda, **engine):
        self.cuda, self.engine_options = cuda, engine
        self.context_fails = self.execute_fails = self.refuses = None
        self.runtimes, self.contexts = [], 0

    def Runtime(self, logger):
        self._logger = logger
        trt = self

        class Runtime:
            engine_host_code_allowed = True

            def deserialize_cuda_engine(self, plan):
                trt.allowed = self.engine_host_code_allowed
                if trt.refuses:
                    trt.logged(trt.refuses)
                    return None
                return FakeEngine(trt, **trt.engine_options)

        return Runtime()

    def logged(self, message):
        self._logger.log(self.ILogger.ERROR, message)


@pytest.fixture
def cudart():
    return FakeCudart()


@pytest.fixture
def make_cudart():
    return FakeCudart


@pytest.fixture
def make_tensorrt(cudart):
    """A function: engine options → the made library on `cudart`."""
    return lambda **engine: FakeTensorRT(cudart, **engine)
