"""The few CUDA runtime calls that an engine needs, by ctypes on libcudart. Not run on hardware yet.

JetPack brings no cuda-python, so there is none here either. Signatures: CUDA Runtime API, the same from
11.4 (JetPack 5) to 13. Standard library only, Python 3.8.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from pathlib import Path
from typing import Any

from ...errors import EdgemlError, MissingPart

NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
# Below /usr/local.
PLACES = (
    "cuda/lib64/libcudart.so*",
    "cuda*/targets/*/lib/libcudart.so*",
)
# driver_types.h
_OUT_OF_MEMORY = 2
_NO_DRIVER = (34, 35)  # cudaErrorStubLibrary, cudaErrorInsufficientDriver
_NO_DEVICE = 100
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2
_NON_BLOCKING = 1
# Relaxed: other threads' CUDA calls do not break a capture.
_CAPTURE_RELAXED = 2
_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _INTEGRATED = 75, 76, 18


class CudaError(EdgemlError):
    """A CUDA call failed."""


class OutOfGpuMemory(CudaError):
    """The GPU has too little free memory; the message says how much was asked for."""


class CudaRuntime:
    """One GPU.

    Args:
        library: libcudart, already loaded (None finds it).
        device: which GPU.

    Raises:
        MissingPart: no CUDA runtime, no driver that fits it, or no GPU.
    """

    def __init__(self, library: Any = None, device: int = 0) -> None:
        self._cuda = load_cudart() if library is None else library
        count = ctypes.c_int()
        status = self._cuda.cudaGetDeviceCount(ctypes.byref(count))
        if status in _NO_DRIVER:
            raise MissingPart(
                f"the NVIDIA driver is missing or too old for this CUDA runtime "
                f"({self._said(status)}); install a newer driver"
            )
        if status == _NO_DEVICE or (status == 0 and count.value == 0):
            raise MissingPart(
                "no NVIDIA GPU answers (the runtime is there, nvidia-smi may say more)"
            )
        self._check(status, "cudaGetDeviceCount")
        if device >= count.value:
            raise MissingPart(f"there is no GPU {device}: this machine has {count.value}")
        self.device = device
        self._call("cudaSetDevice", ctypes.c_int(device))

    # ── what it is ──

    def capability(self) -> str:
        """Compute capability, as in ``SM87``."""
        return f"SM{self._attribute(_CAPABILITY_MAJOR)}{self._attribute(_CAPABILITY_MINOR)}"

    def integrated(self) -> bool:
        """It shares the machine's memory, as on a Jetson."""
        return bool(self._attribute(_INTEGRATED))

    def versions(self) -> tuple[str, str]:
        """Of the CUDA runtime, and the newest that the driver knows, as in ``12.6``."""
        return self._version("cudaRuntimeGetVersion"), self._version("cudaDriverGetVersion")

    def memory(self) -> tuple[int, int]:
        """Free and total bytes."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    # ── memory ──

    def malloc(self, size: int) -> int:
        """Device memory: its address.

        Raises:
            OutOfGpuMemory: there is too little.
        """
        address = ctypes.c_void_p()
        status = self._cuda.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(size))
        self._check(status, "cudaMalloc", f"{size:,} bytes")
        return address.value or 0

    def free(self, address: int) -> None:
        self._call("cudaFree", ctypes.c_void_p(address))

    def malloc_host(self, size: int) -> int:
        """Page-locked host memory, which copies at full speed and asynchronously."""
        address = ctypes.c_void_p()
        status = self._cuda.cudaMallocHost(ctypes.byref(address), ctypes.c_size_t(size))
        self._check(status, "cudaMallocHost", f"{size:,} bytes")
        return address.value or 0

    def free_host(self, address: int) -> None:
        self._call("cudaFreeHost", ctypes.c_void_p(address))

    def to_device(self, device: int, host: int, size: int, stream: int) -> None:
        self._copy(device, host, size, _HOST_TO_DEVICE, stream)

    def to_host(self, host: int, device: int, size: int, stream: int) -> None:
        self._copy(host, device, size, _DEVICE_TO_HOST, stream)

    # ── streams, events, graphs ──

    def stream(self) -> int:
        handle = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(handle), ctypes.c_uint(_NON_BLOCKING))
        return handle.value or 0

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", ctypes.c_void_p(stream))

    def event(self) -> int:
        handle = ctypes.c_void_p()
        self._call("cudaEventCreate", ctypes.byref(handle))
        return handle.value or 0

    def record(self, event: int, stream: int) -> None:
        self._call("cudaEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def elapsed_ms(self, first: int, last: int) -> float:
        """Between two recorded events that have happened; its resolution is about 0.5 µs."""
        found = ctypes.c_float()
        self._call(
            "cudaEventElapsedTime",
            ctypes.byref(found),
            ctypes.c_void_p(first),
            ctypes.c_void_p(last),
        )
        return found.value

    def destroy_event(self, event: int) -> None:
        self._call("cudaEventDestroy", ctypes.c_void_p(event))

    def begin_capture(self, stream: int) -> None:
        """What is enqueued from now on is recorded, not run."""
        self._call(
            "cudaStreamBeginCapture", ctypes.c_void_p(stream), ctypes.c_int(_CAPTURE_RELAXED)
        )

    def end_capture(self, stream: int) -> int:
        """The recorded work as an executable graph.

        Raises:
            CudaError: something in it cannot be captured.
        """
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cudaStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            # cudaGraphInstantiate changed its arguments with CUDA 12; this one did not.
            self._call(
                "cudaGraphInstantiateWithFlags",
                ctypes.byref(executable),
                graph,
                ctypes.c_ulonglong(0),
            )
        finally:
            self._cuda.cudaGraphDestroy(graph)
        return executable.value or 0

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", ctypes.c_void_p(graph))

    # ── how calls are made ──

    def _copy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(to),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            ctypes.c_int(kind),
            ctypes.c_void_p(stream),
        )

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._call(
            "cudaDeviceGetAttribute",
            ctypes.byref(value),
            ctypes.c_int(number),
            ctypes.c_int(self.device),
        )
        return value.value

    def _version(self, function: str) -> str:
        value = ctypes.c_int()
        self._call(function, ctypes.byref(value))
        return f"{value.value // 1000}.{value.value % 1000 // 10}"

    def _call(self, function: str, *arguments: Any) -> None:
        self._check(getattr(self._cuda, function)(*arguments), function)

    def _check(self, status: int, function: str, what: str = "") -> None:
        if status == 0:
            return
        self._cuda.cudaGetLastError()  # an error that is not sticky does not hang on
        if status == _OUT_OF_MEMORY:
            raise OutOfGpuMemory(f"out of GPU memory: {function} {what}".rstrip())
        raise CudaError(f"{function} failed: {self._said(status)}")

    def _said(self, status: int) -> str:
        text = self._cuda.cudaGetErrorString(ctypes.c_int(status))
        return f"{text.decode(errors='replace') if text else 'unknown'}, CUDA error {status}"


def load_cudart() -> Any:
    """libcudart by its names, then where CUDA is installed.

    Raises:
        MissingPart: it is nowhere.
    """
    found = ctypes.util.find_library("cudart")
    local = Path("/usr/local")
    places = [str(path) for p in PLACES for path in sorted(local.glob(p), reverse=True)]
    for name in ([found] if found else []) + list(NAMES) + places:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.cudaGetErrorString.restype = ctypes.c_char_p
        return library
    raise MissingPart(
        "no CUDA runtime (libcudart) is found; install CUDA, or on a Jetson cuda-cudart of its JetPack"
    )
