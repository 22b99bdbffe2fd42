"""One execution context of a TensorRT engine: its stream, its buffers, its CUDA graph. Not run on hardware yet.

Standard library and numpy, Python 3.8. Used through `tensorrt_runner.TensorRTRunner`.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any, Dict, Mapping, NamedTuple, Sequence, Tuple

import numpy as np

from ...errors import EdgemlError, InputError
from .cuda_runtime import CudaError, OutOfGpuMemory

Shapes = Dict[str, Tuple[int, ...]]


class Times(NamedTuple):
    """One inference, in ms: GPU parts by CUDA events, and the host's wall clock around all of it."""

    host_to_device: float
    compute: float
    device_to_host: float
    host: float


class Port(NamedTuple):
    """One input or output; -1 stands for an axis that the engine leaves open."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class TensorRTContext:
    """An execution context with its stream and buffers."""

    def __init__(self, runner: Any, graphs: bool) -> None:
        self._runner, self._cuda = runner, runner.cuda
        self._engine = runner._engine
        self.graph_refused: str | None = None if graphs else "not asked for"
        self.results: dict[str, np.ndarray] = {}
        self._feeds: dict[str, np.ndarray] = {}
        self._graph: int | None = None
        self._buffers: dict[str, tuple[int, int, int]] = {}
        self._events: list = []
        self._stream: int | None = None
        self._warm = False
        self._context = self._engine.create_execution_context()
        if self._context is None:
            said = runner._log.said()
            if "memory" in said.lower():
                raise OutOfGpuMemory(
                    f"out of GPU memory: no room for the engine's activations ({said})"
                )
            raise EdgemlError(f"TensorRT makes no execution context: {said}")
        try:
            self._stream = self._cuda.stream()
            self._bind()
        except BaseException:
            self.close()
            raise

    def _bind(self) -> None:
        """Buffers for the largest shapes, bound by name, once."""
        largest = {}
        for port in self._runner.inputs:
            largest[port.name] = (
                tuple(self._engine.get_tensor_profile_shape(port.name, 0)[2])
                if -1 in port.shape
                else port.shape
            )
        self._set(largest)
        for port in [*self._runner.inputs, *self._runner.outputs]:
            shape = self._shape(port)
            size = max(1, int(np.prod(shape, dtype=np.int64)) * np.dtype(port.dtype).itemsize)
            device = self._cuda.malloc(size)
            self._buffers[port.name] = (device, 0, size)
            self._buffers[port.name] = (device, self._cuda.malloc_host(size), size)
            if not self._context.set_tensor_address(port.name, device):
                raise EdgemlError(f"TensorRT refuses the address of {port.name}: {self._said()}")
        self._views()

    def set_shapes(self, shapes: Shapes) -> None:
        changed = {
            name: shape
            for name, shape in shapes.items()
            if tuple(self._context.get_tensor_shape(name)) != shape
        }
        if changed:
            self._set(changed)
            self._views()
            self._drop_graph()

    def fill(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Copy the arrays into pinned memory; other shapes than before are set first."""
        if len(inputs) != len(self._feeds) or any(name not in self._feeds for name in inputs):
            raise InputError(
                f"the engine takes {', '.join(self._feeds)}; given: {', '.join(inputs) or 'nothing'}"
            )
        if any(array.shape != self._feeds[name].shape for name, array in inputs.items()):
            self.set_shapes({name: array.shape for name, array in inputs.items()})
        for name, array in inputs.items():
            feed = self._feeds[name]
            if array.dtype == np.int64 and feed.dtype == np.int32:
                # TensorRT before 10 has no INT64: its parser makes ONNX's int64 inputs int32.
                limits = np.iinfo(np.int32)
                if array.size and not limits.min <= array.min() <= array.max() <= limits.max:
                    raise InputError(
                        f"input {name!r} has values that the engine's int32 does not hold"
                    )
            elif array.dtype != feed.dtype:
                raise InputError(
                    f"input {name!r} has dtype {array.dtype}, the engine takes {feed.dtype}"
                )
            np.copyto(feed, array, casting="same_kind")

    def enqueue(self) -> None:
        self._copy_in()
        self._compute()
        self._copy_out()

    def wait(self) -> None:
        self._cuda.synchronize(self._stream)

    def timed(self, inputs: Mapping[str, np.ndarray]) -> Times:
        if not self._events:
            self._events = [self._cuda.event() for _ in range(4)]
        self.fill(inputs)
        record, stream, events = self._cuda.record, self._stream, self._events
        begin = time.perf_counter()
        record(events[0], stream)
        self._copy_in()
        record(events[1], stream)
        self._compute()
        record(events[2], stream)
        self._copy_out()
        record(events[3], stream)
        self.wait()
        host = (time.perf_counter() - begin) * 1e3
        return Times(*(self._cuda.elapsed_ms(a, b) for a, b in zip(events, events[1:])), host=host)

    def profile(self, trt: Any, inputs: Mapping[str, np.ndarray], runs: int) -> dict[str, float]:
        times: dict[str, float] = {}

        class Profiler(trt.IProfiler):
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer: str, ms: float) -> None:
                times[layer] = times.get(layer, 0.0) + ms

        self.set_shapes({name: array.shape for name, array in inputs.items()})
        self.fill(inputs)
        # A replayed graph reports no layers.
        refused, self.graph_refused = self.graph_refused, "profiling"
        self._drop_graph()
        try:
            for _ in range(3):
                self.enqueue()
                self.wait()
            self._context.profiler = Profiler()
            for _ in range(runs):
                self.enqueue()
                self.wait()
        finally:
            self._context.profiler, self.graph_refused = None, refused
        return {layer: ms / runs for layer, ms in times.items()}

    def close(self) -> None:
        """Give everything back; what is gone already is no error."""
        self._drop_graph()
        for event in self._events:
            self._cuda.destroy_event(event)
        self._context = None
        for device, host, _ in self._buffers.values():
            self._cuda.free(device)
            if host:
                self._cuda.free_host(host)
        if self._stream is not None:
            self._cuda.destroy_stream(self._stream)
        self._events, self._buffers, self._stream = [], {}, None
        self.results, self._feeds = {}, {}

    def _copy_in(self) -> None:
        for name, array in self._feeds.items():
            device, host, _ = self._buffers[name]
            self._cuda.to_device(device, host, array.nbytes, self._stream)

    def _compute(self) -> None:
        """The first inference at a shape runs plainly (TensorRT demands it), the second is captured."""
        if self._graph is None and self._warm and self.graph_refused is None:
            self._capture()
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
        else:
            self._execute()
            self._warm = True

    def _capture(self) -> None:
        self.wait()
        self._cuda.begin_capture(self._stream)
        try:
            self._execute()
        except EdgemlError as e:
            self.graph_refused = str(e)
        try:
            graph = self._cuda.end_capture(self._stream)
        except CudaError as e:
            self.graph_refused = self.graph_refused or str(e)
            return
        if self.graph_refused is None:
            self._graph = graph
        else:
            self._cuda.destroy_graph(graph)

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise EdgemlError(f"TensorRT could not run the engine: {self._said()}")

    def _copy_out(self) -> None:
        for name, array in self.results.items():
            device, host, _ = self._buffers[name]
            self._cuda.to_host(host, device, array.nbytes, self._stream)

    def _set(self, shapes: Shapes) -> None:
        declared = {port.name: port.shape for port in self._runner.inputs}
        for name, shape in shapes.items():
            if -1 not in declared[name]:
                if tuple(shape) != declared[name]:
                    raise InputError(
                        f"input {name!r} has shape {shape_text(shape)}, the engine takes {shape_text(declared[name])}"
                    )
                continue
            low, _, high = (tuple(s) for s in self._engine.get_tensor_profile_shape(name, 0))
            if len(shape) != len(low) or any(not a <= n <= b for a, n, b in zip(low, shape, high)):
                raise InputError(
                    f"input {name!r} has shape {shape_text(shape)}, the engine takes "
                    f"{shape_text(low)} to {shape_text(high)}"
                )
            if not self._context.set_input_shape(name, tuple(shape)):
                raise InputError(
                    f"input {name!r}: TensorRT refuses {shape_text(shape)}: {self._said()}"
                )

    def _shape(self, port: Port) -> tuple[int, ...]:
        shape = tuple(self._context.get_tensor_shape(port.name))
        if any(n < 0 for n in shape):
            raise InputError(
                f"output {port.name!r} has a shape that depends on the data ({shape_text(shape)}); "
                "this runner needs shapes that follow from the inputs'"
            )
        return shape

    def _views(self) -> None:
        """numpy views of pinned memory, for the shapes that are set now."""
        self._feeds = {port.name: self._view(port) for port in self._runner.inputs}
        self.results = {port.name: self._view(port) for port in self._runner.outputs}

    def _view(self, port: Port) -> np.ndarray:
        shape = self._shape(port)
        _, host, size = self._buffers[port.name]
        memory = (ctypes.c_byte * size).from_address(host)
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(memory, dtype=port.dtype, count=count).reshape(shape)

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._cuda.destroy_graph(self._graph)
        self._graph, self._warm = None, False

    def _said(self) -> str:
        return self._runner._log.said()


def shape_text(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
