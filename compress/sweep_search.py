"""What a sweep tries next: of all configurations the one that is expected to add the most to the front.

A configuration's rung is chosen with it. Where trials are counted, the most volume a trial is wanted; where
time is, the most volume a second, which tries networks untrained or shortly trained first and the best of
them long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .sweep_journal import Proposal, SweepJournal
from .sweep_model import draw, gains
from .sweep_space import KINDS, RUNGS, WHOLE, Choice
from .sweep_table import Done, Found, engine_of


@dataclass(frozen=True)
class Next:
    """A trial to begin.

    Attributes:
        parent: the number of the trial of the same configuration with less training; None: none was run.
        proposal: to be told what became of it; None where it is not run.
        dominated: why it need not be run at all.
    """

    choice: Choice
    parent: int | None = None
    proposal: Proposal | None = None
    dominated: str | None = None


class Search:
    """Chooses trials; what is known lies in `found`, and the journal is told.

    Args:
        choices: all that may be tried; `found` knows the original's engines by now.
        epochs: of fine-tuning, by rung.
        timed: time is what the sweep runs out of, not trials.
    """

    def __init__(
        self,
        found: Found,
        journal: SweepJournal,
        choices: Sequence[Choice],
        epochs: Callable[[int], int],
        seed: int = 0,
        timed: bool = False,
    ) -> None:
        self._found, self._journal, self._epochs = found, journal, epochs
        self._seed, self._timed = seed, timed
        rows = [(row, found.values(row)) for row in found.baseline_rows()]
        self._originals = {
            (engine_of(row), int(row.params["threads"])): values for row, values in rows if values
        }
        # Of an engine without all objectives on the original nothing can be expected.
        self._choices = [c for c in choices if (c.engine, c.threads) in self._originals]

    def remember(self) -> None:
        """Tell the journal what earlier processes found, and the original's engines."""
        found, journal = self._found, self._journal
        done = {trial.number: trial for trial in found.trials}
        journal.reconcile(lambda n: found.values(done[n].row) if n in done else None)
        told = journal.known_trials()
        for trial in found.trials:
            values = found.values(trial.row)
            if trial.number not in told and values:
                journal.restore(trial.number, trial.choice, values)
        engines = {choice.engine for choice in self._choices}
        for (engine, threads), values in self._originals.items():
            if engine in engines:
                journal.known(Choice(WHOLE, next(iter(KINDS)), engine, False, threads), values)

    def next(self, running: Sequence[Next], seconds_left: float | None = None) -> Next | None:
        """The next trial; None: every configuration was tried or runs.

        Args:
            running: trials that have not ended yet.
            seconds_left: of a sweep whose time is bounded.
        """
        gone = {t.choice.key for t in self._found.ended()} | {one.choice.key for one in running}
        least, settled = self._found.least(), self._found.settled()
        left = [
            choice
            for choice in self._choices
            if choice.key not in gone
            and choice.share >= least.get((choice.kinds, choice.threads), 0)
            and (choice.share, choice.kinds, choice.threads) not in settled
        ]
        if not left:
            return None
        choice = left[self._best(left, [one.choice for one in running], seconds_left)]
        parent = self._parent(choice)
        reason = self._found.dominated(choice)
        if reason is not None:
            return Next(choice, parent, dominated=reason)
        return Next(choice, parent, self._journal.ask(choice))

    def _best(
        self, left: Sequence[Choice], running: Sequence[Choice], seconds_left: float | None
    ) -> int:
        """Which of `left` adds the most, by one draw of what they may be."""
        found, originals = self._found, self._originals
        tried = [(t.choice, v) for t in found.trials if (v := found.values(t.row))]
        tried = [(choice, v) for choice, v in tried if (choice.engine, choice.threads) in originals]
        rng = np.random.default_rng([self._seed, len(found.trials), len(running)])
        drawn = draw(found.objectives, tried, originals, [*running, *left], rng)
        # What runs is believed to come out as drawn, so that the next trial lies elsewhere.
        there = [*originals.values(), *(v for _, v in tried), *drawn[: len(running)]]
        added = gains(found.scale(), np.array(there), drawn[len(running) :], rng)
        added += (
            rng.random(len(added)) * 1e-9
        )  # where nothing is expected to add anything, any of them
        if self._timed:
            seconds = self._seconds(left)
            added /= seconds
            fits = seconds <= (np.inf if seconds_left is None else seconds_left)
            if fits.any():  # else one may still be in time
                added[~fits] = -1
        return int(np.argmax(added))

    def _seconds(self, left: Sequence[Choice]) -> np.ndarray:
        """What trials of these would take: as those before them did on the median, or by their epochs.

        A network that was trained already is not trained again.
        """
        trained: set[tuple[Any, ...]] = set()
        spent: dict[int, list[float]] = {}
        for trial in (t for t in self._found.counted() if t.state == "done"):
            network = trial.choice.network
            rung = 0 if network in trained else trial.choice.rung
            spent.setdefault(rung, []).append(float(trial.result.get("seconds") or 0.0))
            trained.add(network)
        told = {rung: float(np.median(values)) for rung, values in spent.items()}
        # Of a rung that was never run: that an epoch takes as long as all that is not training.
        epoch = float(np.median([told[r] / (1 + self._epochs(r)) for r in told] or [1.0]))
        by_rung = [told.get(r) or (1 + self._epochs(r)) * (epoch or 1.0) for r in range(len(RUNGS))]
        return np.array([by_rung[0 if c.network in trained else c.rung] for c in left])

    def _parent(self, choice: Choice) -> int | None:
        """The trial of the same configuration that was trained the most."""

        def same(trial: Done) -> bool:
            one = trial.choice
            alike = (one.share, one.kinds, one.engine, one.threads) == (
                choice.share,
                choice.kinds,
                choice.engine,
                choice.threads,
            )
            taught = one.distil == choice.distil or one.rung == 0
            return alike and taught and one.rung < choice.rung

        less = [t for t in self._found.counted() if t.state == "done" and same(t)]
        return max(less, key=lambda t: t.choice.rung).number if less else None
