"""`edgeml report`: the table of a bundle on screen and in files."""

from __future__ import annotations

import json

import pytest
from edgeml.artifact.bundle import open_bundle, write_manifest
from edgeml.artifact.manifest import EngineEntry, Manifest
from edgeml.artifact.measurement import Measurement
from edgeml.artifact.result_row import EngineRow, ResultTable
from edgeml.cli import main
from edgeml.report.write import to_json


def table() -> ResultTable:
    row = EngineRow(
        id="onnxruntime-int8",
        runtime="onnxruntime",
        precision="int8",
        route="onnxruntime minmax",
        metrics={"accuracy": Measurement(value=0.9791, unit="fraction", n=360)},
        latency_p50_ms=Measurement(value=0.134, unit="ms", n=900),
        shipped=True,
    )
    return ResultTable(
        command="compress",
        primary="accuracy",
        rows=[row],
        verdict_line="ships onnxruntime int8: the only one tried",
    )


@pytest.fixture
def bundle(tmp_path):
    """A bundle with an engine file and results."""
    root = tmp_path / "out"
    root.mkdir()
    (root / "model.xml").write_text("<net/>")
    (root / "results.json").write_text(to_json(table()), encoding="utf-8")
    entry = EngineEntry(
        id="onnxruntime-int8", runtime="onnxruntime", precision="int8", files=["model.xml"]
    )
    manifest = Manifest(
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
        shipped=entry.id,
    )
    write_manifest(root, manifest)
    return root


def edgeml(*args) -> int:
    """Run the command line; the exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(arg) for arg in args])
    return caught.value.code or 0


def test_the_table_is_printed(bundle, capsys):
    assert edgeml("report", bundle) == 0
    out = capsys.readouterr().out
    assert "97.91 %" in out
    assert out.rstrip().endswith("ships onnxruntime int8: the only one tried")


def test_files_are_written_where_o_says_and_not_twice(bundle, tmp_path, capsys):
    assert edgeml("report", bundle, "-o", tmp_path / "page") == 0
    names = sorted(path.name for path in (tmp_path / "page").iterdir())
    assert names == ["report.csv", "report.html", "report.json", "report.md"]
    assert edgeml("report", bundle, "-o", tmp_path / "page") == 2
    assert "report.html exists" in capsys.readouterr().err


def test_json_on_stdout_is_json_alone(bundle, capsys):
    assert edgeml("report", bundle, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["shipped"] is True


@pytest.mark.parametrize("option", ["-o", "--json"])
def test_nothing_is_written_into_the_bundle(bundle, option, capsys):
    assert edgeml("report", bundle, option, bundle / "page") == 2
    assert "lies in the bundle" in capsys.readouterr().err
    open_bundle(bundle)


def test_a_damaged_bundle_is_refused(bundle, capsys):
    (bundle / "results.json").write_text("{}")
    assert edgeml("report", bundle) == 2
    assert "does not match its hash" in capsys.readouterr().err


def test_a_directory_that_is_no_bundle_is_refused(tmp_path, capsys):
    assert edgeml("report", tmp_path) == 2
    assert "is no bundle" in capsys.readouterr().err


def test_open_needs_a_place_and_opens_the_page_that_was_written(
    bundle, tmp_path, capsys, monkeypatch
):
    assert edgeml("report", bundle, "--open") == 2
    assert "give -o DIR too" in capsys.readouterr().err
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda uri: opened.append(uri) or False)
    assert edgeml("report", bundle, bundle, "-o", tmp_path / "page", "--open") == 0
    assert opened == [(tmp_path / "page" / "report.html").as_uri()]
    assert "no browser found: open" in capsys.readouterr().err
