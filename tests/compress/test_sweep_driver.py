"""The driver of a sweep over trials whose results are known: many at a time, too late, gone on with.

Each trial is a real process of the driver's; only what it would measure is a formula.
"""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("optuna")

from edgeml.artifact.recipe import build_recipe
from edgeml.compress import sweep_child
from edgeml.compress.sweep import run_sweep
from edgeml.errors import EdgemlError, MissingPart

TRIAL = """#!{python} -SE
import json, pathlib, sys, time
began, folder = time.monotonic(), pathlib.Path(sys.argv[-1])
request = json.loads((folder / "request.json").read_text())

def row(name, drop, ratio, **more):
    place = folder / "bundles" / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "manifest.json").write_text(json.dumps([name, drop]))
    one = lambda value, unit: dict(value=value, unit=unit, n=9, low=value, high=value)
    return dict(id=name, runtime="openvino", precision="int8", size_bytes=1000, **more,
                drop_points=one(drop, "points"), speedup=one(1 / ratio, "ratio"),
                latency_p50_ms=one(ratio, "ms"))

found = dict(state="done", reason=None, noise=[])
if request["kind"] == "baselines":
    found |= dict(rows=[row("reference", 0.0, 1.0, status="reference"), row("a", 0.1, 0.5)],
                  plain_int8="a", trainable=True, facts=dict(model_sha256="m", data="d"),
                  task=dict(primary="top-1", lower_is_better=False, points_per_unit=100.0),
                  machine={{}}, notes=[])
elif request["kind"] == "choice":
    choice = request["choice"]
    time.sleep({seconds})
    drop = 10 * (1 - choice["share"]) / (1 + choice["rung"])
    if choice["share"] < {least}:
        found = dict(state="out of reach", reason="cannot be met", least={least}, rows=[])
    else: found |= dict(rows=[row(choice["engine"], drop, choice["share"] / 2)], epochs=choice["rung"],
                  steps=[dict(ratio=choice["share"])], removed=[dict(importance_lost=1 - choice["share"])])
else:
    names = sorted(request["finalists"])
    found |= dict(rows={{name: dict(front="yes", front_against=[], timed="together") for name in names}},
                  failed={{}}, warnings=[])
    tested = pathlib.Path(request["tested"])
    told = json.loads(tested.read_text()) if tested.exists() else dict(reads=0, rows={{}})
    told["reads"] += 1
    told["rows"] |= {{n: dict(n=1, read=told["reads"]) for n in names if n not in told["rows"]}}
    tested.write_text(json.dumps(told))
found["span"] = [began, time.monotonic()]
found["seconds"] = found["span"][1] - began
(folder / "result.json").write_text(json.dumps(found))
"""
RECIPE = build_recipe(
    {
        "model": "net.py:build",
        "data": "digits",
        "threads": 1,
        "max_drop_points": None,
        "steps": [{"step": "finetune", "epochs": 10}],
    }
)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Runs a sweep in ``out``, whose trials take so many seconds and cannot be pruned below ``least``."""

    def run(seconds=0.0, least=0.0, **more):
        script = tmp_path / "python"
        text = TRIAL.format(python=sys.executable, seconds=seconds, least=least)
        script.write_text(text)
        script.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setattr(sweep_child.sys, "executable", str(script))
            return run_sweep(RECIPE, tmp_path / "out", **more)

    return run


def trials(folder):
    lines = (folder / "out" / "trials.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_trials_run_side_by_side_and_each_work_once(sweep, tmp_path):
    table = sweep(seconds=0.2, trials=12, workers=3).table
    there = trials(tmp_path)
    assert [t["state"] for t in there] == ["done"] * 12 and table.settings["workers"] == 3
    keys = {json.dumps([t["params"], t["rung"]]) for t in there}
    assert len(keys) == 12 and {t["rung"] for t in there} >= {0, 1}
    results = (tmp_path / "out" / "trials").glob("[0-9]*/result.json")
    spans = [json.loads(file.read_text())["span"] for file in results]
    together = [sum(a <= begin < b for a, b in spans) for begin, _ in spans]
    assert 2 <= max(together) <= 3


def test_what_the_bound_ends_says_so_and_is_tried_again_with_more_time(sweep, tmp_path):
    table = sweep(seconds=60, time_s=3).table
    (late,) = trials(tmp_path)
    assert (late["state"], late["reason"]) == ("out of time", "--time was over")
    (row,) = [row for row in table.rows if row.trial == 0]
    assert (row.status, row.reason) == ("failed", "--time was over")
    sweep(trials=1)
    again = trials(tmp_path)
    assert [t["state"] for t in again] == ["out of time", "done"]


def test_a_share_out_of_reach_is_a_row_with_its_reason_and_no_trial(sweep, tmp_path):
    table = sweep(trials=5, least=0.9).table
    there = trials(tmp_path)
    beyond = [t for t in there if t["state"] == "out of reach"]
    assert [t["state"] for t in there].count("done") == 5
    kinds = [t["params"]["kinds"] for t in beyond]
    assert beyond and len(kinds) == len(set(kinds))  # told once for each kind of pruning
    told = {row.trial: (row.status, row.reason) for row in table.rows if row.trial is not None}
    assert all(told[t["trial"]] == ("failed", "cannot be met") for t in beyond)
    assert table.settings["counts"] == {"done": 5, "out of reach": len(beyond)}


def test_a_resumption_repeats_nothing_and_tells_every_reading_of_test(sweep, tmp_path):
    first = sweep(trials=3).table
    assert first.settings["test_reads"] == 1 and not first.warnings
    (tmp_path / "out" / "points" / "stale").mkdir()
    same = sweep(trials=3).table
    assert same.settings["test_reads"] == 1
    assert not (tmp_path / "out" / "points" / "stale").exists()
    before = trials(tmp_path)
    more = sweep(trials=6).table
    assert trials(tmp_path)[:3] == before and more.settings["test_reads"] == 2
    assert any("was read 2 times" in line for line in more.warnings)
    reads = {row.trial: row.test["read"] for row in more.rows if row.trial is not None}
    assert set(reads.values()) == {1, 2} and all(reads[n] == 1 for n in range(3))


def test_a_recipe_of_the_sweep_names_its_engine(sweep, tmp_path):
    sweep(trials=1)
    (trial,) = trials(tmp_path)
    text = (tmp_path / "out" / "recipes" / f"{trial['recipe_hash']}.yaml").read_text()
    assert "engine: a\n" in text


def test_energy_without_a_meter_is_one_line_and_leaves_nothing(sweep, tmp_path):
    from edgeml.runtime.energy.meter import find_meter

    with find_meter("cpu") as meter:
        if meter.reason is None:
            pytest.skip("this machine has a meter")
    with pytest.raises(MissingPart, match="--objectives energy: it cannot be measured here"):
        sweep(trials=1, objectives=("accuracy", "latency", "energy"))
    assert not (tmp_path / "out").exists()


def test_without_a_trial_the_originals_engines_are_the_front(sweep, tmp_path):
    table = sweep(trials=0).table
    assert [row.id for row in table.rows if row.front == "yes"] == ["original-a-t1"]
    with pytest.raises(EdgemlError):
        sweep()
