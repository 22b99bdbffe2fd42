"""A request of a sweep in a process of its own: started, looked after, and how it ended told."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ..artifact.atomic_file import read_json, write_json
from ..artifact.sweep_directory import LOG, RESULT

POLL_S = 0.05


class Child:
    """``python -m edgeml.compress.sweep_trial FOLDER``, which ends with this process.

    It leads a process group of its own, so that nothing it starts outlives `kill`.

    Args:
        folder: holds the request; gets the result and the log.
        seconds: after which it is killed; None: never.
    """

    def __init__(self, folder: Path, seconds: float | None = None) -> None:
        self.folder = folder
        self._ends = None if seconds is None else time.monotonic() + seconds
        self._began, self._oom = time.monotonic(), oom_kills()
        command = [sys.executable, "-m", "edgeml.compress.sweep_trial", str(folder.resolve())]
        with (folder / LOG).open("ab") as file:
            # From the main thread: the kernel ends it with the *thread* that started it.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def poll(self) -> dict[str, Any] | None:
        """The result; None while it runs. Of one that left none the reason is written in its place."""
        code = self._process.poll()
        late = code is None and self._ends is not None and time.monotonic() >= self._ends
        if code is None and not late:
            return None
        self.kill()
        found = read_json(self.folder / RESULT)
        if found is None:
            state, reason = ("out of time", "--time was over") if late else self._why(code)
            seconds = round(time.monotonic() - self._began, 3)
            found = {"state": state, "reason": reason, "seconds": seconds}
            write_json(self.folder / RESULT, found)
        return found

    def kill(self) -> None:
        """End it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _why(self, code: int) -> tuple[str, str]:
        """State and reason of a process that left no result."""
        if code >= 0:
            return "failed", f"its process ended with {code} and left no result; see {LOG}"
        name = signal.Signals(-code).name
        reason = f"its process was killed by signal {-code} ({name})"
        now = oom_kills()
        if code == -signal.SIGKILL and None not in (now, self._oom) and now > self._oom:
            return "out of memory", f"{reason} as the kernel ran out of memory"
        return "failed", reason


def oom_kills() -> int | None:
    """How many processes the kernel has killed for want of memory: of this cgroup (v2), else of the
    machine; None where neither is told."""
    files = []
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line[3:] for line in groups if line.startswith("0::"))
        files.append(Path("/sys/fs/cgroup") / own.lstrip("/") / "memory.events")
    except (OSError, StopIteration):
        pass
    for file in (*files, Path("/proc/vmstat")):
        try:
            lines = [line.split() for line in file.read_text().splitlines()]
        except OSError:
            continue
        for words in lines:
            if words[0] == "oom_kill":
                return int(words[1])
    return None
