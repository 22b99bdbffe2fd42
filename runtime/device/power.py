"""Power mode and clocks: read always, set only when asked, and put back whatever happens.

One process (`power_hold`) is started once under ``sudo -n``, which writes the former state to disk, sets, holds and
restores. After a power cut the file is still there, and the next contact restores what it tells.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from typing import Any

from . import board_state
from .board_state import under
from .power_hold import JETSON_CLOCKS, NVPMODEL, TIMEOUT_S, PowerError, read_state
from .process import die_with_parent


class PowerHolder:
    """Holds a power mode or pinned clocks for this deploy.

    Args:
        state_path: where the former state is kept until it is restored.
        program: the words that start this program, for the process under sudo.
        root: where ``etc``, ``usr``, ``var`` and ``sys`` lie, for made trees.
    """

    def __init__(self, state_path: str, program: list[str], root: str = "/") -> None:
        self._state_path, self._program, self._root = state_path, program, root
        self._process: subprocess.Popen | None = None

    @property
    def holding(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def set(self, mode: str | None, lock_clocks: bool) -> dict[str, Any]:
        """Set what is asked; the protocol's answer to ``power``.

        Raises:
            PowerError: the board has no such mode, it needs a reboot, sudo wants a password, or there is
                nothing to set it with.
        """
        before = read_state(self._root)
        if not mode and not lock_clocks:
            return {"before": before, "after": before, "note": None}
        number = mode_number(mode, self._root) if mode else None
        for tool, wanted in ((NVPMODEL, mode), (JETSON_CLOCKS, lock_clocks)):
            if wanted and shutil.which(under(self._root, tool)) is None:
                raise PowerError("unsupported", f"this device has no {tool}")
        if self.holding:
            self.release()
        words = self._words()
        words += [] if number is None else ["--mode", str(number)]
        words += ["--lock-clocks"] if lock_clocks else []
        self._process = subprocess.Popen(
            as_root(words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # it must outlive the group's end by the moment that restoring takes
        )
        line = self._process.stdout.readline().decode("utf-8", "replace").strip()
        try:
            answer = json.loads(line)
        except ValueError:
            told = self._process.stderr.read().decode("utf-8", "replace").strip()
            self._forget()
            raise PowerError(
                "no-sudo",
                "setting power modes or clocks needs sudo without a password here: {}".format(
                    told.splitlines()[-1] if told else "no answer"
                ),
            ) from None
        if "error" in answer:
            self.release()
            raise PowerError(answer["error"], answer["message"])
        return {"before": before, "after": read_state(self._root), "note": answer.get("note")}

    def _words(self) -> list[str]:
        return [*self._program, "power", "--state", self._state_path, "--root", self._root]

    def beat(self) -> None:
        """Tell the holder that the host still lives; from another thread, which may find it released."""
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                process.stdin.write(b".")
                process.stdin.flush()

    def release(self) -> None:
        """Close the pipe: it restores; waited for."""
        if self._process is None:
            return
        self._forget()

    def _forget(self) -> None:
        """Close its pipes and wait for it."""
        process, self._process = self._process, None
        with contextlib.suppress(OSError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2 * TIMEOUT_S)
        process.stdout.close()
        process.stderr.close()

    def restore_left(self) -> str | None:
        """Put back what an earlier deploy could not, after a reboot or a power cut; the line that tells it."""
        if self.holding or not os.path.exists(self._state_path):
            return None
        try:
            done = subprocess.run(
                as_root([*self._words(), "--restore"]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=2 * TIMEOUT_S,
                preexec_fn=die_with_parent,
            )
        except (OSError, subprocess.TimeoutExpired) as e:
            return f"the former power state could not be restored: {e}"
        text = done.stdout.decode("utf-8", "replace").strip()
        if done.returncode:
            return "the former power state could not be restored: {}".format(
                text.splitlines()[-1] if text else "no answer"
            )
        return f"an earlier deploy's power state was restored: {text}"


def mode_number(name: str, root: str = "/") -> int:
    """nvpmodel's number of a mode by its name (any case, as nvpmodel -p prints it), or by the number.

    Raises:
        PowerError: the board has none of that name; it names those that it has.
    """
    modes = board_state.power_modes(root)
    for mode in modes:
        if name.lower() in (mode["name"].lower(), str(mode["id"])):
            return mode["id"]
    names = [mode["name"] for mode in modes]
    if not names:
        raise PowerError("unsupported", "this device has no power modes (no /etc/nvpmodel.conf)")
    raise PowerError(
        "no-mode",
        "this board has no power mode {!r}; it has {}".format(name, ", ".join(names)),
        modes=names,
    )


def as_root(words: list[str]) -> list[str]:
    """The words under ``sudo -n``, which fails at once where a password is wanted; root needs none."""
    return words if os.geteuid() == 0 else ["sudo", "-n", *words]
