"""The point of a sweep that a condition describes, copied as a bundle."""

from __future__ import annotations

import json
import shutil

import pytest
from edgeml.artifact.bundle import open_bundle, write_manifest
from edgeml.artifact.manifest import EngineEntry, Manifest
from edgeml.artifact.measurement import Measurement
from edgeml.artifact.result_row import EngineRow, ResultTable
from edgeml.cli import main
from edgeml.errors import BudgetMissed, BundleError, InputError
from edgeml.report.open_results import shown_of
from edgeml.report.pick import copy_point, pick
from edgeml.report.write import to_json


def m(value, unit="ms"):
    return Measurement(value=value, unit=unit, n=900)


def row(name, trial, p50, accuracy, **fields):
    values = {
        "id": name,
        "runtime": "onnxruntime",
        "precision": "int8",
        "trial": trial,
        "metrics": {"accuracy": m(accuracy, "fraction")},
        "drop_points": m(round(91 - 100 * accuracy, 6), "points"),
        "latency_p50_ms": m(p50),
        "recipe_hash": f"hash{trial}",
        "size_bytes": 1000 * (trial or 1),
    }
    return EngineRow(**{**values, **fields})


def write_bundle(root, engine):
    root.mkdir(parents=True)
    shutil.copy(engine, root / "model.int8.onnx")
    table = ResultTable(command="compress", primary="accuracy", rows=[row("e", None, 0.2, 0.9)])
    table.rows[0].shipped = True
    (root / "results.json").write_text(to_json(table), encoding="utf-8")
    entry = EngineEntry(
        id="e", runtime="onnxruntime", precision="int8", files=["model.int8.onnx"], threads=1
    )
    write_manifest(
        root,
        Manifest(
            edgeml_version="0",
            created="2026-01-01",
            name="net",
            model={"kind": "onnx"},
            recipe={},
            data={},
            seed=0,
            tools={},
            machine={},
            inputs=[],
            outputs=[],
            engines=[entry],
            shipped="e",
        ),
    )
    return root


@pytest.fixture
def sweep(tmp_path, conv_onnx):
    """Three points on the front, one row without a bundle, a baseline, a reference, a failure."""
    root = tmp_path / "sweep"
    rows = [
        row("fast", 1, 0.1, 0.895, front="yes", bundle="points/fast"),
        row("middle", 2, 0.2, 0.905, front="yes", bundle="points/middle"),
        row("slow", 3, 0.4, 0.91, front="yes", bundle="points/slow"),
        row("doubtful", 4, 0.19, 0.906, front="cannot tell", front_against=["middle"]),
        row("base", None, 0.5, 0.909, baseline="NNCF INT8", front="no", recipe_hash=None),
        row("ref", None, 0.01, 0.99, status="reference", recipe_hash=None),
        EngineRow(id="f", runtime="-", precision="int8", status="failed", trial=9, reason="oom"),
    ]
    for name in ("fast", "middle", "slow"):
        write_bundle(root / "points" / name, conv_onnx)
    table = ResultTable(command="sweep", primary="accuracy", rows=rows)
    (root / "results.json").write_text(to_json(table), encoding="utf-8")
    return root


def edgeml(*args) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(arg) for arg in args])
    return caught.value.code or 0


def test_the_most_accurate_match_is_copied_and_loads(sweep, tmp_path, capsys):
    out = tmp_path / "chosen"
    condition = "latency_p50_ms <= 0.45 and drop_points < 1"
    assert edgeml("report", sweep, "--pick", condition, "-o", out) == 0
    said = capsys.readouterr()
    assert said.out.startswith("3 of 5 engines match; the most accurate is trial 3: onnxruntime")
    assert open_bundle(out).hash == open_bundle(sweep / "points" / "slow").hash
    assert not (tmp_path / "chosen.part").exists()
    assert edgeml("report", sweep, "--pick", condition, "-o", out) == 2
    assert "chosen exists" in capsys.readouterr().err


def test_a_more_accurate_match_without_a_bundle_is_told(sweep):
    picked = pick(shown_of(sweep), "latency_p50_ms <= 0.2")
    assert picked.row.id == "middle"
    assert "3 of 5 engines match; the most accurate in a bundle is trial 2" in picked.line
    assert "trial 4: onnxruntime int8, accuracy 90.60 %" in picked.line


def test_where_no_match_has_a_bundle_its_recipe_is_told(sweep):
    with pytest.raises(BudgetMissed, match=r"1 of 5 .*recipes/hash4\.yaml -o NEW"):
        pick(shown_of(sweep), "latency_p50_ms == 0.19")


def test_nothing_that_matches_is_exit_3_with_the_nearest(sweep, tmp_path, capsys):
    condition = "latency_p50_ms <= 0.09 and drop_points < 2"
    assert edgeml("report", sweep, "--pick", condition, "-o", tmp_path / "no") == 3
    said = capsys.readouterr().err
    assert "none of 5 engines" in said and "the nearest is trial 1" in said
    assert "latency_p50_ms 0.100000 (wanted <= 0.09)" in said
    assert not (tmp_path / "no").exists()


def test_what_does_not_parse_is_exit_2_with_its_place(sweep, tmp_path, capsys):
    assert edgeml("report", sweep, "--pick", "latency_p50_ms <", "-o", tmp_path / "no") == 2
    assert "does not parse at its end" in capsys.readouterr().err


def test_a_bundle_alone_can_be_picked_from(sweep, tmp_path, capsys):
    one = sweep / "points" / "slow"
    assert edgeml("report", one, "--pick", "shipped", "-o", tmp_path / "c", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["id"] == "e"
    open_bundle(tmp_path / "c")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--pick", "shipped"], "copies a bundle to -o DIR"),
        (["--pick", "shipped", "-o", "x", "--open"], "opens no page"),
    ],
)
def test_options_that_do_not_fit_are_refused(sweep, args, said, capsys):
    assert edgeml("report", sweep, *args) == 2
    assert said in capsys.readouterr().err


def test_a_copy_that_does_not_load_is_not_kept(sweep, tmp_path):
    picked = pick(shown_of(sweep), "latency_p50_ms <= 0.1")

    def fails(bundle):
        raise InputError("it does not load")

    with pytest.raises(InputError, match="does not load"):
        copy_point(picked, tmp_path / "no", fails)
    assert not list(tmp_path.glob("no*"))
    (picked.bundle / "model.int8.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="does not match its hash"):
        copy_point(picked, tmp_path / "no", lambda bundle: None)
    assert not list(tmp_path.glob("no*"))


@pytest.mark.parametrize("name", ["../elsewhere", "/", ".", "points/../../x"])
def test_a_sweep_that_names_a_bundle_outside_is_refused(sweep, name):
    file = sweep / "results.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values["rows"][0]["bundle"] = name
    file.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(InputError, match="lies outside; refused"):
        shown_of(sweep)


def test_a_folder_that_is_neither_is_told_as_such(tmp_path):
    with pytest.raises(BundleError, match=r"no manifest.json, and it is no sweep"):
        shown_of(tmp_path)
