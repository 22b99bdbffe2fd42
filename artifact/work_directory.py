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
from .atomic_file import PREFIX, disk_errors, publish_directory, write_json
from .bundle import bundle_around

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
        self.part = self.out.parent / f"{self.out.name}.part"
        self._recipe = recipe_hash
        self._lock: int | None = None
        self.run_id = ""

    def __enter__(self) -> WorkDirectory:
        with disk_errors(self.part):
            self._refuse_out()
            if around := bundle_around(self.out):
                raise InputError(
                    f"{self.out} lies in the bundle {around}, which stays as it is; choose another -o"
                )
            if not self.out.parent.is_dir():
                raise InputError(
                    f"the folder {self.out.parent} does not exist; make it or choose another -o"
                )
            made = self._make_part()
            self._take_lock()
            try:
                self._refuse_out()  # a run that held the lock until now may have made it
                self._open_state()
            except BaseException:
                if made:
                    shutil.rmtree(self.part, ignore_errors=True)
                self._release()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A run that was refused leaves nothing behind: the mended command is another recipe, which
        # would find OUT.part taken. Its finished stages lie in the cache, and where more than our
        # own notes lies here (checkpoints, a bundle half written), all of it stays.
        if kind is not None and self.part.is_dir():
            bare = {p.name for p in self.part.iterdir()} <= {_STATE, _LOCK, JOURNAL}
            if bare and (issubclass(kind, InputError) or not self.events()):
                shutil.rmtree(self.part, ignore_errors=True)
        self._release()

    def _refuse_out(self) -> None:
        if self.out.exists() or self.out.is_symlink():
            raise InputError(f"{self.out} exists; remove it or choose another with -o")

    def _make_part(self) -> bool:
        """Make OUT.part; False when it is there. A folder of something else is left untouched."""
        if not self.part.is_dir():
            self.part.mkdir()
            return True
        known = {_STATE, _LOCK, JOURNAL, _CONTENTS}
        names = sorted(p.name for p in self.part.iterdir())
        foreign = [n for n in names if n not in known and not n.startswith(PREFIX)]
        if foreign and _STATE not in names:
            raise InputError(
                f"{self.part} holds {foreign[0]!r}, which is no run of edgeml; remove it or choose another -o"
            )
        return False

    def _take_lock(self) -> None:
        self._lock = os.open(self.part / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The run that held it may have ended, and its folder with it, between the two calls.
            there = (self.part / _LOCK).stat()
            if not os.path.samestat(os.fstat(self._lock), there):
                raise BlockingIOError
        except OSError as e:
            self._release()
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
        if not isinstance(values, dict) or not {"recipe", "run_id"} <= values.keys():
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
        """Cut off what a kill or a power cut left torn: from the first line that is no event on."""
        journal = self.part / JOURNAL
        if not journal.exists():
            return
        data = journal.read_bytes()
        whole = 0
        for line in data.splitlines(keepends=True):
            try:
                event = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(event, dict):
                break
            whole += len(line)
        if whole != len(data):
            with journal.open("r+b") as file:
                file.truncate(whole)
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
        shutil.rmtree(self.part, ignore_errors=True)
        self._release()
