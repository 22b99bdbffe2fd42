"""What a sweep tries next, on a landscape that is known: nothing here measures."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

pytest.importorskip("optuna")

from edgeml.artifact.measurement import Measurement
from edgeml.artifact.result_row import EngineRow
from edgeml.compress.sweep_journal import SweepJournal
from edgeml.compress.sweep_search import Search
from edgeml.compress.sweep_space import WHOLE, distributions, every_choice
from edgeml.compress.sweep_table import OUT_OF_REACH, REFERENCE, Done, Found

EPOCHS = (0, 1, 10)


def row(name, drop, ratio, **more):
    speed = Measurement(value=1 / ratio, unit="ratio", n=9)
    lost = Measurement(value=drop, unit="points", n=400)
    fields = {"drop_points": lost, "speedup": speed, "size_bytes": 1000}
    made = EngineRow(id=name, runtime="openvino", precision="int8", **fields, **more)
    values = made.model_dump(mode="json")
    return {**values, "params": {"threads": 1}}


@pytest.fixture
def found():
    rows = [row(REFERENCE, 0, 1.0, status="reference"), row("a", 0.1, 0.5), row("b", 0.0, 0.7)]
    return Found(("accuracy", "latency"), 1, baselines={1: {"rows": rows}})


def chooser(found, file=None, rungs=(0, 1, 2), timed=False):
    space = distributions(["a", "b"], [1])
    search = Search(
        found,
        SweepJournal(space, found.objectives, file),
        every_choice(["a", "b"], [1], rungs),
        lambda rung: EPOCHS[rung],
        timed=timed,
    )
    search.remember()
    return search


def run(found, step, seconds=1.0):
    """What a trial would find: less pruned loses less, training heals, by blocks it hurts more."""
    number, choice = len(found.trials), step.choice
    hurts = 2 if choice.kinds == "block" else 1
    drop = hurts * 40 * (1 - choice.share) ** 2 / (1, 4, 8)[choice.rung]
    request = {"choice": asdict(choice), "promoted_from": step.parent}
    ratio = choice.share * (0.5 if choice.engine == "a" else 0.7)
    result = {"state": "done", "rows": [row(choice.engine, drop, ratio)], "seconds": seconds}
    if choice.share < 0.6:
        result = {"state": OUT_OF_REACH, "reason": "cannot be met", "least": 0.6}
    done = Done(number, request, result)
    step.proposal.becomes(number)
    step.proposal.tell(found.values(done.row))
    found.trials.append(done)


def test_no_configuration_is_tried_twice_and_the_original_never(found):
    search = chooser(found)
    for _ in range(20):
        run(found, search.next([]))
    keys = [trial.choice.key for trial in found.trials]
    assert len(set(keys)) == len(keys)
    assert all(trial.choice.share < WHOLE for trial in found.trials)


def test_where_trials_are_counted_long_training_is_soon_preferred(found):
    search = chooser(found)
    for _ in range(24):
        run(found, search.next([]))
    rungs = [trial.choice.rung for trial in found.trials if trial.state == "done"]
    assert np.mean(rungs[12:]) > 1.2
    engines = [trial.choice.engine for trial in found.trials]
    assert engines.count("a") > engines.count("b")  # which is slower by a third and hardly better


def test_where_time_is_bounded_cheap_trials_come_first(found):
    search = chooser(found, timed=True)
    for _ in range(12):
        step = search.next([])
        run(found, step, seconds=(10, 20, 110)[step.choice.rung])
    rungs = [trial.choice.rung for trial in found.trials]
    assert max(rungs[:4]) < 2 and max(rungs) > 0


def test_what_would_not_end_in_time_is_not_begun(found):
    search = chooser(found, timed=True)
    for choice in every_choice(["a"], [1], (0, 1, 2))[:5]:
        result = {"state": "done", "rows": [row("a", 1.0, 0.4)]}
        result["seconds"] = (10, 20, 110)[choice.rung]
        found.trials.append(Done(len(found.trials), {"choice": asdict(choice)}, result))
    steps = [search.next([], seconds_left=seconds) for seconds in (60, 15, 1000)]
    assert steps[0].choice.rung < 2 and steps[1].choice.rung == 0 and steps[2] is not None


def test_a_configuration_that_is_trained_longer_names_the_trial_it_goes_on_from(found):
    search, steps = chooser(found, timed=True), []
    for _ in range(40):
        steps.append(search.next([]))
        run(found, steps[-1], seconds=1 + EPOCHS[steps[-1].choice.rung] / 20)
    promoted = [step for step in steps if step.parent is not None]
    assert promoted
    for step in promoted:
        parent = found.trials[step.parent].choice
        same = (parent.share, parent.kinds, parent.engine)
        assert same == (step.choice.share, step.choice.kinds, step.choice.engine)
        assert parent.rung < step.choice.rung


def test_a_share_out_of_reach_is_asked_once_for_each_kind_of_pruning(found):
    search = chooser(found, rungs=(0,))
    while (step := search.next([])) is not None:
        run(found, step)
    beyond = [trial.choice.kinds for trial in found.trials if trial.state == OUT_OF_REACH]
    assert len(beyond) == len(set(beyond))
    assert len(found.counted()) == len(found.trials) - len(beyond)
    shares = {trial.choice.share for trial in found.counted()}
    assert shares == {0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6}


def test_what_runs_is_not_proposed_again(found):
    search, running = chooser(found), []
    for _ in range(6):
        running.append(search.next(running))
    assert len({step.choice.key for step in running}) == 6


def test_a_network_that_the_table_calls_dominated_is_told_and_not_run(found):
    search = chooser(found, rungs=(0, 1))
    for share, ratio, lost in ((0.9, 0.7, 1.0), (0.8, 0.75, 2.0)):
        choice = next(
            c for c in every_choice(["a"], [1], (0,)) if (c.share, c.kinds) == (share, "block")
        )
        result = {"state": "done", "rows": [row("a", 0.1, ratio / 2)], "steps": [{"ratio": ratio}]}
        result["removed"] = [{"importance_lost": lost}]
        found.trials.append(Done(len(found.trials), {"choice": asdict(choice)}, result))
    told = []
    while (step := search.next([])) is not None and len(found.trials) < 400:
        if step.dominated:
            assert step.proposal is None
            told.append((step.choice.share, step.choice.kinds))
            found.trials.append(
                Done(len(found.trials), {"choice": asdict(step.choice)}, {"state": "dominated"})
            )
        else:
            run(found, step)
    assert told == [(0.8, "block")]  # once, however many engines it might have run on


def test_the_originals_engines_are_known_to_the_journal(found, tmp_path):
    search = chooser(found, tmp_path / "journal")
    for _ in range(3):
        run(found, search.next([]))
    study = SweepJournal({}, found.objectives, tmp_path / "journal").study
    known = [t for t in study.get_trials() if t.user_attrs.get("work") == "known"]
    assert sorted(t.values for t in known) == [[0.0, 0.7], [0.1, 0.5]]
    assert len(study.get_trials()) == 5
