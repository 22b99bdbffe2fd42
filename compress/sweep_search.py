"""What a sweep tries next: a promotion that the results so far have earned, else a new proposal.

Two results of a rung earn one trial of the short fine-tuning, three of that a long one (asynchronous
successive halving, Li et al. 2020, with the rank of `front.promoted` in place of one objective).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from .sweep_journal import Proposal, SweepJournal
from .sweep_space import WHOLE, Choice, choice_of
from .sweep_table import Done, Found, engine_of

# Results of a rung that earn one trial of the next.
EARNS = (2, 3)
# Proposals in a row that were tried already, after which the space counts as searched.
ENOUGH = 40


@dataclass(frozen=True)
class Next:
    """A trial to begin.

    Attributes:
        parent: the number of the trial that it goes on from; None where it was proposed.
        proposal: to be told what became of it; None of a promotion.
        dominated: why it need not be run at all.
    """

    choice: Choice
    parent: int | None = None
    proposal: Proposal | None = None
    dominated: str | None = None


class Search:
    """Chooses trials; what is known lies in `found` and the journal.

    Args:
        epochs: of fine-tuning, by rung. With few of them the short one is the long one.
    """

    def __init__(self, found: Found, journal: SweepJournal, epochs: Callable[[int], int]) -> None:
        self._found, self._journal, self._epochs = found, journal, epochs

    def remember(self, engines: Collection[str]) -> None:
        """Tell the journal what earlier processes found, and the original's engines as known."""
        found, journal = self._found, self._journal
        done = {trial.number: trial for trial in found.trials}
        journal.reconcile(lambda n: found.values(done[n].row) if n in done else None)
        told = journal.known_trials()
        for trial in found.trials:
            values = found.values(trial.row)
            if trial.choice.rung == 0 and trial.number not in told and values:
                journal.restore(trial.number, trial.request["proposed"], values)
        for row in found.baseline_rows():
            engine, values = engine_of(row), found.values(row)
            if engine in engines and values:
                params = {"share": WHOLE, "engine": engine, "threads": row.params["threads"]}
                journal.known(params, values)

    def next(self, running: Sequence[Next]) -> Next | None:
        """The next trial; None: none before one that runs has ended, or none at all.

        Args:
            running: trials that have not ended yet.
        """
        return self._promotion(running) or self._proposal(running)

    def _promotion(self, running: Sequence[Next]) -> Next | None:
        ended = Counter(trial.choice.rung for trial in self._found.counted())
        spent = ended + Counter(one.choice.rung for one in running)
        begun = {one.parent for one in running}
        for rung in (1, 0):
            if ended[rung] // EARNS[rung] <= spent[rung + 1]:
                continue
            if self._epochs(rung + 1) <= self._epochs(rung):
                continue
            for parent in self._found.promotable(rung):
                choice = replace(parent.choice, rung=rung + 1)
                if parent.number not in begun and self._same(choice) is None:
                    reason = self._found.dominated(parent)
                    return Next(choice, parent.number, dominated=reason)
        return None

    def _proposal(self, running: Sequence[Next]) -> Next | None:
        in_flight = {one.choice.key for one in running}
        for _ in range(ENOUGH):
            proposal = self._journal.ask()
            choice = choice_of(proposal.params)
            same = self._same(choice)
            if choice.share == WHOLE or choice.key in in_flight:
                proposal.tell(None)  # known, or soon to be
            elif same is not None:
                proposal.tell(self._found.values(same.row))
            else:
                return Next(choice, proposal=proposal)
        return None

    def _same(self, choice: Choice) -> Done | None:
        return next((t for t in self._found.ended() if t.choice.key == choice.key), None)
