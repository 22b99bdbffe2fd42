"""Groups, flipped samples, confidences and drift: drawn as they are stored, worst first, no markup."""

from __future__ import annotations

import json
import re

import pytest
from edgeml.errors import InputError
from edgeml.report import page
from edgeml.report.open_results import shown_of
from edgeml.report.page_data import Shown, chart_data
from edgeml.report.page_files import markdown_of
from edgeml.report.table import lines
from edgeml.report.write import from_json, to_json

HOSTILE = '"><img src=x onerror=alert(1)>%chart%</script>\x1b[31m'


@pytest.fixture(autouse=True)
def short_plotly(monkeypatch):
    """A short script in the place of Plotly's 4.8 MB, where no chart is drawn."""
    monkeypatch.setattr(page, "plotly_script", lambda: "window.Plotly = {};\n")


@pytest.fixture(scope="module")
def shown(made_sweep, tmp_path_factory):
    """A bundle with all four."""
    sweep = made_sweep(tmp_path_factory.mktemp("made") / "sweep", trials=24, seed=3, points=1)
    return shown_of(next((sweep / "points").iterdir()))


def figures(source: str, table: str) -> list[dict[str, str]]:
    body = re.search(rf'<table class="sorts {table}">.*?</table>', source, re.DOTALL)[0]
    found = []
    for row in re.findall(r"<tr>.*?</tr>", body, re.DOTALL)[1:]:
        cells = {}
        for attributes in re.findall(r"<td ([^>]*data-field=[^>]*)>", row):
            data = dict(re.findall(r'data-([a-z]+)="(.*?)"', attributes))
            cells[data["field"]] = data
        found.append(cells)
    return found


def number(cells, field, part="value"):
    return json.loads(cells[field][part])


def test_groups_stand_worst_first_with_their_corrected_intervals(shown):
    fairness = shown.table.final["fairness"]
    source = page.to_page([shown])
    drawn = figures(source, "groups")
    for cells, row in zip(drawn, fairness["rows"], strict=True):
        assert number(cells, "n") == row["n"] and number(cells, "engine") == row["engine"]
        assert number(cells, "group_drop_points") == row["drop_points"]["value"]
        if row["drop_points"].get("low") is not None:
            assert number(cells, "group_drop_points", "low") == row["drop_points"]["low"]
    assert "violated; loses more than the whole" in source and "n = 40: too few" in source
    (chart,) = [one["groups"] for one in chart_data([shown])["details"]]
    judged = [row for row in fairness["rows"] if not row["reason"]]
    assert [(r["value"], r["low"], r["high"]) for r in chart["rows"]] == [
        tuple(row["drop_points"][part] for part in ("value", "low", "high")) for row in judged
    ]
    assert chart["limit"] == 4.0 and {r["state"] for r in chart["rows"]} <= set(chart["states"])


def test_classes_are_told_once_where_they_are_the_groups(shown):
    source = page.to_page([shown])
    assert "<h2>Classes" in source and "<h2>Groups" in source
    final = {**shown.table.final, "fairness": {**shown.table.final["fairness"], "by": "class"}}
    source = page.to_page([Shown("x", shown.table.model_copy(update={"final": final}))])
    assert "<h2>Classes" not in source and "<h2>Groups" in source


def test_confidences_are_the_jsons_before_and_after(shown):
    found = shown.table.final["confidences"]
    source = page.to_page([shown])
    for cells, who in zip(figures(source, "confidences"), ("reference", "engine"), strict=True):
        assert number(cells, "ece") == found[who]["ece"]["value"]
        assert number(cells, "ece", "high") == found[who]["ece"]["high"]
        assert number(cells, "by_chance") == found[who]["by_chance"]
    bins = figures(source, "bins")
    stored = [*found["reference"]["bins"], *found["engine"]["bins"]]
    for cells, entry in zip(bins, stored, strict=True):
        for name, value in entry.items():
            assert number(cells, name) == value
    (chart,) = [one["reliability"] for one in chart_data([shown])["details"]]
    assert [line["bins"] for line in chart] == [found[w]["bins"] for w in ("reference", "engine")]


def test_flipped_samples_and_drift(shown):
    source = page.to_page([shown])
    assert "17 right before, wrong now" in source and "2 wrong before, right now" in source
    assert source.count("<img ") == 1 and "<blockquote>a made text</blockquote>" in source
    assert "cat: cat → dog" in source
    assert "rank correlation to the reference&#x27;s engine 0.9300 (0.9100 … 0.9500)" in source
    drawn = [number(cells, "correlation") for cells in figures(source, "drift")]
    assert drawn == [row["correlation"] for row in shown.table.final["drift"]["rows"]]


def test_terminal_and_markdown_carry_them_too(shown):
    text = "\n".join(line for line, _ in lines(shown.table))
    for part in (
        "groups by meta.csv:camera, drop on test, worst first: camera 0",
        "violated of at most 4.0 points each; 1 not judged (fewer than 50 samples)",
        "answers that changed on test: 17 lost, 2 won",
        "calibration error (ECE, 15 bins of equal mass): reference 2.00 % (1.60 … 2.40)",
        "drift of explanations (occlusion (made), 4 samples)",
    ):
        assert part in text
    assert "calibration error" in markdown_of([shown])


def test_where_nothing_was_asked_for_nothing_is_told(shown):
    final = {
        **shown.table.final,
        **dict.fromkeys(("fairness", "flipped", "confidences", "drift")),
    }
    source = page.to_page([Shown("x", shown.table.model_copy(update={"final": final}))])
    for word in ("<h2>Groups", "<h2>Answers", "<h2>Confidences", "<h2>Explanations"):
        assert word not in source


def test_a_drift_that_could_not_be_made_says_why(shown):
    final = {**shown.table.final, "drift": {"reason": "no gradients, no captum", "rows": None}}
    source = page.to_page([Shown("x", shown.table.model_copy(update={"final": final}))])
    assert "drift of explanations: not measured: no gradients, no captum" in source


def test_names_and_pictures_of_files_are_never_markup(shown):
    def with_names(word, image):
        final = json.loads(json.dumps(shown.table.final))
        fairness = final["fairness"]
        fairness["by"] = fairness["verdict"] = word
        for row in fairness["rows"]:
            row["group"] = row["verdict"] = word
        final["confidences"]["binning"] = word
        final["drift"]["method"] = final["drift"]["floor"]["note"] = word
        for row in final["drift"]["rows"]:
            row["target"] = word
        for sample in final["flipped"]["samples"]:
            sample.update(place=word, target=word, reference=word, engine=word, text=word)
            sample["image"] = image
        table = shown.table.model_copy(update={"final": final})
        return page.to_page([Shown("x", from_json(to_json(table), "it"))])

    calm, wild = with_names("calm", None), with_names(HOSTILE, None)
    assert re.findall(r"<(\w+)", calm) == re.findall(r"<(\w+)", wild)
    for image in (
        "https://example.invalid/x.png",
        'data:image/png;base64,AA=="onerror="alert(1)',
        "data:image/svg+xml;base64,AAAA",
        "data:text/html;base64,AAAA",
        {"a": 1},
    ):
        assert "<img" not in with_names("calm", image)
    assert with_names("calm", "data:image/png;base64,AAAA").count("<img") == 2


def test_what_does_not_fit_the_schema_is_one_line(shown):
    final = {**shown.table.final, "fairness": {"rows": [{"group": "x", "drop_points": 3}]}}
    broken = shown.table.model_copy(update={"final": final})
    with pytest.raises(InputError, match=r"cannot be drawn|no result table"):
        from_json(to_json(broken), "it")
