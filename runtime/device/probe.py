"""What a device is and has, each part by itself: one that is missing is named with its apt package."""

from __future__ import annotations

import getpass
import glob
import json
import os
import platform
import re
import shutil
import socket
import sys
from typing import Any

from ...artifact.boards import find_board
from . import board_state
from .board_state import read_text, under
from .installed import (
    TRTEXEC,
    cuda_version,
    installed_packages,
    jetpack_release,
    l4t_release,
    library_version,
    tensorrt_parts,
)


def probe(root: str = "/", cache: str = "~/.cache/edgeml") -> dict[str, Any]:
    """The answer to the protocol's ``probe`` (docs/decisions/009-device-protocol.md names the fields).

    Args:
        root: where ``sys``, ``proc``, ``etc``, ``usr`` lie, for made trees.
        cache: whose disk's free space counts.
    """
    model = board_state.device_tree("model", root)
    compatible = board_state.device_tree("compatible", root) or ""
    board = find_board(model or "", compatible)
    packages = installed_packages(root)
    l4t = l4t_release(root)
    memory = _memory(root)
    tensorrt, trtexec = tensorrt_parts(root, packages)
    libraries = {name: library_version(name) for name in ("numpy", "onnxruntime", "PIL")}
    return {
        "hostname": socket.gethostname(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "user": _user(),
        "board": {
            "id": board.name if board else None,
            "model": model,
            "emulated": is_emulated(model, compatible),
        },
        "l4t": l4t,
        "jetpack": jetpack_release(l4t, packages),
        "cuda": cuda_version(root),
        "compute_capability": _capability(board.compute_capability) if board else None,
        "tensorrt": tensorrt,
        "trtexec": trtexec,
        "numpy": libraries["numpy"][0],
        "onnxruntime": libraries["onnxruntime"][0],
        "pillow": libraries["PIL"][0],
        "missing": _missing(tensorrt, trtexec, libraries),
        "cpu": _cpu(root),
        "cores": len(os.sched_getaffinity(0)),
        "memory_total_bytes": memory.get("MemTotal"),
        "memory_available_bytes": memory.get("MemAvailable"),
        "disk_free_bytes": _disk_free(os.path.expanduser(cache)),
        "power": power_state(root),
        "clocks": board_state.clocks(root),
        "temperatures_c": board_state.temperatures_c(root),
        "fan": board_state.fan(root),
        "meter": meter_state(root, "cuda" if board else "cpu"),
        "dla": len(dla_devices(root)),
        "gpu_users": gpu_users(root),
    }


def is_emulated(model: str | None, compatible: str) -> bool:
    """Whether the device says that it is emulated; then no time, energy or power of it means anything."""
    words = "{} {}".format(model or "", compatible).lower()
    return any(word in words for word in ("emulated", "qemu", "dummy-virt"))


def _missing(
    tensorrt: dict[str, str | None],
    trtexec: str | None,
    libraries: dict[str, tuple[str | None, str | None]],
) -> list[dict[str, str | None]]:
    rows = []
    if tensorrt["version"] is None:
        rows.append(("tensorrt", "nvidia-jetpack", "libnvinfer is not installed"))
    if tensorrt["bindings"] is None:
        rows.append(("bindings", "python3-libnvinfer", tensorrt["why"]))
    if trtexec is None:
        rows.append(("trtexec", "libnvinfer-bin", f"no {TRTEXEC}, none on PATH"))
    for name, part, package in (
        ("numpy", "numpy", "python3-numpy"),
        ("PIL", "pillow", "python3-pil"),
        ("onnxruntime", "onnxruntime", None),
    ):
        if libraries[name][0] is None:
            rows.append((part, package, libraries[name][1]))
    return [{"part": part, "package": package, "why": why} for part, package, why in rows]


def _capability(name: str) -> str:
    """``SM87`` as CUDA writes it, ``8.7``."""
    digits = name[2:]
    return f"{digits[:-1]}.{digits[-1]}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without an entry in /etc/passwd
        return str(os.getuid())


def _cpu(root: str) -> str | None:
    text = read_text(under(root, "/proc/cpuinfo")) or ""
    for key in ("model name", "Model", "Hardware"):
        match = re.search(rf"^{key}\s*:\s*(.+)$", text, re.M)
        if match:
            return match.group(1).strip()
    return platform.processor() or platform.machine()


def _memory(root: str) -> dict[str, int]:
    text = read_text(under(root, "/proc/meminfo")) or ""
    return {k: int(v) * 1024 for k, v in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}


def available_memory(root: str = "/") -> int | None:
    """Bytes that can be taken without swapping, ``MemAvailable``; GPU and CPU share them on a Jetson."""
    return _memory(root).get("MemAvailable")


def _disk_free(path: str) -> int | None:
    while path and not os.path.isdir(path):
        path = os.path.dirname(path)
    try:
        return shutil.disk_usage(path or "/").free
    except OSError:
        return None


def power_state(root: str = "/") -> dict[str, Any]:
    """The board's power modes and the active one, or why there are none."""
    modes, active = board_state.power_modes(root), board_state.active_mode(root)
    why = None if modes else "no /etc/nvpmodel.conf: not a Jetson, or without nvpmodel"
    if modes and active is None:
        why = "nvpmodel keeps no record of the active mode"
    return {"modes": modes, "active": active, "why": why}


def meter_state(root: str = "/", device: str = "cuda") -> dict[str, Any]:
    """The energy meter that would be used, or why there is none."""
    try:
        from ..energy.meter import find_meter

        with find_meter(device, root) as meter:
            return {
                "name": meter.name if meter.reason is None else None,
                "rails": list(meter.rails),
                "total": "+".join(meter.total_rails) or None,
                "scope": meter.scope or None,
                "why": meter.reason,
            }
    except Exception as e:  # a probe tells what failed and goes on
        why = "{}: {}".format(type(e).__name__, " ".join(str(e).split())[:200])
        return {"name": None, "rails": [], "total": None, "scope": None, "why": why}


def dla_devices(root: str = "/") -> list[str]:
    """Deep-learning accelerators that the kernel knows; they are named and not used."""
    names = [
        os.path.basename(path)
        for pattern in ("/sys/bus/platform/devices/*nvdla*", "/dev/nvhost-nvdla*")
        for path in board_state.find(root, pattern)
    ]
    # Each may appear as a device and as a node: the larger of the two counts is the number of units.
    nodes = [name for name in names if name.startswith("nvhost")]
    return nodes or names


def gpu_users(root: str = "/") -> list[dict[str, Any]]:
    """Other processes that hold the GPU open, as far as this user may see."""
    found = []
    for entry in sorted(glob.glob(under(glob.escape(root), "/proc/[0-9]*"))):
        pid = int(os.path.basename(entry))
        if pid == os.getpid():
            continue
        try:
            targets = [os.readlink(handle) for handle in glob.glob(glob.escape(entry) + "/fd/*")]
        except OSError:
            continue
        if any(re.match(r"/dev/(nvhost-(ctrl-)?gpu|nvgpu|nvidia\d|nvmap)", t) for t in targets):
            found.append({"pid": pid, "name": read_text(entry + "/comm") or "?"})
    return found


def main() -> None:
    """``python3 agent.pyz probe``: the answer as JSON, for a look by hand."""
    json.dump(probe(), sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
