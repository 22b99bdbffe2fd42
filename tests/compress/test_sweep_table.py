"""What a sweep makes of its trials: who goes on, who is dominated, what the table tells."""

from __future__ import annotations

from dataclasses import replace

import pytest
from edgeml.artifact.measurement import Measurement
from edgeml.artifact.recipe import build_recipe
from edgeml.artifact.result_row import EngineRow
from edgeml.compress.sweep_space import Choice
from edgeml.compress.sweep_table import OUT_OF_REACH, REFERENCE, Done, Found, table_of

NOISE = "noisy machine: others used 40% of the CPU time while this ran; compare ratios only"
RECIPE = build_recipe({"model": "net.py:build", "data": "digits", "max_drop_points": 1})


def row(name, drop, ratio, size=1000, **more):
    speed = Measurement(value=1 / ratio, unit="ratio", n=9, low=0.9 / ratio, high=1.1 / ratio)
    lost = Measurement(value=drop, unit="points", n=400, low=drop - 1, high=drop + 1)
    p50 = Measurement(value=ratio, unit="ms", n=9)
    fields = {"drop_points": lost, "speedup": speed, "latency_p50_ms": p50, "size_bytes": size}
    return EngineRow(id=name, runtime="openvino", precision="int8", **fields, **more)


def trial(number, drop, ratio, *, rung=0, parent=None, state="done", network=None, **choice):
    chosen = {"share": 0.6, "kinds": "block", "engine": "e", "distil": True, "threads": 1}
    chosen |= {"rung": rung, **choice}
    request = {
        "choice": chosen,
        "params": Choice(**chosen).params({}, 0),
        "recipe_hash": "h",
        "promoted_from": parent,
    }
    result = {"state": state, "reason": None if state == "done" else "why", "noise": [NOISE]}
    if state == "done":
        result["rows"] = [row("e", drop, ratio, warnings=[NOISE]).model_dump(mode="json")]
    if network:
        result["steps"] = [{"ratio": network[0]}]
        result["removed"] = [{"importance_lost": network[1]}]
    return Done(number, request, result)


def found(*trials):
    reference = row(REFERENCE, 0, 1.0, status="reference").model_dump(mode="json")
    plain = row("e", 0.1, 0.5, warnings=[NOISE]).model_dump(mode="json")
    baseline = {
        "rows": [reference, plain],
        "notes": [],
        "noise": [NOISE],
        "task": {"primary": "top-1", "lower_is_better": False, "points_per_unit": 100.0},
    }
    return Found(("accuracy", "latency"), 1, baselines={1: baseline}, trials=list(trials))


def table(one, state="finished"):
    return table_of(one, RECIPE, {}, {}, state)


def test_a_network_that_keeps_less_and_is_slower_is_not_trained():
    quick, slow = (
        trial(0, 1, 0.5, network=(0.55, 3.0)),
        trial(1, 1, 0.5, network=(0.6, 4.0), share=0.65),
    )
    one = found(quick, slow)
    assert one.dominated(quick.choice) is None
    assert one.dominated(slow.choice) == (
        "the network of trial 0 takes 55.0% of plain INT8's time and loses 3 of importance, "
        "this one 60.0% and 4: not trained"
    )
    # Importances of other kinds have another scale; of a network that never ran nothing is known.
    assert one.dominated(replace(slow.choice, kinds="channels")) is None
    assert one.dominated(replace(slow.choice, share=0.7)) is None
    assert one.dominated(replace(slow.choice, rung=2, engine="f")) is not None


def test_rungs_of_one_structure_do_not_keep_each_other_from_being_trained():
    short, child = (
        trial(0, 1, 0.5, rung=1, network=(0.55, 3.0)),
        trial(1, 1, 0.5, rung=2, parent=0, network=(0.55, 3.0)),
    )
    untaught = trial(2, 1, 0.5, rung=1, distil=False, network=(0.55, 3.0))
    one = found(short, child, untaught)
    assert [one.dominated(t.choice) for t in (short, child, untaught)] == [None, None, None]


def test_of_two_networks_that_are_the_same_the_less_pruned_is_trained():
    one = found(
        trial(0, 1, 0.5, network=(0.5, 3.0)), trial(1, 1, 0.5, network=(0.5, 3.0), share=0.7)
    )
    assert [one.dominated(t.choice) is None for t in one.trials] == [False, True]


def test_what_is_out_of_reach_is_no_trial_and_says_how_far_one_may_go():
    one = found(
        trial(0, 0, 1, state=OUT_OF_REACH), trial(1, 0, 1, state=OUT_OF_REACH, kinds="channels")
    )
    one.trials[0].result["least"] = 0.72
    assert one.counted() == [] and len(one.ended()) == 2
    least = one.least()
    assert least["block", 1] == 0.72 and 0.6 < least["channels", 1] < 0.65


@pytest.mark.parametrize(
    "state", ["failed", "out of memory", "out of time", "dominated", OUT_OF_REACH]
)
def test_a_trial_without_an_engine_is_a_row_with_its_reason(state):
    one = found(trial(0, 0, 1, state=state))
    (told,) = [r for r in table(one, "running").rows if r.trial == 0]
    assert (told.status, told.reason) == ("failed", "why")
    assert len(one.counted()) == (state in ("failed", "out of memory"))


def test_the_noise_of_a_trials_own_bench_goes_where_its_times_go():
    one = found(trial(0, 1.0, 0.4), trial(1, 1.0, 0.4))
    values = {"front": "yes", "front_against": [], "timed": "together"}
    one.final = {"rows": {"trial-0000-e": values}, "failed": {}, "warnings": []}
    warnings = {r.id: r.warnings for r in table(one).rows}
    assert warnings["trial-0000-e"] == [] and NOISE in warnings["trial-0001-e"]


def test_an_engine_that_fails_at_the_end_says_why():
    one = found(trial(0, 1.0, 0.4))
    one.final = {
        "rows": {"original-e-t1": {"front": "yes", "front_against": [], "timed": "together"}},
        "failed": {"trial-0000-e": "BundleError: damaged"},
        "warnings": [],
    }
    (told,) = [r for r in table(one).rows if r.trial == 0]
    assert told.reason == "at the end: BundleError: damaged" and told.front is None


def test_what_test_said_once_stays_and_a_second_reading_is_told():
    one = found(trial(0, 1.0, 0.4))
    one.tested = {"reads": 2, "rows": {"trial-0000-e": {"n": 100, "read": 1}}}
    made = table(one, "running")
    assert next(r for r in made.rows if r.trial == 0).test == {"n": 100, "read": 1}
    assert made.settings["test_reads"] == 2
    assert [w for w in made.warnings if "was read 2 times" in w]
