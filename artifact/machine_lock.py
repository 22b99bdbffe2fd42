"""One lock for the whole machine: nothing is timed while something trains.

Trainings hold it together, a timing alone. One that waits to time says so in a second file, which
trainings look at between steps (`MachineHold.pause`): they let it pass first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

Log = Callable[[str], None]

_holds: list[MachineHold] = []  # of this process, shared ones: a timing of its own must pass, too
_timed: list[int] = []  # of this process: timings that run or wait; the holds are let go as long


class MachineHold:
    """The lock as this process holds it; made by `machine_lock`. Its two files stay open as long."""

    def __init__(self, handle: int, wanted: int) -> None:
        self.handle, self.wanted = handle, wanted

    def pause(self) -> None:
        """Let others time now, if any waits; called between steps. About 2 µs where none does."""
        if _timed:  # a log line beside a timing of our own, which would wait for itself
            return
        if _locked(self.wanted, fcntl.LOCK_SH):
            fcntl.flock(self.wanted, fcntl.LOCK_UN)
            return
        _let_go_all(_holds)
        _take_all_again(_holds)


class _NoHold:
    """Where the files cannot be made, nothing is held."""

    def pause(self) -> None:
        return


@contextlib.contextmanager
def machine_lock(
    what: str, log: Log = lambda line: None, *, shared: bool = False
) -> Iterator[MachineHold | _NoHold]:
    """Hold the machine for training or timing; other edgeml processes of this user wait.

    The lock ends with the process, however it ends. Where the files cannot be made (a read-only
    temporary folder), nothing is held.

    Args:
        what: for the line that says what waits.
        log: called once when another process holds it.
        shared: beside others that hold it so: a training, or other work that a timing must not have
            beside it. A process that holds it so may time inside: it lets go for as long.
    """
    root = Path(tempfile.gettempdir())
    with contextlib.ExitStack() as stack:
        try:
            handle, wanted = (
                os.open(
                    root / f"edgeml-{os.getuid()}.{end}",
                    os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
                    0o600,
                )
                for end in ("lock", "wanted")
            )
        except OSError:
            yield _NoHold()
            return
        stack.callback(os.close, wanted)
        stack.callback(os.close, handle)
        line = f"{what} waits: another edgeml trains or measures on this machine"
        if shared:
            hold = MachineHold(handle, wanted)
            if not (_locked(wanted, fcntl.LOCK_SH) and _locked(handle, fcntl.LOCK_SH)):
                fcntl.flock(wanted, fcntl.LOCK_UN)
                log(line)
                _let_go_all(_holds)  # who waits to time waits for these, too
                _take_all_again([*_holds, hold])
            fcntl.flock(wanted, fcntl.LOCK_UN)
            _holds.append(hold)
            stack.callback(_holds.remove, hold)
            yield hold
            return
        own = list(_holds)
        _let_go_all(own)
        _timed.append(handle)
        try:
            if not (_locked(wanted, fcntl.LOCK_EX) and _locked(handle, fcntl.LOCK_EX)):
                log(line)
                fcntl.flock(wanted, fcntl.LOCK_EX)
                fcntl.flock(handle, fcntl.LOCK_EX)
            fcntl.flock(wanted, fcntl.LOCK_UN)
            yield MachineHold(handle, wanted)
        finally:
            fcntl.flock(wanted, fcntl.LOCK_UN)  # an interrupt may have come while it was held
            fcntl.flock(handle, fcntl.LOCK_UN)
            _timed.remove(handle)
            _take_all_again(own)


def _let_go_all(holds: list[MachineHold]) -> None:
    for hold in holds:
        fcntl.flock(hold.handle, fcntl.LOCK_UN)


def _take_all_again(holds: list[MachineHold]) -> None:
    """Behind those that wait to time, and all at once: one that came to wait between two of them would
    wait for the first, and the second for it."""
    if not holds:
        return
    fcntl.flock(holds[0].wanted, fcntl.LOCK_SH)
    for hold in holds:
        fcntl.flock(hold.handle, fcntl.LOCK_SH)
    fcntl.flock(holds[0].wanted, fcntl.LOCK_UN)


def _locked(handle: int, how: int) -> bool:
    """Take a lock if nobody keeps it from us."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
