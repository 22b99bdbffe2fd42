"""The directory of a sweep: what was asked, a folder a trial, what was found; one driver at a time.

::

    DIR/sweep.json          what was asked, and the id that its trials share
    DIR/journal.log         the search's own journal (`compress.sweep_journal`)
    DIR/trials/0007/        request.json, result.json, log.txt, bundles/
    DIR/tested.json         readings of the test split, and what it said of each engine
    DIR/trials.jsonl, results.json, recipes/, points/, measurements/
                            what users read; written anew from the folders of the trials

Every file is whole or absent: a kill at any moment loses at most the trials in flight.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import InputError
from .atomic_file import disk_errors, read_json, write_json, write_text
from .bundle import refuse_place
from .folder_lock import FolderLock
from .recipe import Recipe
from .result_row import ResultTable

STATE, RESULTS, TRIALS = "sweep.json", "results.json", "trials.jsonl"
REQUEST, RESULT, LOG = "request.json", "result.json", "log.txt"
BUNDLES = "bundles"
# What the test split said, written as it is read: how often, and of each engine the first time.
TESTED = "tested.json"


class SweepDirectory:
    """Use as ``with SweepDirectory(path, asked) as sweep``.

    Args:
        root: made when it is not there.
        recipe: what all trials are made from.
        asked: what else identifies the sweep: objectives, where it measures.

    Attributes:
        id: shared by the stages of all trials, so that they find each other's in the cache.

    Raises:
        InputError: `root` is no sweep, one of another model or recipe, or another process works on it.
    """

    def __init__(self, root: Path, recipe: Recipe, asked: dict[str, Any]) -> None:
        self.root = Path(root)
        self._recipe, self._asked = recipe.model_dump(mode="json"), asked
        self._lock = FolderLock(
            self.root / "sweep.lock",
            f"another sweep works in {self.root}; wait for it or choose another -o",
        )
        self.id = ""
        self.facts: dict[str, Any] = {}
        self._made_parent = False

    def __enter__(self) -> SweepDirectory:
        with disk_errors(self.root):
            refuse_place(self.root)
            state = read_state(self.root) if self.root.exists() else None
            self._made_parent = not self.root.parent.exists()
            self.root.parent.mkdir(exist_ok=True)
            self.root.mkdir(exist_ok=True)
            self._lock.take()
            try:
                if state is None:
                    state = {"id": secrets.token_hex(8), "recipe": self._recipe, **self._asked}
                    state["facts"] = {}
                    write_json(self.root / STATE, state)
                self._refuse_other(state)
            except BaseException:
                self._lock.release()
                raise
        self.id, self.facts = state["id"], dict(state.get("facts") or {})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A sweep that was refused before its first trial leaves nothing behind.
        begun = (self.root / "trials").is_dir()
        if kind is not None and issubclass(kind, InputError) and not begun:
            shutil.rmtree(self.root, ignore_errors=True)
            if self._made_parent:
                with contextlib.suppress(OSError):  # another command has put something there
                    self.root.parent.rmdir()
        self._lock.release()

    def _refuse_other(self, state: dict[str, Any]) -> None:
        stored = state["recipe"]
        wanted = {**self._recipe, **self._asked}
        there = {**stored, **{name: state.get(name) for name in self._asked}}
        for name, value in wanted.items():
            if there.get(name) != value:
                raise InputError(
                    f"{self.root} is another sweep: its {name} is {there.get(name)!r}, not {value!r}; "
                    f"go on with it by `edgeml sweep --resume {self.root}`, or choose another -o"
                )

    def remember(self, **facts: Any) -> None:
        """Keep plain facts beside what was asked: seconds spent, hashes of model and data."""
        self.facts |= facts
        state = read_state(self.root)
        write_json(self.root / STATE, {**(state or {}), "facts": self.facts})

    def trial(self, name: str) -> Path:
        """The folder of a trial, made."""
        folder = self.root / "trials" / name
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def result(self, name: str) -> dict[str, Any] | None:
        """What a trial found; None while it has not finished."""
        return read_json(self.root / "trials" / name / RESULT)

    def keep_recipe(self, recipe: Recipe) -> str:
        """Write a trial's recipe once, under its hash."""
        folder = self.root / "recipes"
        folder.mkdir(exist_ok=True)
        file = folder / f"{recipe.hash}.yaml"
        if not file.is_file():
            write_text(file, recipe.to_yaml())
        return recipe.hash

    def publish(self, table: ResultTable, trials: list[dict[str, Any]]) -> None:
        """Write what users read."""
        write_text(self.root / TRIALS, "".join(json.dumps(entry) + "\n" for entry in trials))
        write_json(self.root / RESULTS, table.model_dump(mode="json"))


def read_state(root: Path) -> dict[str, Any] | None:
    """What a sweep's directory was asked; None for a folder that is empty.

    Raises:
        InputError: something else lies there.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no directory; give a sweep's, or choose another -o")
    state = read_json(root / STATE)
    if state is not None and {"id", "recipe"} <= state.keys():
        return state
    others = sorted(p.name for p in root.iterdir() if p.name not in ("sweep.lock", STATE))
    if others:
        raise InputError(
            f"{root} holds {others[0]!r} and no whole {STATE}: it is no sweep; choose another -o"
        )
    return None
