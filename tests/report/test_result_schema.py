"""docs/result-schema.md names every field of the JSON."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from edgeml.artifact.measurement import How, Measurement
from edgeml.artifact.result_row import SCHEMA_VERSION, EngineRow, ResultTable, Status, Verdict

DOCUMENT = Path(__file__).parents[2] / "docs" / "result-schema.md"


def section(title: str) -> str:
    text = DOCUMENT.read_text(encoding="utf-8")
    return re.split(r"^## ", text.split(f"## {title}")[1], flags=re.MULTILINE)[0]


@pytest.mark.parametrize(
    ("model", "titles"),
    [
        (ResultTable, ["The table"]),
        (EngineRow, ["A row: one engine", "A sweep"]),
        (Measurement, ["A measurement"]),
    ],
)
def test_every_field_is_documented_in_its_section_and_none_is_invented(model, titles):
    text = "".join(section(title) for title in titles)
    documented = set(re.findall(r"^\| `(\w+)` \| [a-z]", text, flags=re.MULTILINE))
    assert documented == set(model.model_fields)


@pytest.mark.parametrize("words", [Status, Verdict, How])
def test_every_word_a_field_may_hold_is_documented(words):
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [word for word in words.__args__ if f"`{word}`" not in text] == []


def test_the_version_is_the_codes():
    assert f"schema version **{SCHEMA_VERSION}**" in DOCUMENT.read_text(encoding="utf-8")
