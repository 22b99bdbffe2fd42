"""The search against random choice on made-up networks, and a recording that is gone on with."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from edgeml.compress import search

pytest.importorskip("optuna")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def replay(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("sweep_replay", "sweep_record", "sweep_landscape", "budget_runs")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import sweep_replay

    yield sweep_replay
    for name in names:
        sys.modules.pop(name, None)


def test_the_search_adds_more_than_random_choice_and_counts_its_trials_alike(replay):
    from sweep_landscape import landscape

    more = []
    for number in (100, 101):
        table = replay.Table(landscape(number))
        for seed in range(3):
            tried = replay.ours(table, seed, 30)
            assert len(tried) == len(set(tried)) == 30
            others = replay.chance(table, seed, 30, (0, 1, 2))
            more.append(table.volume(tried) - table.volume(others))
    assert np.mean(more) > 0


def test_where_time_is_bounded_it_is_kept(replay):
    from sweep_landscape import landscape

    table = replay.Table(landscape(102))
    tried = replay.ours(table, 0, hours=1.0)
    assert 0.5 < table.hours(tried) <= 1.0


def test_a_recording_goes_on_where_it_was_cut_off(replay, monkeypatch, tmp_path):
    import sweep_record

    asked = []

    def measured(base, network, engines, plain, work):
        share, kinds, rung, distil = network
        told = {"share": share, "kinds": kinds, "rung": rung, "distil": distil}
        if kinds == "channels" and share < 0.8:
            yield {**told, "engine": None, "state": "out of reach", "least": 0.75, "seconds": 1.0}
            return
        for engine in engines:
            asked.append((network, engine))
            if len(asked) == 3:
                raise KeyboardInterrupt
            yield {**told, "engine": engine, "state": "done", "seconds": 1.0}

    # Both are set by a recording, and are as before when this test ends.
    monkeypatch.setattr(search, "BENCH_SECONDS", search.BENCH_SECONDS)
    monkeypatch.setenv("EDGEML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sweep_record, "measured", measured)
    original = {"rows": [], "engines": ["a", "b"], "plain_int8": "a"}
    monkeypatch.setattr(sweep_record, "baselines", lambda base, work: original)
    inputs = {"model": "net.py:build", "data": "digits"}
    monkeypatch.setattr(sweep_record, "make_inputs", lambda work: inputs)
    file = tmp_path / "table.jsonl"
    with pytest.raises(KeyboardInterrupt):
        sweep_record.record(file, tmp_path / "work", True)
    for _ in range(2):
        sweep_record.record(file, tmp_path / "work", True)
    wanted = [n for n in sweep_record.networks(True) if not (n[1] == "channels" and n[0] < 0.8)]
    assert sorted(asked) == sorted([*[(n, e) for n in wanted for e in "ab"], asked[2]])
    lines = replay.records(file)
    assert len(wanted) == 3
    assert [line["state"] for line in lines[1:]].count("out of reach") == 1
