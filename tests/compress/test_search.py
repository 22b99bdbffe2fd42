"""Which candidates the search leaves behind, and which it comes back to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from edgeml.artifact.measurement import Measurement
from edgeml.artifact.result_row import EngineRow
from edgeml.compress import search
from edgeml.compress.budget import Budget
from edgeml.compress.build_engines import Trial


def points(value: float, high: float) -> Measurement:
    return Measurement(value=value, unit="points", n=1000, low=2 * value - high, high=high)


# Row id → p50 in ms, drop and its upper bound on all samples.
FAST_BUT_NOT_PROVEN = {"fast": (1.0, points(0.8, 1.4)), "slow": (3.0, points(0.1, 0.6))}


@pytest.fixture
def screened(monkeypatch):
    """A function: the rows after screening, with the measurements given by hand."""

    def run(given, n=1000, **recipe):
        trials = [Trial(EngineRow(id="reference", runtime="torch", precision="fp32"))]
        for row_id in given:
            row = EngineRow(id=row_id, runtime="openvino", precision="int8")
            trials.append(Trial(row, engine=object()))

        def score(job, some, stages, limit, name):
            for trial in some[1:]:
                drop = given[trial.row.id][1]
                few = points(drop.value, drop.value + 9)
                trial.row.drop_points = few if limit else drop

        def measure_speed(job, some, *rest):
            for trial in some[1:]:
                p50 = Measurement(value=given[trial.row.id][0], unit="ms")
                trial.row.latency_p50_ms = p50

        monkeypatch.setattr(search, "score", score)
        monkeypatch.setattr(search, "measure_speed", measure_speed)
        task = SimpleNamespace(indices=lambda split: range(n), answer=None)
        job = SimpleNamespace(
            opened=SimpleNamespace(task=task),
            recipe=SimpleNamespace(precisions=("int8",), strict=False, engine=None),
        )
        stages = SimpleNamespace(log=lambda line: None)
        search._screen_and_score(job, trials, stages, Budget(1.0))
        return {t.row.id: (t.row.status, t.row.verdict) for t in trials[1:]}

    return run


def test_a_slow_engine_is_scored_where_no_fast_one_is_proven(screened):
    assert screened(FAST_BUT_NOT_PROVEN) == {
        "fast": ("measured", "plausible"),
        "slow": ("measured", "proven"),
    }


def test_a_slow_engine_is_left_behind_where_a_fast_one_is_proven(screened):
    given = {**FAST_BUT_NOT_PROVEN, "fast": (1.0, points(0.2, 0.7))}
    assert screened(given) == {"fast": ("measured", "proven"), "slow": ("screened", None)}


def test_where_nothing_can_be_proven_plausible_is_enough(screened):
    assert screened(FAST_BUT_NOT_PROVEN, n=100)["slow"] == ("screened", None)


def test_what_few_samples_say_of_a_slow_engine_does_not_stand_for_all_of_them(screened):
    given = {"fast": (1.0, points(5.0, 6.0)), "slow": (3.0, points(0.1, 0.6))}
    assert screened(given) == {"fast": ("measured", "missed"), "slow": ("measured", "proven")}
