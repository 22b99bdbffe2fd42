"""Finished stages by content hash: what did not change is not done again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from .. import __version__
from ..errors import InputError
from .atomic_file import (
    disk_errors,
    disk_full,
    found_no_space,
    sync_directory,
    sync_tree,
    write_json,
)
from .content_hash import hash_file, hash_json

LIMIT_BYTES = 10 * 2**30
_RECORD = "stage.json"
_TEMP = ".tmp-"
_FULL_BYTES = 64 * 2**10  # a write that fails for want of space leaves less than a few pages


class StageCache:
    """Directories that are whole or absent, named by the hash of everything they depend on.

    Args:
        root: default ``$EDGEML_CACHE``, else ``~/.cache/edgeml``.
        limit_bytes: the least recently used entries beyond it are removed, never one that this
            process used.

    Raises:
        InputError: `root` is not writable.
    """

    _used: ClassVar[set[Path]] = set()  # of all caches of this process

    def __init__(self, root: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        chosen = root or os.environ.get("EDGEML_CACHE") or Path.home() / ".cache" / "edgeml"
        self.root = Path(chosen).absolute()
        self._limit = limit_bytes
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

        Raises:
            DiskFull: no space is left. What else `make` raises passes.
        """
        if (found := self.find(name, key)) is not None:
            return found, True
        entry = self._entry(name, key)
        with disk_errors(entry), self._temporary() as temp:
            try:
                make(temp)
            except (OSError, InputError):
                raise
            except Exception as e:  # of a full disk, libraries in C++ say "iostream error"
                if found_no_space(e) or shutil.disk_usage(self.root).free < _FULL_BYTES:
                    raise disk_full(entry) from e
                raise
            files = sorted(p for p in temp.rglob("*") if p.is_file())
            record = {str(p.relative_to(temp)): hash_file(p) for p in files}
            write_json(temp / _RECORD, {"name": name, "files": record})
            sync_tree(temp)
            self._move_in(temp, entry)
            sync_directory(self.root)
        self._used.add(entry)
        self._evict()
        return entry, False

    def find(self, name: str, key: dict[str, Any]) -> Path | None:
        """The directory of a finished stage; None where there is no whole entry."""
        entry = self._entry(name, key)
        if not self._whole(entry):
            return None
        with contextlib.suppress(OSError):
            os.utime(entry / _RECORD)
        self._used.add(entry)
        return entry

    def _entry(self, name: str, key: dict[str, Any]) -> Path:
        # Another edgeml may do the same stage otherwise.
        identity = {"name": name, "key": key, "edgeml": __version__}
        return self.root / f"{name}-{hash_json(identity)[:32]}"

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A directory that goes away unless it was renamed, locked so that no other process sweeps it."""
        while True:
            temp = Path(tempfile.mkdtemp(prefix=_TEMP, dir=self.root))
            lock = os.open(temp, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if temp.is_dir():  # not swept between the first line and the third
                break
            os.close(lock)
        try:
            yield temp
        finally:
            shutil.rmtree(temp, ignore_errors=True)
            os.close(lock)

    def _move_in(self, temp: Path, entry: Path) -> None:
        try:
            os.rename(temp, entry)
        except OSError:
            if not self._whole(entry):  # another process was quicker: then its entry serves as well
                raise

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
        self._remove(entry)
        return False

    def _remove(self, entry: Path) -> None:
        """At once for others, and whole even if this process is killed: the sweep takes the rest."""
        doomed = entry.with_name(f"{_TEMP}{entry.name}-{os.getpid()}")
        with contextlib.suppress(OSError):
            os.rename(entry, doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove the temporary directories of processes that are no more: a lock ends with its process.

        Process ids would not do: containers that share a cache give the same one to several.
        """
        for temp in self.root.glob(f"{_TEMP}*"):
            with contextlib.suppress(OSError):
                handle = os.open(temp, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(temp, ignore_errors=True)
                finally:
                    os.close(handle)

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
                self._remove(entry)
                total -= size
