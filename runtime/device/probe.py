"""What a device is and has, each part by itself: one that is missing is named with its apt package.

Everything is read from files; libraries are looked up, not loaded, but for the two that must import to be of
use (numpy, TensorRT's bindings).
"""

from __future__ import annotations

import getpass
import glob
import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import sys
from typing import Any

from ...artifact.boards import find_board
from ...errors import InputError
from . import board_state
from .board_state import read_text, under
from .trtexec_runner import trtexec_version

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
# L4T → JetPack, where the package nvidia-jetpack is not installed; NVIDIA's Jetson Linux archive.
JETPACK_BY_L4T = (
    ("35.", "5.1"),
    ("36.2", "6.0"),
    ("36.3", "6.0"),
    ("36.4.0", "6.1"),
    ("36.4", "6.2"),
    ("36.5", "6.2.2"),
    ("38.2", "7.0"),
    ("38.4", "7.1"),
    ("39.", "7.2"),
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


def l4t_release(root: str = "/") -> str | None:
    """``36.4.3`` from ``/etc/nv_tegra_release``."""
    text = read_text(under(root, "/etc/nv_tegra_release")) or ""
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
    return f"{match.group(1)}.{match.group(2)}" if match else None


def jetpack_release(l4t: str | None, packages: dict[str, str]) -> str | None:
    """The JetPack release: of its package, else of the table by L4T.

    >>> jetpack_release("36.4.3", {}), jetpack_release("36.4.4", {"nvidia-jetpack": "6.2.1+b38"})
    ('6.2', '6.2.1')
    """
    if "nvidia-jetpack" in packages:
        return re.split(r"[+~-]", packages["nvidia-jetpack"])[0]
    for prefix, release in JETPACK_BY_L4T:
        if l4t and (l4t + ".").startswith(prefix.rstrip(".") + "."):
            return release
    return None


def installed_packages(root: str = "/") -> dict[str, str]:
    """Version by name of the packages that matter here, from dpkg's own list."""
    wanted = re.compile(r"nvidia-jetpack|libnvinfer\d+|libnvinfer-bin|python3-libnvinfer")
    text = read_text(under(root, "/var/lib/dpkg/status")) or ""
    found = {}
    for block in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", block, re.M))
        name = fields.get("Package", "")
        if wanted.fullmatch(name) and fields.get("Status", "installed").endswith("installed"):
            found[name] = fields.get("Version", "")
    return found


def tensorrt_parts(root: str, packages: dict[str, str]) -> tuple[dict[str, str | None], str | None]:
    """The library's version, the bindings' version or why they do not import, and trtexec's path."""
    bindings = why = None
    try:
        bindings = str(importlib.import_module("tensorrt").__version__)
    except Exception as e:  # ImportError, or whatever a broken installation raises
        why = "{}: {}".format(type(e).__name__, " ".join(str(e).split())[:200])
    library = next((v for n, v in sorted(packages.items()) if re.match(r"libnvinfer\d", n)), None)
    version = re.split(r"[-+]", library)[0] if library else bindings
    path = under(root, TRTEXEC)
    trtexec = path if os.access(path, os.X_OK) else shutil.which("trtexec")
    if version is None and trtexec is not None:
        try:
            version = trtexec_version(trtexec)
        except InputError as e:
            why = f"{why}; {e}"
    return {"version": version, "bindings": bindings, "why": why}, trtexec


def library_version(name: str) -> tuple[str | None, str | None]:
    """An installed library's version, or None and why."""
    if importlib.util.find_spec(name) is None:
        return None, "not installed"
    try:
        # ONNX Runtime takes a second to import; that it is there is enough until an engine is loaded.
        if name == "onnxruntime":
            from importlib.metadata import version

            return version(name), None
        return str(importlib.import_module(name).__version__), None
    except Exception as e:  # a numpy of another Python raises ImportError, a broken one anything
        return None, "{}: {}".format(type(e).__name__, " ".join(str(e).split())[:200])


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


def cuda_version(root: str = "/") -> str | None:
    """``12.6`` from the toolkit's ``version.json``, else from the runtime library's name."""
    text = read_text(under(root, "/usr/local/cuda/version.json"))
    try:
        number = json.loads(text or "{}")["cuda"]["version"]
    except (ValueError, KeyError, TypeError):
        number = None
        for pattern in ("/usr/local/cuda*/targets/*/lib", "/usr/local/cuda*/lib64"):
            for path in sorted(board_state.find(root, pattern + "/libcudart.so.*.*")):
                number = os.path.basename(path).split(".so.")[1]
    return ".".join(number.split(".")[:2]) if number else None


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
