"""Files that are whole or absent: written under a temporary name, synced, renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DiskFull, InputError

PREFIX = ".edgeml-tmp-"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSALS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into our lines.

    A refusal that names a file outside `path`'s folder is not about this write: it passes as it is.

    Raises:
        DiskFull: the disk (or a quota) is full.
        InputError: the place is not writable.
    """
    try:
        yield
    except OSError as e:
        if found_no_space(e):
            raise disk_full(path) from e
        if e.errno in _REFUSALS and _lies_at(e.filename, path):
            raise InputError(f"{path} cannot be written: {e.strerror}; choose another place") from e
        raise


def found_no_space(error: BaseException | None) -> bool:
    """Whether an exception, or one that it was raised from, tells of a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return True
        error = error.__cause__
    return False


def disk_full(path: Path) -> DiskFull:
    """The error of a write at `path` that found no space."""
    return DiskFull(
        f"no space left on the disk while writing {path}; free some, the same command goes on"
    )


def _lies_at(filename: object, path: Path) -> bool:
    if not isinstance(filename, str):
        return True
    return Path(filename).absolute().is_relative_to(Path(path).absolute().parent)


def sync_directory(path: Path) -> None:
    """Make renames inside `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that becomes `path` when the block ends well.

    The suffix stays, for libraries that look at it. After an exception nothing is left behind.
    """
    path = Path(path)
    with disk_errors(path):
        handle, name = tempfile.mkstemp(prefix=PREFIX, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        part = Path(name)
        try:
            yield part
            part.chmod(0o644)
            _sync_file(part)
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that is either whole or what it was before."""
    with replacing(Path(path)) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """`write_text` for a plain value, indented."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(file: Path) -> dict[str, Any] | None:
    """A file's mapping; None where there is none that is whole."""
    with contextlib.suppress(OSError, ValueError):
        values = json.loads(file.read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else None
    return None


def whole_lines(data: bytes, known: Callable[[dict[str, Any]], bool] = lambda entry: True) -> int:
    """How many bytes of JSON lines stand before the first that a kill or a power cut tore.

    Args:
        known: whether a line's mapping is an entry at all.
    """
    whole = 0
    for line in data.splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(entry, dict) or not known(entry):
            break
        whole += len(line)
    return whole


def cut(file: Path, size: int) -> None:
    """Keep the first `size` bytes of a file, on disk when this returns."""
    with file.open("r+b") as handle:
        handle.truncate(size)
        os.fsync(handle.fileno())


def sync_tree(root: Path) -> None:
    """fsync every file and directory under `root`, and `root`."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            _sync_file(Path(folder, name))
        sync_directory(Path(folder))


def publish_directory(part: Path, out: Path) -> None:
    """Make `part` durable and rename it to `out` as the last act.

    Raises:
        InputError: `out` exists; it is never overwritten.
    """
    with disk_errors(out):
        sync_tree(part)
        if out.exists() or out.is_symlink():
            raise InputError(f"{out} exists; remove it or choose another output")
        os.rename(part, out)
        sync_directory(out.parent)
