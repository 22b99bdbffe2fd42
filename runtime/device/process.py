"""Child processes that never outlive their parent."""

from __future__ import annotations

import ctypes
import glob
import os
import signal

PR_SET_PDEATHSIG = 1  # linux/prctl.h

try:
    _PRCTL = ctypes.CDLL(None, use_errno=True).prctl
except (OSError, AttributeError):  # a libc without it: the heartbeat's end still ends the group
    _PRCTL = None


def die_with_parent() -> None:
    """For `preexec_fn`: the kernel ends this process when its parent ends, however that ends."""
    if _PRCTL is not None:
        _PRCTL(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, nearest first."""
    children: dict[int, list[int]] = {}
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            with open(path, "rb") as file:
                text = file.read().decode("utf-8", "replace")
            # The name in brackets may hold spaces and brackets itself.
            parent = int(text[text.rindex(")") + 2 :].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(parent, []).append(int(path.split("/")[2]))
    found, level = [], [pid]
    while level:
        level = [child for parent in level for child in children.get(parent, ())]
        found += level
    return found


def kill_tree(pid: int) -> None:
    """Kill a process and all below it, at once."""
    for each in [pid, *descendants(pid)]:
        try:
            os.kill(each, signal.SIGKILL)
        except OSError:
            continue


def oom_kills() -> int:
    """How often the kernel has killed a process for memory since it started (``/proc/vmstat``)."""
    try:
        with open("/proc/vmstat", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        return 0
    return 0
