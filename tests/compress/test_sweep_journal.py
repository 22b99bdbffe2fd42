"""The search's journal after a kill: what finished is told, what was in flight fails, torn lines go."""

from __future__ import annotations

import pytest

pytest.importorskip("optuna")

from edgeml.compress.sweep_journal import JOURNAL, SweepJournal, mend
from edgeml.compress.sweep_space import Choice, distributions
from optuna.trial import TrialState

SPACE = distributions(["a", "b"], [1])
CHOICE = Choice(0.8, "block", "a", True, 1, 2)


def journal(folder):
    return SweepJournal(SPACE, ["accuracy", "latency"], folder / JOURNAL)


def test_a_torn_append_is_cut_off_and_a_copy_kept(tmp_path):
    first = journal(tmp_path)
    first.ask(CHOICE).tell((1.0, 2.0))
    file = tmp_path / JOURNAL
    whole = file.read_bytes()
    file.write_bytes(whole + whole.splitlines(keepends=True)[-1][:-9])
    again = journal(tmp_path)
    assert file.read_bytes().startswith(whole)
    assert len((tmp_path / f"{JOURNAL}.torn-0").read_bytes()) > len(whole)
    again.ask(CHOICE).tell((2.0, 1.0))
    states = [t.state for t in journal(tmp_path).study.get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE]
    assert mend(file) is None


def test_trials_of_a_dead_process_are_told_once(tmp_path):
    first = journal(tmp_path)
    for number in (7, 8):
        first.ask(CHOICE).becomes(number)
    first.ask(CHOICE)  # killed before it had a folder
    again = journal(tmp_path)
    again.reconcile(lambda number: (1.0, 2.0) if number == 7 else None)
    states = [t.state for t in again.study.get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL]
    assert again.known_trials() == {7, 8}
    again.reconcile(lambda number: pytest.fail("told already"))


def test_a_damaged_journal_gives_up_what_stands_behind_and_takes_it_back(tmp_path):
    first = journal(tmp_path)
    proposal = first.ask(CHOICE)
    proposal.becomes(3)
    proposal.tell((1.0, 2.0))
    file = tmp_path / JOURNAL
    file.write_bytes(b"\x00" + file.read_bytes())
    again = journal(tmp_path)
    assert again.known_trials() == set()
    again.restore(3, CHOICE, (1.0, 2.0))
    assert again.known_trials() == {3} and again.study.get_trials()[0].values == [1.0, 2.0]


def test_what_is_known_beforehand_is_told_once(tmp_path):
    for _ in range(2):
        journal(tmp_path).known(CHOICE, (0.0, 1.0))
    assert len(journal(tmp_path).study.get_trials()) == 1


def test_what_is_asked_is_what_was_chosen(tmp_path):
    journal(tmp_path).ask(CHOICE)
    (trial,) = journal(tmp_path).study.get_trials()
    told = {"share": 0.8, "kinds": "block", "engine": "a", "distil": True, "threads": 1, "rung": 2}
    assert trial.params == told
