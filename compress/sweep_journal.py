"""The search's memory: what was proposed and what became of it, an Optuna study that survives a kill.

Optuna 5.0's journal has three gaps (tried, see docs/sweep.md): a SIGKILL inside an append leaves a torn
last line, which the next process appends to and can then not read; a killed process's trials stay
RUNNING for ever; and two writers' appends mix. Here the torn end is cut off (a copy is kept), trials
without a process are told FAIL, and the sweep's own lock admits one writer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from ..artifact.atomic_file import cut, whole_lines
from .sweep_space import Choice

JOURNAL = "journal.log"
TRIAL, WORK = "trial", "work"


class _OneWriter:
    """The sweep's directory is locked already; a stale lock of a killed process would cost 30 s."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return


class _Chosen(optuna.samplers.BaseSampler):
    """Proposes what the search chose (`sweep_search`)."""

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        return self.params[name]


class SweepJournal:
    """What was proposed and found, all objectives minimised, as a study that Optuna's tools read.

    Args:
        space: distributions by parameter.
        objectives: their names, in the order of the values.
        file: None keeps the journal in memory, as replays do.
    """

    def __init__(
        self,
        space: Mapping[str, Any],
        objectives: Sequence[str],
        file: Path | None = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = dict(space)
        storage = None
        if file is not None:
            mend(file)
            storage = JournalStorage(JournalFileBackend(str(file), lock_obj=_OneWriter()))
        self.study = optuna.create_study(
            storage=storage,
            study_name="sweep",
            directions=["minimize"] * len(objectives),
            load_if_exists=True,
        )
        self._sampler = self.study.sampler = _Chosen()

    def known(self, choice: Choice, values: Sequence[float]) -> None:
        """Something measured outside the search; once."""
        params = self._params(choice)
        if not any(
            t.params == params and WORK in t.user_attrs for t in self.study.get_trials(False)
        ):
            self._add(params, values, {WORK: "known"})

    def ask(self, choice: Choice) -> Proposal:
        """A choice as a proposal, to be told what became of it."""
        self._sampler.params = self._params(choice)
        return Proposal(self, self.study.ask(fixed_distributions=self._space))

    def _params(self, choice: Choice) -> dict[str, Any]:
        return {name: getattr(choice, name) for name in self._space}

    def _add(
        self, params: Mapping[str, Any], values: Sequence[float], told: Mapping[str, Any]
    ) -> None:
        self.study.add_trial(
            create_trial(
                params=dict(params),
                distributions=self._space,
                values=list(values),
                user_attrs=dict(told),
            )
        )

    def tell(self, number: int, values: Sequence[float] | None) -> None:
        """What became of a proposal of this or an earlier process.

        Args:
            number: Optuna's.
            values: None: it gave none, and does not count.
        """
        if values is not None:
            self.study.tell(number, list(values))
        else:
            self.study.tell(number, state=TrialState.FAIL)

    def reconcile(self, values_of: Callable[[int], Sequence[float] | None]) -> None:
        """Tell what a killed process could not: of its trials those that finished, the rest FAIL.

        Args:
            values_of: the values of a trial by the sweep's number; None where it has none.
        """
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state in (TrialState.RUNNING, TrialState.WAITING):
                number = trial.user_attrs.get(TRIAL)
                values = None if number is None else values_of(int(number))
                if trial.state == TrialState.RUNNING:
                    self.tell(trial.number, values)

    def known_trials(self) -> set[int]:
        """The sweep's numbers of all trials in the journal."""
        trials = self.study.get_trials(deepcopy=False)
        return {int(t.user_attrs[TRIAL]) for t in trials if TRIAL in t.user_attrs}

    def restore(self, number: int, choice: Choice, values: Sequence[float]) -> None:
        """A finished trial that a damaged journal has lost."""
        self._add(self._params(choice), values, {TRIAL: number})


class Proposal:
    """What the search proposes; told by its number."""

    def __init__(self, journal: SweepJournal, trial: optuna.Trial) -> None:
        self._journal, self._trial = journal, trial
        self.number: int = trial.number

    def becomes(self, trial: int) -> None:
        """Note the sweep's number of the trial that will run it."""
        self._trial.set_user_attr(TRIAL, trial)

    def tell(self, values: Sequence[float] | None) -> None:
        self._journal.tell(self.number, values)


def mend(file: Path) -> Path | None:
    """Cut a journal off before its first line that is no whole entry.

    Returns:
        Where a copy of what was there lies; None: it was whole.
    """
    if not file.is_file():
        return None
    data = file.read_bytes()
    whole = whole_lines(data, lambda entry: "op_code" in entry)
    if whole == len(data):
        return None
    copies = (file.with_name(f"{file.name}.torn-{k}") for k in range(10_000))
    copy = next(path for path in copies if not path.exists())
    copy.write_bytes(data)
    cut(file, whole)
    return copy
