"""Stages of a run: each taken from the cache when its inputs did not change, each logged once."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..artifact.atomic_file import write_json
from ..artifact.interrupt import raise_if_interrupted
from ..artifact.stage_cache import StageCache
from ..artifact.work_directory import WorkDirectory

Log = Callable[[str], None]


class Stages:
    """Runs stages by content hash and keeps the run's journal (``stages.jsonl``).

    Args:
        cache: where finished stages lie.
        work: the unfinished bundle.
        log: called with a line when a stage begins.
        time_s: bound of the search, None for none.
    """

    def __init__(
        self, cache: StageCache, work: WorkDirectory, log: Log, time_s: float | None
    ) -> None:
        self._cache = cache
        self._work = work
        self._start = time.monotonic()
        self._time_s = time_s
        self.log = log
        self._told: set[Path] = set()

    @property
    def run_id(self) -> str:
        """The same for a run and its resumptions, another for every other run."""
        return self._work.run_id

    @property
    def part(self) -> Path:
        """The unfinished run's folder: where a training keeps its checkpoint."""
        return self._work.part

    def seconds_left(self) -> float | None:
        """Of ``--time``, 0 when it is used up; None where there is no bound."""
        if self._time_s is None:
            return None
        return max(0.0, self._time_s - (time.monotonic() - self._start))

    def quiet(self) -> Stages:
        """The same run, cache and journal without lines: a search makes dozens of small stages."""
        silent = copy.copy(self)
        silent.log = lambda line: None
        return silent

    def unbounded(self) -> Stages:
        """The same run without ``--time``: for what a finished search cannot be told without."""
        free = copy.copy(self)
        free._time_s = None
        return free

    def out_of_time(self) -> bool:
        """Whether the search has used up its ``--time``."""
        return self._time_s is not None and time.monotonic() - self._start > self._time_s

    def seconds_each(self, wanted: float, count: int) -> float:
        """How long each of `count` engines may be timed: as `wanted`, less when ``--time`` is short.

        A tenth of a second is left to each in any case: the choice needs it.
        """
        if self._time_s is None:
            return wanted
        left = self._time_s - (time.monotonic() - self._start)
        return min(wanted, max(0.1, left / (2 * max(1, count))))

    def run(self, name: str, key: dict[str, Any], line: str, make: Callable[[Path], None]) -> Path:
        """The directory of a finished stage; `make` fills it when it is not in the cache.

        The journal gets ``done`` only after the stage's rename, so a stage that was killed is never
        logged as done, and one that is done is never made again.
        """
        raise_if_interrupted()
        began = time.monotonic()

        def made(directory: Path) -> None:
            self.log(line)
            make(directory)

        path, cached = self._cache.run(name, key, made)
        if cached and path not in self._told:
            self.log(f"{line}: from the cache")
        self._told.add(path)
        self._work.log(
            "cached" if cached else "done",
            f"{name}:{path.name}",
            seconds=round(time.monotonic() - began, 3),
        )
        return path

    def find(self, name: str, key: dict[str, Any]) -> Path | None:
        """The directory of a stage that is in the cache; None where it is not."""
        return self._cache.find(name, key)

    def went_on_after(self, name: str, key: dict[str, Any]) -> bool:
        """Whether this run, before it was stopped, finished a stage after this one that it had not before."""
        found = self.find(name, key)
        told = [entry["stage"] for entry in self._work.events()]
        own = f"{name}:{found.name}" if found else ""
        if own not in told:
            return False
        then = told.index(own) + 1
        return not set(told[then:]) <= set(told[:then])

    def values(self, name: str, key: dict[str, Any], line: str, make: Callable[[], Any]) -> Any:
        """Like `run` for a stage whose result is plain JSON."""
        path = self.run(
            name, key, line, lambda directory: write_json(directory / "values.json", make())
        )
        return json.loads((path / "values.json").read_text(encoding="utf-8"))

    def count(self, event: str) -> int:
        """Log an event and say how often it has been logged in this run, resumptions included."""
        self._work.log(event, event)
        return sum(entry["event"] == event for entry in self._work.events())
