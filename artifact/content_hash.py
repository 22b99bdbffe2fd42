"""Identity by content: sha256 of files and plain values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..errors import InputError


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, as hex; read in pieces, so that size does not matter."""
    with Path(path).open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _digest(file)
        )


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def hash_bytes(data: bytes) -> str:
    """sha256 of bytes, as hex."""
    return hashlib.sha256(data).hexdigest()


def hash_json(value: Any) -> str:
    """sha256 of the canonical JSON of a plain value (sorted keys, no white space, no NaN).

    Raises:
        InputError: the value holds something that JSON does not know.
    """
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
        )
    except (TypeError, ValueError) as e:
        raise InputError(f"no canonical JSON for this value: {e}") from e
    return hash_bytes(text.encode())
