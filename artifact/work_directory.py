"""The unfinished bundle ``OUT.part``: one run at a time, resumable, renamed to OUT at the end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import InputError
from .atomic_file import disk_errors, publish_directory, write_json

_STATE, _LOCK, JOURNAL = "run.json", "run.lock", "stages.jsonl"
_CONTENTS = "contents"


class WorkDirectory:
    """Use as ``with WorkDirectory(out, recipe_hash) as work``; `publish` is the last act.

    Whatever happens before it, OUT does not exist, and the same recipe goes on where it stopped.

    Attributes:
        run_id: drawn once for each OUT.part; the same after a kill and a restart.

    Raises:
        InputError: OUT exists, its folder does not or is not writable, OUT.part belongs to another
            recipe, or another process works on it.
    """

    def __init__(self, out: Path, recipe_hash: str) -> None:
        self.out = Path(out)
        self.part = self.out.with_name(self.out.name + ".part")
        self._recipe = recipe_hash
        self._lock: int | None = None
        self.run_id = ""

    def __enter__(self) -> WorkDirectory:
        if self.out.exists() or self.out.is_symlink():
            raise InputError(f"{self.out} exists; remove it or choose another with -o")
        if not self.out.parent.is_dir():
            raise InputError(
                f"the folder {self.out.parent} does not exist; make it or choose another -o"
            )
        with disk_errors(self.part):
            self.part.mkdir(exist_ok=True)
            self._take_lock()
            try:
                self._open_state()
            except BaseException:
                self._release()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A run that was refused before its first stage leaves nothing behind.
        if kind is not None and self.part.is_dir() and not self.events():
            shutil.rmtree(self.part, ignore_errors=True)
        self._release()

    def _take_lock(self) -> None:
        self._lock = os.open(self.part / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(self._lock)
            self._lock = None
            raise InputError(
                f"another run works on {self.part}; wait for it or choose another -o"
            ) from e

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open_state(self) -> None:
        state = self.part / _STATE
        values: dict[str, Any] | None = None
        with contextlib.suppress(OSError, ValueError):
            values = json.loads(state.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or "recipe" not in values:
            known = {_STATE, _LOCK, JOURNAL, _CONTENTS}
            foreign = [
                p.name
                for p in self.part.iterdir()
                if p.name not in known and not p.name.startswith(".edgeml-tmp-")
            ]
            if foreign:
                raise InputError(
                    f"{self.part} holds {foreign[0]!r}, which is no run of edgeml; remove it or choose another -o"
                )
            values = {"recipe": self._recipe, "run_id": secrets.token_hex(8)}
            (self.part / JOURNAL).unlink(missing_ok=True)
            write_json(state, values)
        if values["recipe"] != self._recipe:
            raise InputError(
                f"{self.part} belongs to another recipe; finish that one, remove the folder, or choose another -o"
            )
        self.run_id = values["run_id"]
        self._mend_journal()

    def _mend_journal(self) -> None:
        """Cut a last line that a kill left torn."""
        journal = self.part / JOURNAL
        if not journal.exists():
            return
        data = journal.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            with journal.open("r+b") as file:
                file.truncate(len(whole))
                os.fsync(file.fileno())

    def log(self, event: str, stage: str, **extra: Any) -> None:
        """Append a line to the journal, on disk when this returns."""
        line = json.dumps({"event": event, "stage": stage, **extra}, sort_keys=True) + "\n"
        with disk_errors(self.part / JOURNAL), (self.part / JOURNAL).open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> list[dict[str, Any]]:
        """The journal so far, this run's earlier attempts included."""
        journal = self.part / JOURNAL
        if not journal.exists():
            return []
        return [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]

    def fresh_contents(self) -> Path:
        """An empty directory for the bundle's files; what a killed run left there is removed."""
        contents = self.part / _CONTENTS
        with disk_errors(contents):
            shutil.rmtree(contents, ignore_errors=True)
            contents.mkdir()
        return contents

    def publish(self) -> None:
        """Rename the contents to OUT; the rest of OUT.part goes away."""
        contents = self.part / _CONTENTS
        publish_directory(contents, self.out)
        self._release()
        shutil.rmtree(self.part, ignore_errors=True)
