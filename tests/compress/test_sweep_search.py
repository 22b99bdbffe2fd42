"""What a sweep tries next, on a landscape that is known: nothing here measures."""

from __future__ import annotations

from dataclasses import asdict

import pytest

pytest.importorskip("optuna")

from edgeml.artifact.measurement import Measurement
from edgeml.artifact.result_row import EngineRow
from edgeml.compress.sweep_journal import SweepJournal
from edgeml.compress.sweep_search import Search
from edgeml.compress.sweep_space import WHOLE, distributions
from edgeml.compress.sweep_table import REFERENCE, Done, Found

EPOCHS = (0, 1, 10)


def row(name, drop, ratio, **more):
    speed = Measurement(value=1 / ratio, unit="ratio", n=9)
    lost = Measurement(value=drop, unit="points", n=400)
    fields = {"drop_points": lost, "speedup": speed, "size_bytes": 1000}
    made = EngineRow(id=name, runtime="openvino", precision="int8", **fields, **more)
    return made.model_dump(mode="json")


@pytest.fixture
def found():
    rows = [row(REFERENCE, 0, 1.0, status="reference"), row("a", 0.1, 0.5), row("b", 0.0, 0.7)]
    return Found(("accuracy", "latency"), 1, baselines={1: {"rows": rows}})


def chooser(found, file=None, epochs=EPOCHS):
    space = distributions(["a", "b"], ["block"], [1])
    search = Search(
        found, SweepJournal(space, found.objectives, 0, file), lambda rung: epochs[rung]
    )
    search.remember(["a", "b"])
    return search


def run(found, step):
    """What a trial would find: less pruned loses less, training heals."""
    number, choice = len(found.trials), step.choice
    drop = 10 * (1 - choice.share) / (1 + choice.rung)
    request = {"choice": asdict(choice), "promoted_from": step.parent}
    request["proposed"] = step.proposal.params if step.proposal else None
    if step.proposal:
        step.proposal.becomes(number)
        step.proposal.tell([drop, choice.share / 2])
    rows = [row(choice.engine, drop, choice.share / 2)]
    found.trials.append(Done(number, request, {"state": "done", "rows": rows}))


def test_two_results_earn_a_short_training_and_three_of_those_a_long_one(found):
    search, rungs = chooser(found), []
    for _ in range(12):
        step = search.next([])
        rungs.append(step.choice.rung)
        run(found, step)
    assert rungs == [0, 0, 1, 0, 0, 1, 0, 0, 1, 2, 0, 0]
    keys = [trial.choice.key for trial in found.trials]
    assert len(set(keys)) == len(keys)


def test_where_the_short_training_is_the_long_one_it_is_run_once(found):
    search = chooser(found, epochs=(0, 1, 1))
    for _ in range(9):
        run(found, search.next([]))
    assert {trial.choice.rung for trial in found.trials} == {0, 1}


def test_what_runs_is_neither_proposed_nor_promoted_again(found):
    search = chooser(found)
    run(found, search.next([]))
    run(found, search.next([]))
    running = []
    for _ in range(4):
        running.append(search.next(running))
    assert [step.choice.rung for step in running] == [1, 0, 0, 0]  # earned by what has ended
    assert len({step.choice.key for step in running}) == 4


def test_the_originals_engines_are_known_and_never_proposed(found, tmp_path):
    search = chooser(found, tmp_path / "journal")
    for _ in range(20):
        run(found, search.next([]))
    assert all(trial.choice.share < WHOLE for trial in found.trials)
    study = SweepJournal({}, found.objectives, 0, tmp_path / "journal").study
    known = [t for t in study.get_trials() if t.user_attrs.get("work") == "known"]
    assert sorted(t.values for t in known) == [[0.0, 0.7], [0.1, 0.5]]
