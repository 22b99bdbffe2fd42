"""The one TensorRT runner: a plan on this GPU, by the tensor-name API. Not run on hardware yet.

It drives the system's ``tensorrt`` (8.5 and later) or ``tensorrt_rtx`` with CUDA by ctypes, so that nothing
has to be installed on a Jetson: standard library and numpy, Python 3.8.

A plan is executable code: it is deserialised with ``engine_host_code_allowed`` False, and where it comes from
is checked by the caller (``runtime/tensorrt_engine.py``, the deploy agent).
"""

from __future__ import annotations

import json
import time
from importlib import import_module
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from ...errors import InputError, MissingPart
from .cuda_runtime import CudaRuntime
from .tensorrt_context import Port, TensorRTContext, Times

# TensorRT's DataType names that numpy has; a network for others takes and gives these all the same.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
# One behind the other: while one computes, the other copies.
LANES = 2


def import_tensorrt(module: str = "tensorrt") -> Any:
    """The system's library.

    Raises:
        MissingPart: it is not installed, or does not load.
    """
    try:
        return import_module(module)
    except ImportError as e:
        hint = (
            "on a Jetson: apt install python3-libnvinfer, and the system's python3"
            if module == "tensorrt"
            else "pip install 'edgeml-toolchain[tensorrt-rtx]'"
        )
        raise MissingPart(f"{module} does not import here ({e}); {hint}") from e


def make_logger(trt: Any, log: Callable[[str], None] | None = None) -> Any:
    """A logger that keeps the library's errors for messages, in its `errors`; `log` takes what else it says."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append((message.strip().splitlines() or ["no text"])[0])
            if log is not None and severity != trt.ILogger.VERBOSE:
                log(message)

        def said(self) -> str:
            return self.errors[-1] if self.errors else "it gives no reason"

    return Logger()


class TensorRTRunner:
    """A deserialised engine with its buffers.

    Device and pinned host buffers are allocated once, for the largest shapes that the engine takes, and
    bound once. **The arrays that `run` gives are views of pinned memory and are overwritten by the next
    call**: copy what must stay.

    Args:
        plan: the serialised engine.
        module: ``tensorrt``, ``tensorrt_rtx``, or the library itself.
        shapes: of the inputs with open axes, to begin with; their largest by default.
        cuda: a `CudaRuntime`; None makes one.
        graphs: replay the inference as a CUDA graph where it can be captured (`graph_refused` says why not).

    Attributes:
        inputs, outputs: `Port`s as the engine declares them.
        memory_bytes: of the GPU, taken by engine, context and buffers.

    Raises:
        MissingPart: no library, no CUDA, no GPU.
        InputError: the plan is not one of this library's version and GPU, or its tensors have types that
            numpy lacks.
        OutOfGpuMemory: it does not fit.
    """

    def __init__(
        self,
        plan: bytes,
        module: Any = "tensorrt",
        shapes: Mapping[str, Sequence[int]] | None = None,
        cuda: CudaRuntime | None = None,
        graphs: bool = True,
    ) -> None:
        trt = import_tensorrt(module) if isinstance(module, str) else module
        self._trt = trt
        self.version = trt.__version__
        self.cuda = cuda or CudaRuntime()
        free = self.cuda.memory()[0]
        self._log = make_logger(trt)
        self._runtime = trt.Runtime(self._log)
        if hasattr(self._runtime, "engine_host_code_allowed"):  # not in 8.5, where it cannot be
            self._runtime.engine_host_code_allowed = False
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise InputError(
                f"TensorRT {self.version} does not take this plan ({self._log.said()}); "
                "build it here from its ONNX"
            )
        self.inputs, self.outputs = self._ports()
        self._lanes = [TensorRTContext(self, graphs)]
        self._graphs = graphs
        self.memory_bytes = max(0, free - self.cuda.memory()[0])
        self.set_shapes(dict(shapes or {}))

    @property
    def _one_context(self) -> bool:
        """Before TensorRT 10 two contexts do not share an optimization profile (its release notes,
        PROFILE_SHARING_0806), and our engines have one."""
        old = self._trt.__name__ == "tensorrt" and int(self.version.split(".")[0]) < 10
        return old and any(-1 in port.shape for port in self.inputs)

    @property
    def graph_refused(self) -> str | None:
        """Why inferences are not replayed as a CUDA graph; None where they are, or before the first."""
        return self._lanes[0].graph_refused

    def set_shapes(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Take other input shapes from now on; the buffers stay.

        Raises:
            InputError: an unknown input, or a shape outside the engine's profile.
        """
        known = {port.name for port in self.inputs}
        for name in shapes:
            if name not in known:
                raise InputError(f"no input {name!r}; the engine takes {', '.join(sorted(known))}")
        for lane in self._lanes:
            lane.set_shapes({name: tuple(shape) for name, shape in shapes.items()})

    def output_shape(self, name: str) -> tuple[int, ...]:
        """Of an output, at the input shapes that are set now."""
        return self._lanes[0].results[name].shape

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One inference; its outputs are overwritten by the next.

        Raises:
            InputError: a name, dtype or shape does not fit.
            CudaError: the GPU failed.
        """
        lane = self._lanes[0]
        lane.fill(inputs)
        lane.enqueue()
        lane.wait()
        return lane.results

    def run_timed(self, inputs: Mapping[str, np.ndarray]) -> Times:
        """One inference with CUDA events around its parts, as trtexec reports them."""
        return self._lanes[0].timed(inputs)

    def throughput(self, inputs: Mapping[str, np.ndarray], duration_s: float) -> tuple[int, float]:
        """Inferences finished in so many seconds with two in flight, copies included (TensorRT 8 and open
        shapes: one)."""
        while len(self._lanes) < (1 if self._one_context else LANES):
            lane = TensorRTContext(self, self._graphs)
            lane.set_shapes({name: array.shape for name, array in inputs.items()})
            self._lanes.append(lane)
        lanes = self._lanes
        for lane in lanes:
            lane.fill(inputs)
            lane.enqueue()
            lane.wait()
        count, begin = 0, time.perf_counter()
        for lane in lanes:
            lane.enqueue()
        while time.perf_counter() - begin < duration_s:
            lane = lanes[count % len(lanes)]
            lane.wait()
            count += 1
            lane.enqueue()
        for lane in lanes:
            lane.wait()
        return count + len(lanes), time.perf_counter() - begin

    def profile(self, inputs: Mapping[str, np.ndarray], runs: int = 10) -> dict[str, float]:
        """Mean ms by layer, in the engine's order; without a graph, in a context of its own where there may
        be one."""
        if self._one_context:
            return self._lanes[0].profile(self._trt, inputs, runs)
        lane = TensorRTContext(self, graphs=False)
        try:
            times = lane.profile(self._trt, inputs, runs)
        finally:
            lane.close()
        return times

    def layers(self) -> list:
        """What the engine says of its layers: a dictionary each (types, tactics) where it was built with
        detailed profiling verbosity, else ``{"Name": …}``."""
        inspector = self._engine.create_engine_inspector()
        form = self._trt.LayerInformationFormat.JSON
        found = json.loads(inspector.get_engine_information(form)).get("Layers", [])
        return [layer if isinstance(layer, dict) else {"Name": layer} for layer in found]

    def close(self) -> None:
        for lane in self._lanes:
            lane.close()
        self._lanes = []
        self._engine = self._runtime = None

    def __enter__(self) -> TensorRTRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ports(self) -> tuple[list, list]:
        found: tuple[list, list] = ([], [])
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            if self._engine.is_shape_inference_io(name):
                raise InputError(
                    f"tensor {name} holds a shape, which TensorRT reads on the host; "
                    "this runner takes data only: make it a constant in the graph"
                )
            kind = self._engine.get_tensor_dtype(name).name
            if kind not in DTYPES:
                raise InputError(
                    f"tensor {name} has type {kind}, which numpy lacks; cast it in the graph"
                )
            is_input = self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
            shape = tuple(self._engine.get_tensor_shape(name))
            found[0 if is_input else 1].append(Port(name, shape, DTYPES[kind]))
        return found
