"""One process at a time in a folder: a lock file that ends with the process, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ..errors import InputError


class FolderLock:
    """A lock file in a folder that may go away with its last holder.

    Args:
        refusal: the line for whoever finds it held.
    """

    def __init__(self, file: Path, refusal: str) -> None:
        self._file, self._refusal = file, refusal
        self._handle: int | None = None

    def take(self) -> None:
        """Take it at once.

        Raises:
            InputError: another process holds it.
        """
        handle = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it may have ended, and the folder with it, between the two calls.
            if not os.path.samestat(os.fstat(handle), self._file.stat()):
                raise BlockingIOError
        except OSError as e:
            os.close(handle)
            raise InputError(self._refusal) from e
        self._handle = handle

    def release(self) -> None:
        """Let it go; nothing where it is not held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
