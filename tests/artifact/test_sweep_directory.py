"""A sweep's directory: one driver, one recipe, nothing left of what was refused."""

from __future__ import annotations

import pytest
from edgeml.artifact.recipe import build_recipe
from edgeml.artifact.result_row import EngineRow, ResultTable
from edgeml.artifact.sweep_directory import RESULTS, STATE, TRIALS, SweepDirectory
from edgeml.errors import InputError

RECIPE = build_recipe({"model": "model.onnx", "data": "digits"})
ASKED = {"objectives": ["accuracy", "latency"]}


def test_it_is_found_again_with_its_id_and_facts(tmp_path):
    with SweepDirectory(tmp_path / "sweep", RECIPE, ASKED) as sweep:
        first = sweep.id
        sweep.trial("0001")
        sweep.remember(seconds=3.5)
        assert sweep.result("0001") is None
    with SweepDirectory(tmp_path / "sweep", RECIPE, ASKED) as sweep:
        assert sweep.id == first and sweep.facts == {"seconds": 3.5}


@pytest.mark.parametrize(
    ("recipe", "asked", "match"),
    [
        (
            {"model": "other.onnx", "data": "digits"},
            ASKED,
            r"its model is 'model.onnx', not 'other",
        ),
        ({"model": "model.onnx", "data": "digits"}, {"objectives": ["size"]}, "its objectives is"),
    ],
)
def test_another_sweep_is_refused_and_stays(tmp_path, recipe, asked, match):
    with SweepDirectory(tmp_path / "sweep", RECIPE, ASKED) as sweep:
        sweep.trial("0001")
    with pytest.raises(InputError, match=match):
        SweepDirectory(tmp_path / "sweep", build_recipe(recipe), asked).__enter__()
    assert (tmp_path / "sweep" / STATE).is_file()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    with pytest.raises(InputError, match=r"holds 'a.jpg' and no whole sweep.json: it is no sweep"):
        SweepDirectory(tmp_path / "photos", RECIPE, ASKED).__enter__()
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["a.jpg"]


def test_two_drivers_do_not_share_one(tmp_path):
    with (
        SweepDirectory(tmp_path / "sweep", RECIPE, ASKED),
        pytest.raises(InputError, match="another sweep works in"),
    ):
        SweepDirectory(tmp_path / "sweep", RECIPE, ASKED).__enter__()


def test_a_sweep_refused_before_its_first_trial_leaves_nothing(tmp_path):
    with pytest.raises(InputError), SweepDirectory(tmp_path / "sweep", RECIPE, ASKED):
        raise InputError("no such objective")
    assert not (tmp_path / "sweep").exists()


def test_the_folder_around_a_refused_sweep_goes_where_the_sweep_made_it(tmp_path):
    for place, stays in ((tmp_path / "made" / "sweep", False), (tmp_path / "sweep", True)):
        with pytest.raises(InputError), SweepDirectory(place, RECIPE, ASKED):
            raise InputError("no such model")
        assert place.parent.exists() == stays and not place.exists()


def test_what_users_read_is_written_whole(tmp_path):
    table = ResultTable(
        command="sweep", rows=[EngineRow(id="a", runtime="openvino", precision="int8", trial=1)]
    )
    with SweepDirectory(tmp_path / "sweep", RECIPE, ASKED) as sweep:
        sweep.publish(table, [{"trial": 1, "state": "done"}])
        assert sweep.keep_recipe(RECIPE) == RECIPE.hash
    root = tmp_path / "sweep"
    assert (root / TRIALS).read_text() == '{"trial": 1, "state": "done"}\n'
    assert ResultTable.model_validate_json((root / RESULTS).read_text()) == table
    assert (root / "recipes" / f"{RECIPE.hash}.yaml").is_file()
