"""The unfinished bundle ``OUT.part``: one run at a time, resumable, renamed to OUT at the end."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import InputError
from .atomic_file import (
    PREFIX,
    cut,
    disk_errors,
    publish_directory,
    read_json,
    whole_lines,
    write_json,
)
from .bundle import refuse_place
from .folder_lock import FolderLock

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
        self._lock = FolderLock(
            self.part / _LOCK,
            f"another run works on {self.part}; wait for it or choose another -o",
        )
        self.run_id = ""
        self._made_folder = False

    def __enter__(self) -> WorkDirectory:
        with disk_errors(self.part):
            self._refuse_out()
            refuse_place(self.out)
            made = self._make_part()
            self._lock.take()
            try:
                self._refuse_out()  # a run that held the lock until now may have made it
                self._open_state()
            except BaseException:
                if made:
                    self._unmake()
                self._lock.release()
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
                self._unmake()
        self._lock.release()

    def _unmake(self) -> None:
        shutil.rmtree(self.part, ignore_errors=True)
        if self._made_folder:
            with contextlib.suppress(OSError):  # others' runs lie in it
                self.part.parent.rmdir()

    def _refuse_out(self) -> None:
        if self.out.exists() or self.out.is_symlink():
            raise InputError(f"{self.out} exists; remove it or choose another with -o")

    def _make_part(self) -> bool:
        """Make OUT.part; False when it is there. A folder of something else is left untouched."""
        if not self.part.is_dir():
            if not self.part.parent.is_dir():
                self.part.parent.mkdir()
                self._made_folder = True
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

    def _open_state(self) -> None:
        state = self.part / _STATE
        values = read_json(state)
        if values is None or not {"recipe", "run_id"} <= values.keys():
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
        """Cut off what a kill or a power cut left torn."""
        journal = self.part / JOURNAL
        if not journal.exists():
            return
        data = journal.read_bytes()
        whole = whole_lines(data)
        if whole != len(data):
            cut(journal, whole)

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
        self._lock.release()
