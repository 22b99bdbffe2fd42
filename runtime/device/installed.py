"""What is installed on a device: L4T and JetPack, TensorRT's parts, CUDA, Python's libraries.

Everything is read from files; libraries are looked up, not loaded, but for the two that must import to be of
use (numpy, TensorRT's bindings).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil

from ...errors import InputError
from . import board_state
from .board_state import read_text, under
from .trtexec_output import trtexec_version

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
