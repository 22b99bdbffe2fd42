"""What the process under sudo does: keep the former power mode and clocks, set, hold, and put back.

It is started once. It writes the former state to disk, sets what was asked, says so, and holds until its pipe
closes, no beat comes for a while, or its deadline passes; then it restores. It never calls sudo again. nvpmodel
runs with its stdin closed: a mode that needs a reboot asks there, and is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import subprocess
import sys
import time
from typing import Any

from ...errors import EdgemlError
from . import board_state
from .board_state import under

NVPMODEL, JETSON_CLOCKS = "/usr/sbin/nvpmodel", "/usr/bin/jetson_clocks"
LAPSE_S = 25.0
DEADLINE_S = 4 * 3600.0
# nvpmodel takes seconds where it switches cores on or off.
TIMEOUT_S = 60.0


class PowerError(EdgemlError):
    """A mode or clocks that cannot be set; `code` is the protocol's, `extra` its further fields."""

    def __init__(self, code: str, message: str, **extra: Any) -> None:
        super().__init__(message)
        self.code, self.extra = code, extra


def read_state(root: str = "/") -> dict[str, Any]:
    """The active mode and whether clocks are pinned."""
    return {
        "mode": board_state.active_mode(root),
        "locked": board_state.clocks(root)["locked"],
    }


def hold(
    state_path: str, mode: int | None, lock_clocks: bool, restore_only: bool, root: str = "/"
) -> int:
    """What the process under sudo does; its exit status.

    Everything is read and written by this one process, so that nothing has to be root twice.
    """
    # Of an agent that was killed the holder may still be restoring: one after the other.
    lock = os.open(state_path + ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        # What is left of another holder comes first: it knows the state before it.
        left = _restore(state_path, root)
    except PowerError as e:
        if restore_only:
            sys.stdout.write(f"{e}\n")
        else:
            _say({"error": e.code, "message": str(e)})
        return 1
    if restore_only:
        sys.stdout.write(left + "\n")
        return 0
    former = {**read_state(root), "number": _active_number(root), "clocks": state_path + ".clocks"}
    if lock_clocks:
        # It asks before it overwrites one that a killed holder left, and stores nothing.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(former["clocks"])
        text = _run([under(root, JETSON_CLOCKS), "--store", former["clocks"]])
        if not os.path.exists(former["clocks"]):
            last = text.strip().splitlines()[-1:] or ["no output"]
            _say(
                {
                    "error": "unsupported",
                    "message": "jetson_clocks --store kept nothing that could be put back, so clocks stay "
                    f"as they are: {last[0]}",
                }
            )
            return 1
    else:
        former["clocks"] = None
    if mode is None:
        former["number"] = None
    _write(state_path, former)
    error = None
    if mode is not None and mode != former["number"]:
        error = set_mode(mode, root)
    if error is None and lock_clocks:
        _run([under(root, JETSON_CLOCKS)])
    _say({"note": None} if error is None else error)
    if error is None:
        _wait_for_end()
    with contextlib.suppress(PowerError):  # the file stays, for the next contact
        _restore(state_path, root)
    return 0 if error is None else 1


def set_mode(mode: int, root: str = "/") -> dict[str, Any] | None:
    """Run ``nvpmodel -m`` with its stdin closed; None when the mode is active now, else the error."""
    text = _run([under(root, NVPMODEL), "-m", str(mode)])
    if re.search(r"reboot", text, re.I):
        return {
            "error": "needs-reboot",
            "message": f"power mode {mode} needs a reboot, which edgeml never does: set it by hand "
            f"(sudo nvpmodel -m {mode}), reboot, and deploy again",
        }
    active = _active_number(root)
    if active is not None and active != mode:
        last = text.strip().splitlines()[-1:] or ["no output"]
        return {"error": "unsupported", "message": f"nvpmodel -m {mode}: {last[0]}"}
    return None


def _restore(state_path: str, root: str) -> str:
    """Put back what the file tells, and remove it.

    Raises:
        PowerError: the mode is not the former one afterwards; the file stays.
    """
    try:
        with open(state_path, encoding="utf-8") as file:
            former = json.load(file)
    except (OSError, ValueError):
        return "nothing to restore"
    done = []
    # The mode first: it sets clocks and cores of its own, and those stored are of this mode.
    number = former.get("number")
    if number is not None and number != _active_number(root):
        text = _run([under(root, NVPMODEL), "-m", str(number)])
        if _active_number(root) not in (None, number):
            last = text.strip().splitlines()[-1:] or ["no output"]
            raise PowerError(
                "unsupported", f"the former power mode {number} is not back: {last[0]}"
            )
        done.append("mode {}".format(former.get("mode") or number))
    clocks = former.get("clocks")
    if clocks and os.path.exists(clocks):
        _run([under(root, JETSON_CLOCKS), "--restore", clocks])
        os.unlink(clocks)
        done.append("clocks")
    os.unlink(state_path)
    return ", ".join(done) or "as it was"


def _wait_for_end() -> None:
    """Until stdin ends, no beat comes for `LAPSE_S`, or `DEADLINE_S` have passed."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        ready, _, _ = select.select([sys.stdin.buffer], [], [], LAPSE_S)
        if not ready or not os.read(0, 4096):
            return


def _active_number(root: str) -> int | None:
    match = re.search(
        r"pmode:(\d+)", board_state.read_text(under(root, "/var/lib/nvpmodel/status")) or ""
    )
    if match:
        return int(match.group(1))
    # `nvpmodel -q` prints the mode's name, then its number on a line of its own.
    numbers = re.findall(r"^(\d+)\s*$", _run([under(root, NVPMODEL), "-q"]), re.M)
    return int(numbers[-1]) if numbers else None


def _run(words: list[str]) -> str:
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return str(e)
    return done.stdout.decode("utf-8", "replace")


def _write(path: str, value: dict[str, Any]) -> None:
    part = path + ".part"
    with open(part, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
