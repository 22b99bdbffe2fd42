"""One lock for the whole machine: nothing is timed while something trains."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def machine_lock(what: str, log: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Hold the machine for training or timing; other edgeml processes of this user wait.

    The lock ends with the process, however it ends. Where the file cannot be made (a read-only
    temporary folder), nothing is held.

    Args:
        what: for the line that says what waits.
        log: called once when another process holds it.
    """
    file = Path(tempfile.gettempdir()) / f"edgeml-{os.getuid()}.lock"
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            log(f"{what} waits: another edgeml trains or measures on this machine")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
