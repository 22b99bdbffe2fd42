"""What a number was measured on, and how noisy it was. Standard library only."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import InputError

ISA_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "amx_fp16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
TOOLS = (
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "torch",
    "transformers",
    "tokenizers",
    "onnxscript",
    "pillow",
    "safetensors",
)
# Share of all CPU time used by others, above which a measurement is told to be noisy.
NOISY_SHARE = 0.10


def usable_threads(wanted: int | None) -> int:
    """`wanted` threads; None: one for each CPU that this process may use.

    Raises:
        InputError: the machine has fewer CPUs; more threads than that only wait for each other.
    """
    if wanted is None:
        return len(os.sched_getaffinity(0))
    if wanted > (cpus := os.cpu_count() or wanted):
        raise InputError(f"--threads {wanted}: this machine has {cpus} CPUs; give at most so many")
    return wanted


def describe_machine() -> dict[str, Any]:
    """CPU, ISA, cores, governor, load: everything a latency depends on besides the engine."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return {
        "cpu": info.get("model name")
        or _device_tree()
        or platform.processor()
        or platform.machine(),
        "cpu_family": info.get("cpu family"),
        "cpu_model": info.get("model"),
        "arch": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "governor": _governor(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": list(os.getloadavg()),
        "tools": tool_versions(),
    }


def tool_versions() -> dict[str, str]:
    """Versions of the libraries that are installed, without importing them."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def isa_name(machine: dict[str, Any]) -> str:
    """The instruction sets that INT8 and bf16 depend on, short enough for a caption.

    >>> isa_name({"isa": ["avx2", "avx512f", "avx512_vnni", "amx_int8"]})
    'AVX-512 VNNI + AMX'
    >>> isa_name({"isa": ["avx2"]})
    'AVX2 without VNNI'
    """
    isa = set(machine.get("isa", ()))
    if "amx_int8" in isa:
        return "AVX-512 VNNI + AMX"
    if "avx512_vnni" in isa:
        return "AVX-512 VNNI"
    if "avx_vnni" in isa:
        return "AVX2 VNNI"
    if "avx512f" in isa:
        return "AVX-512 without VNNI"
    if "avx2" in isa:
        return "AVX2 without VNNI"
    if "i8mm" in isa:
        return "Arm i8mm"
    if "asimddp" in isa:
        return "Arm dot product"
    return machine.get("arch", "unknown")


def cpu_times() -> dict[str, float]:
    """Seconds of CPU time so far: all cores' total, idle and stolen, and this process's own."""
    own = os.times()
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        tick = os.sysconf("SC_CLK_TCK")
        user, nice, system, idle, iowait, irq, softirq, steal = (int(f) / tick for f in fields[:8])
    except (OSError, ValueError):
        return {}
    return {
        "total": user + nice + system + idle + iowait + irq + softirq + steal,
        "idle": idle + iowait,
        "steal": steal,
        "own": own.user + own.system + own.children_user + own.children_system,
    }


def noise_warning(before: dict[str, float], after: dict[str, float]) -> str | None:
    """A line with the figure that shows it when others used the CPU between two `cpu_times`."""
    if not before or not after:
        return None
    spent = {name: after[name] - before[name] for name in after}
    if spent["total"] <= 0:
        return None
    others = spent["total"] - spent["idle"] - spent["own"]
    share = max(0.0, others) / spent["total"]
    stolen = spent["steal"] / spent["total"]
    if share < NOISY_SHARE:
        return None
    theft = f", {stolen:.0%} stolen by the host" if stolen >= 0.01 else ""
    return f"noisy machine: others used {share:.0%} of the CPU time while this ran{theft}; compare ratios only"


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return {}
    return {k.strip(): v.strip() for k, v in re.findall(r"^([^:\n]+):(.*)$", text, re.M)}


def _device_tree() -> str | None:
    try:
        return Path("/proc/device-tree/model").read_text(errors="replace").strip("\0\n") or None
    except OSError:
        return None


def _governor() -> str:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return "unknown"
