"""How many bytes a model takes on disk."""

from __future__ import annotations

from pathlib import Path

from ..artifact.onnx_file import external_files, read_onnx


def model_files(path: Path) -> list[Path]:
    """The file that a runtime loads and those that belong to it: an IR's `.bin`, external data."""
    if path.suffix == ".xml":
        return [path, path.with_suffix(".bin")]
    return [path, *external_files(read_onnx(path), path)]


def model_bytes(path: Path) -> int:
    """Their size in bytes."""
    return sum(file.stat().st_size for file in model_files(path))
