"""NVML: the energy counter of an NVIDIA GPU (Volta and later; not on Orin). Not run on hardware yet.

``nvmlDeviceGetTotalEnergyConsumption`` counts mJ since the driver was loaded. The power reading beside it is
an average over a second on many GPUs, so it is not used. Needs nvidia-ml-py (extra ``energy``).
"""

from __future__ import annotations

import ctypes
import time
from importlib import import_module
from typing import Any

from .meter import COUNTER, GPU_BOARD, CounterReset, Meter, MeterError, Window
from .none import NoMeter

# The counter moves every 20 to 100 ms: of a window of 10 s that is at most 1 %.
SHORTEST_WINDOW_S = 10.0
# nvml.h, nvmlClocksEventReasons*: bits of what holds the clocks down.
THROTTLE_REASONS = {
    0x1: "gpu idle",
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}


def nvml_meter(gpu: int | None = None, pynvml: Any = None) -> Meter:
    """The GPU's counter, or a `NoMeter` that says why there is none.

    Args:
        gpu: NVML's index, which follows neither CUDA_VISIBLE_DEVICES nor CUDA_DEVICE_ORDER; None is the GPU
            that engines run on, CUDA's first.
        pynvml: the library, already imported.
    """
    try:
        # By name: a device has no such package, and needs none (its rails come first).
        library = pynvml or import_module("pynvml")
    except ImportError:
        return NoMeter("nvidia-ml-py is not installed (pip install nvidia-ml-py)", "nvml")
    try:
        library.nvmlInit()
    except library.NVMLError as e:
        return NoMeter(f"no NVIDIA driver answers ({e})", "nvml")
    try:
        bus = first_cuda_gpu() if gpu is None else None
        if bus is not None:
            handle = library.nvmlDeviceGetHandleByPciBusId(bus)
            gpu = library.nvmlDeviceGetIndex(handle)
        else:
            gpu = gpu or 0
            handle = library.nvmlDeviceGetHandleByIndex(gpu)
        library.nvmlDeviceGetTotalEnergyConsumption(handle)
    except library.NVMLError as e:
        library.nvmlShutdown()
        return NoMeter(f"GPU {gpu or 0} has no energy counter ({e})", "nvml")
    return NvmlMeter(library, handle, gpu)


def first_cuda_gpu() -> bytes | None:
    """PCI bus id of the GPU that CUDA calls 0 (``cuDeviceGetPCIBusId``, cuda.h); None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, bus = ctypes.c_int(), ctypes.create_string_buffer(32)
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetPCIBusId(bus, len(bus), device)
    )
    return None if failed else bus.value


class NvmlMeter(Meter):
    """One GPU's counter; the board's whole draw, its memory included."""

    name = "nvml"
    how = COUNTER
    scope = GPU_BOARD
    shortest_window_s = SHORTEST_WINDOW_S

    def __init__(self, library: Any, handle: Any, gpu: int = 0) -> None:
        self._nvml, self._handle = library, handle
        self.rails = self.total_rails = (f"gpu{gpu}",)
        self._before, self._begin = 0, 0.0

    def start(self) -> None:
        self._before, self._begin = self._counter_mj(), time.monotonic()

    def stop(self) -> Window:
        after, seconds = self._counter_mj(), time.monotonic() - self._begin
        if after < self._before:
            raise CounterReset("nvml: the counter began anew (the driver was loaded again)")
        spent = float(after - self._before)
        return Window(seconds=seconds, total_mj=spent, rail_mj={self.rails[0]: spent})

    def conditions(self) -> dict[str, Any]:
        return gpu_conditions(self._nvml, self._handle)

    def close(self) -> None:
        if not self.closed:
            self._nvml.nvmlShutdown()
        super().close()

    def _counter_mj(self) -> int:
        try:
            return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError as e:
            raise MeterError(f"nvml: {e}") from e


def gpu_conditions(library: Any, handle: Any) -> dict[str, Any]:
    """Name, clocks_mhz, temperatures_c, power_limit_w, throttling, memory; what the GPU lacks is left out."""
    nvml = library

    def asked(function: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, function)(handle, *arguments)
        except (nvml.NVMLError, AttributeError):
            return None

    clocks = {
        name: asked("nvmlDeviceGetClockInfo", kind)
        for name, kind in (("sm", nvml.NVML_CLOCK_SM), ("memory", nvml.NVML_CLOCK_MEM))
    }
    bits = asked("nvmlDeviceGetCurrentClocksEventReasons")
    if bits is None:  # the name before driver 535
        bits = asked("nvmlDeviceGetCurrentClocksThrottleReasons")
    limit_mw = asked("nvmlDeviceGetEnforcedPowerLimit")
    memory = asked("nvmlDeviceGetMemoryInfo")
    temperature = asked("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)
    name = asked("nvmlDeviceGetName")
    found = {
        "gpu": name.decode() if isinstance(name, bytes) else name,
        "driver": _driver(nvml),
        "clocks_mhz": {name: mhz for name, mhz in clocks.items() if mhz is not None},
        "temperatures_c": {} if temperature is None else {"gpu": temperature},
        "power_limit_w": None if limit_mw is None else limit_mw / 1e3,
        "performance_state": asked("nvmlDeviceGetPerformanceState"),
        "memory_used_bytes": None if memory is None else memory.used,
        "memory_total_bytes": None if memory is None else memory.total,
        "throttling": None if bits is None else throttle_reasons(bits),
    }
    return {name: value for name, value in found.items() if value is not None}


def throttle_reasons(bits: int) -> list[str]:
    """What holds the clocks down, in words.

    >>> throttle_reasons(0x4 | 0x40), throttle_reasons(0)
    (['software power cap', 'hardware thermal slowdown'], [])
    """
    return [word for bit, word in THROTTLE_REASONS.items() if bits & bit]


def _driver(nvml: Any) -> str | None:
    try:
        version = nvml.nvmlSystemGetDriverVersion()
    except (nvml.NVMLError, AttributeError):
        return None
    return version.decode() if isinstance(version, bytes) else version
