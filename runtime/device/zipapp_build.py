"""Packs what runs on a device into one file: `runtime/device`, `runtime/energy` and the two tables.

Runs on the host. The file is the same byte for byte wherever it is made, so that its hash is its version.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("runtime/device", "runtime/energy")
FILES = ("errors.py", "artifact/boards.py", "artifact/tensorrt_versions.py")
# Runs on the host alone.
LEFT_OUT = {"runtime/device/zipapp_build.py"}
_MAIN = (
    "import sys\nfrom edgeml.runtime.device.commands import main\nsys.exit(main(sys.argv[1:]))\n"
)
# The oldest date that a zip can hold; any fixed one would do.
_DATE = (1980, 1, 1, 0, 0, 0)


def device_files() -> list[str]:
    """The files that travel, by their names in the repository."""
    found = [*FILES]
    for folder in FOLDERS:
        found += [path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob("*.py")]
    return sorted(set(found) - LEFT_OUT)


def build_agent(path: str | os.PathLike[str]) -> str:
    """Write the agent's zipapp.

    Args:
        path: where to; replaced as a whole.

    Returns:
        Its sha256.
    """
    path = Path(path)
    entries = {"__main__.py": _MAIN}
    for name in device_files():
        entries["edgeml/" + name] = (ROOT / name).read_text(encoding="utf-8")
    # The packages' own `__init__` would import what does not travel.
    for package in ("", "artifact/", "runtime/"):
        entries["edgeml/" + package + "__init__.py"] = ""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=str(path.parent))
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            for name in sorted(entries):
                info = zipfile.ZipInfo(name, _DATE)
                # Stored: a deflate's bytes differ between versions of zlib.
                info.compress_type = zipfile.ZIP_STORED
                info.create_system, info.external_attr = 3, 0o644 << 16
                archive.writestr(info, entries[name])
        Path(part).chmod(0o644)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return hashlib.sha256(path.read_bytes()).hexdigest()
