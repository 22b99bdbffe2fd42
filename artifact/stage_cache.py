"""Finished stages by content hash: what did not change is not done again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError
from .atomic_file import disk_errors, sync_directory, sync_tree, write_json
from .content_hash import hash_file, hash_json

LIMIT_BYTES = 10 * 2**30
_RECORD = "stage.json"
_TEMP = ".tmp-"


class StageCache:
    """Directories that are whole or absent, named by the hash of everything they depend on.

    Args:
        root: default ``$EDGEML_CACHE``, else ``~/.cache/edgeml``.
        limit_bytes: the least recently used entries beyond it are removed, never one that this
            process used.

    Raises:
        InputError: `root` is not writable.
    """

    def __init__(self, root: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        chosen = root or os.environ.get("EDGEML_CACHE") or Path.home() / ".cache" / "edgeml"
        self.root = Path(chosen)
        self._limit = limit_bytes
        self._used: set[Path] = set()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as e:
            raise InputError(
                f"the cache {self.root} cannot be written ({e.strerror}); set EDGEML_CACHE to a folder that can"
            ) from e
        self._sweep()

    def run(
        self, name: str, key: dict[str, Any], make: Callable[[Path], None]
    ) -> tuple[Path, bool]:
        """The directory of a finished stage.

        Args:
            key: everything the result depends on: content hashes, versions, settings.
            make: fills an empty directory; called only when there is no whole entry.

        Returns:
            The directory, and whether it was there already.
        """
        entry = self.root / f"{name}-{hash_json({'name': name, 'key': key})[:32]}"
        if self._whole(entry):
            with contextlib.suppress(OSError):
                os.utime(entry / _RECORD)
            self._used.add(entry)
            return entry, True
        with disk_errors(entry):
            temp = Path(tempfile.mkdtemp(prefix=f"{_TEMP}{os.getpid()}-", dir=self.root))
            try:
                make(temp)
                files = sorted(p for p in temp.rglob("*") if p.is_file())
                record = {str(p.relative_to(temp)): hash_file(p) for p in files}
                write_json(temp / _RECORD, {"name": name, "files": record})
                sync_tree(temp)
                self._move_in(temp, entry)
            except BaseException:
                shutil.rmtree(temp, ignore_errors=True)
                raise
            sync_directory(self.root)
        self._used.add(entry)
        self._evict()
        return entry, False

    def _move_in(self, temp: Path, entry: Path) -> None:
        try:
            os.rename(temp, entry)
        except OSError:
            if not self._whole(entry):  # another process was quicker: then its entry serves as well
                raise
            shutil.rmtree(temp, ignore_errors=True)

    def _whole(self, entry: Path) -> bool:
        """Whether the entry is there with every file as it was written; a damaged one is removed."""
        if not entry.is_dir():
            return False
        try:
            files = json.loads((entry / _RECORD).read_text(encoding="utf-8"))["files"]
            if all(hash_file(entry / name) == digest for name, digest in files.items()):
                return True
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        shutil.rmtree(entry, ignore_errors=True)
        return False

    def _sweep(self) -> None:
        """Remove the temporary directories of processes that are no more."""
        for temp in self.root.glob(f"{_TEMP}*"):
            pid = temp.name.removeprefix(_TEMP).split("-")[0]
            if not pid.isdigit() or not _alive(int(pid)):
                shutil.rmtree(temp, ignore_errors=True)

    def _evict(self) -> None:
        entries = []
        for record in self.root.glob(f"*/{_RECORD}"):
            with contextlib.suppress(OSError):
                size = sum(p.stat().st_size for p in record.parent.rglob("*") if p.is_file())
                entries.append((record.stat().st_mtime, size, record.parent))
        total = sum(size for _, size, _ in entries)
        for _, size, entry in sorted(entries):
            if total <= self._limit:
                break
            if entry not in self._used:
                shutil.rmtree(entry, ignore_errors=True)
                total -= size


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
