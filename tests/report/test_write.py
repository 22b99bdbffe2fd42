"""Files of a result: what is written can be read again, and runs nowhere."""

from __future__ import annotations

import csv
import io
import json

import pytest
from edgeml.artifact.measurement import Measurement
from edgeml.artifact.result_row import EngineRow, ResultTable
from edgeml.errors import InputError
from edgeml.report.write import from_json, to_csv, to_json, to_markdown, write


def result(**fields):
    row = EngineRow(
        id="openvino-int8",
        runtime="openvino",
        precision="int8",
        route="nncf performance",
        metrics={"accuracy": Measurement(value=0.98, unit="fraction", n=360, low=0.96, high=0.99)},
        change_points=Measurement(value=-0.5, unit="points", n=360, low=-1.0, high=0.25),
        latency_p50_ms=Measurement(value=0.134, unit="ms", n=900),
        shipped=True,
        **fields,
    )
    return ResultTable(
        command="compress", primary="accuracy", rows=[row], verdict_line="ships openvino int8"
    )


def test_json_holds_the_whole_table_and_is_read_back():
    table = result()
    assert from_json(to_json(table), "results.json") == table
    assert json.loads(to_json(table))["schema_version"] == 1


def test_numbers_that_json_cannot_hold_become_null():
    table = result(speedup=Measurement(value=float("nan"), unit="ratio"))
    assert json.loads(to_json(table))["rows"][0]["speedup"]["value"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "results.json is no JSON"),
        ("{", "results.json is no JSON"),
        ("[]", "holds no result table"),
        ('{"command": "compress"}', "holds no result table: rows"),
        ('{"command": "compress", "rows": [], "extra": 1}', "holds no result table: extra"),
        ('{"command": "x", "rows": [], "schema_version": 7}', "schema version 7.*upgrade"),
        ('{"command": "x", "rows": [], "final": {"n": "many"}}', "cannot be drawn"),
        ('{"command": "x", "rows": [], "settings": {"end_to_end": [1]}}', "cannot be drawn"),
        (b"\xff\xfe\x00", "is no JSON"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as caught:
        from_json(text, "results.json")
    assert "\n" not in str(caught.value)


def test_csv_has_five_columns_a_measurement():
    (row,) = csv.DictReader(io.StringIO(to_csv(result())))
    assert row["id"] == "openvino-int8" and row["shipped"] == "True"
    assert row["metric accuracy"] == "0.98" and row["metric accuracy_low"] == "0.96"
    assert row["change_points"] == "-0.5" and row["change_points_n"] == "360"
    assert row["latency_p50_ms_how"] == "measured" and row["latency_p90_ms"] == ""


@pytest.mark.parametrize("formula", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\r=cmd|x"])
def test_csv_text_is_never_a_formula(formula):
    (row,) = csv.DictReader(io.StringIO(to_csv(result(reason=formula, mark=formula))))
    assert row["reason"].startswith("'")
    assert row["mark"].startswith("'")


def test_markdown_is_one_table_with_the_verdict_before_it():
    page = to_markdown(result())
    lines = page.splitlines()
    assert lines[0] == "# edgeml compress"
    assert lines[2] == "**ships openvino int8**"
    body = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in body}) == 1
    assert "−0.50 (−1.00 +0.25)" in body[2] and "← shipped" in body[2]


def test_markdown_text_is_only_text():
    page = to_markdown(result(warnings=["<script>x</script> [a](javascript:b) | `c` **d**\n# e"]))
    assert "<script>" not in page and "[a](" not in page and "\n# e" not in page
    assert r"\[a\](javascript:b) \|" in page


def test_a_directory_gets_three_files(tmp_path):
    made = write(result(), tmp_path / "new" / "reports")
    assert [path.name for path in made] == ["report.md", "report.csv", "report.json"]
    assert from_json(made[2].read_text(encoding="utf-8"), "it") == result()


def test_one_file_is_written_in_the_format_of_its_suffix(tmp_path):
    (made,) = write(result(), tmp_path / "table.csv")
    assert made.read_text(encoding="utf-8") == to_csv(result())


def test_nothing_is_overwritten_silently_and_nothing_is_half_written(tmp_path):
    (tmp_path / "report.json").write_text("mine")
    with pytest.raises(InputError, match=r"report.json exists"):
        write(result(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    write(result(), tmp_path, overwrite=True)
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == to_json(result())


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="is a file"):
        write(result(), tmp_path / "out")
    with pytest.raises(InputError, match=r"unknown report format 'html', did you mean|known"):
        write(result(), tmp_path / "there", formats=("html",))
