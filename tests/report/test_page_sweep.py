"""A sweep on the page and in its companions: the front, its trials, its points; devices and energy."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from edgeml.artifact.measurement import Measurement, not_measured
from edgeml.artifact.result_row import EngineRow, ResultTable
from edgeml.errors import InputError
from edgeml.report import page
from edgeml.report.open_results import shown_of
from edgeml.report.page_data import Shown, chart_data
from edgeml.report.page_files import markdown_of, page_of
from edgeml.report.table import lines
from edgeml.report.write import to_csv

HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[31m"


@pytest.fixture(autouse=True)
def short_plotly(monkeypatch):
    """A short script in the place of Plotly's 4.8 MB, where no chart is drawn."""
    monkeypatch.setattr(page, "plotly_script", lambda: "window.Plotly = {};\n")


@pytest.fixture(scope="module")
def sweep(made_sweep, tmp_path_factory):
    return made_sweep(tmp_path_factory.mktemp("made") / "sweep", trials=40, seed=1, points=2)


@pytest.fixture(scope="module")
def shown(sweep):
    return shown_of(sweep)


def cells_of(source: str, table: str) -> dict[tuple[str, str], dict[str, str]]:
    """(row id, field) → the cell's data, of one table of the page."""
    body = re.search(rf'<table class="sorts {table}">.*?</table>', source, re.DOTALL)[0]
    found = {}
    for row in re.findall(r"<tr .*?</tr>", body, re.DOTALL):
        name = re.search(r'data-id="(.*?)"', row)[1]
        for attributes in re.findall(r"<td ([^>]*data-field=[^>]*)>", row):
            data = dict(re.findall(r'data-([a-z]+)="(.*?)"', attributes))
            found[name, data["field"]] = data
    return found


def test_every_figure_of_a_sweep_is_the_jsons(sweep, shown):
    raw = json.loads((sweep / "results.json").read_text(encoding="utf-8"))
    cells = cells_of(page.to_page([shown]), "rows")
    checked = 0
    for row in raw["rows"]:
        fields = {k: v for k, v in row.items() if isinstance(v, dict) and "value" in v}
        fields |= {f"metrics.{k}": v for k, v in (row.get("metrics") or {}).items()}
        test = row.get("test") or {}
        fields |= {f"test.{k}": v for k, v in test.items() if isinstance(v, dict) and "value" in v}
        fields |= {f"test.metrics.{k}": v for k, v in (test.get("metrics") or {}).items()}
        for field, measured in fields.items():
            data = cells.pop((row["id"], field))
            for part in ("value", "low", "high"):
                if measured.get(part) is not None:
                    assert json.loads(data[part]) == measured[part], (row["id"], field)
                    checked += 1
    assert checked > 1000
    left = [key for key, data in cells.items() if "value" in data]
    assert {field for _, field in left} == {"size_bytes"}


def test_the_summary_tells_the_ends_of_the_front_and_how_to_take_a_point(shown):
    source = page.to_page([shown])
    front = [row for row in shown.table.rows if row.front == "yes"]
    (asked, recommended, _) = re.findall(r"<dd>(.*?)</dd>", source)[:3]
    assert "objectives accuracy, latency, size" in asked and "40 trials asked for" in asked
    assert f"{len(front)} engines on the front" in recommended
    fastest = max(front, key=lambda row: row.speedup.value)
    accurate = max(front, key=lambda row: row.metrics["accuracy"].value)
    assert f"fastest: <strong>trial {fastest.trial}:" in recommended
    assert f"most accurate: <strong>trial {accurate.trial}:" in recommended
    assert "--pick" in recommended


def test_latencies_of_separate_benches_never_share_an_axis(shown):
    data = chart_data([shown])
    keys = [axis["key"] for axis in data["axes"]]
    own = "latency_p50_ms, each in its own trial's bench"
    assert "latency_p50_ms" in keys and own in keys and data["ratios"]
    rows = {row.id: row for row in shown.table.rows}
    for point in data["points"]:
        assert not {"latency_p50_ms", own} <= set(point["values"])
        assert (own in point["values"]) == (rows[point["id"]].timed == "by trial")


def test_where_a_row_stands_to_the_front_is_told_everywhere(shown):
    dominated = next(row for row in shown.table.rows if row.front == "no" and row.trial is not None)
    against = next(row for row in shown.table.rows if row.id == dominated.front_against[0])
    said = f"dominated by trial {against.trial}" if against.trial is not None else "dominated by"
    row = re.search(rf'<tr [^>]*data-id="{dominated.id}".*?</tr>', page.to_page([shown]), re.DOTALL)
    assert said in row[0] and "pruned" in row[0]
    assert said in markdown_of([shown])
    told = list(csv.DictReader(io.StringIO(to_csv(shown.table))))
    one = next(line for line in told if line["id"] == dominated.id)
    assert one["front"] == "no" and one["front_against"] == "; ".join(dominated.front_against)
    assert one["trial"] == str(dominated.trial) and "pruned" in one["recipe"]
    tested = next(line for line in told if line["front"] == "yes")
    row = next(row for row in shown.table.rows if row.id == tested["id"])
    assert float(tested["test drop_points"]) == row.test["drop_points"]["value"]


def test_the_terminal_shows_the_front_and_the_baselines_and_counts_the_rest(shown):
    text = "\n".join(line for line, _ in lines(shown.table))
    rows = shown.table.rows
    assert sum(line.endswith("  front") for line in text.splitlines()) == sum(
        row.front == "yes" for row in rows
    )
    assert "baseline NNCF INT8: openvino int8" in text
    behind = sum(row.front == "no" and row.baseline is None for row in rows)
    assert f"{behind} more were dominated, 2 failed" in text


def test_every_trial_and_every_point_of_the_front_is_on_the_page(shown):
    source = page.to_page([shown])
    body = re.search(r'<table class="sorts trials">.*?</table>', source, re.DOTALL)[0]
    assert body.count("<tr>") == 40 + 1 and "out of memory: 3.1 GB" in body
    assert source.count('<details class="point">') == 2
    assert len(chart_data([shown])["details"]) == 3
    assert "of 40 trials 2 out of memory" in source


def test_a_sweep_that_still_runs_says_so(shown):
    running = shown.table.model_copy(
        update={"settings": {**shown.table.settings, "state": "interrupted"}}
    )
    assert "the sweep is interrupted" in page.to_page([Shown("s", running)])


def test_a_torn_line_of_trials_is_left_out(made_sweep, tmp_path):
    root = made_sweep(tmp_path / "s", trials=5, points=0)
    with (root / "trials.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"trial": 6, "sta')
    assert len(shown_of(root).trials) == 5


def test_names_in_a_sweep_add_no_element():
    def made(word: str) -> Shown:
        row = EngineRow(
            id="a", runtime=word, precision=word, route=word, trial=1, rung=0, front="cannot tell",
            front_against=[word, "b"], params={"route": word, word: word}, timed="by trial",
            metrics={word: Measurement(value=1.0, unit="metric")}, recipe_hash=word,
            energy={"meter": word, "rails": [word], "conditions_before": {word: {word: 1}}},
            energy_gross_mj=not_measured("mJ", word),
        )  # fmt: skip
        base = EngineRow(id="b", runtime="x", precision="x", baseline=word, front="yes")
        settings = {
            "objectives": [word], "state": word, "counts": {word: 1}, "measure_on": word,
            "rungs": [{"rung": word, "name": word, "epochs": word}],
        }  # fmt: skip
        trial = {"trial": 1, "state": word, "reason": word, "params": {word: word}, "rung": word}
        record = {
            "device": word, "created": word, "status": word, "reason": word, "verdict_line": word,
            "primary": word, "facts": {"board": {"model": word}},
            "rows": [{"engine": row.model_dump(mode="json"), "built": word, "check": word,
                      "check_text": word, "rate": {"held_hz": word, "wanted_hz": word},
                      "energy": {"meter": word}}],
        }  # fmt: skip
        table = ResultTable(command="sweep", primary=word, rows=[row, base], settings=settings)
        failed = {**record, "rows": []}
        return Shown(word, table, trials=(trial,), devices=(record, failed))

    calm, wild = page_of([made("calm")]), page_of([made(HOSTILE)])
    assert re.findall(r"<(\w+)", calm) == re.findall(r"<(\w+)", wild)
    assert "<img" not in wild and "\x1b" not in wild
    assert "<img" not in markdown_of([made(HOSTILE)])


# ── devices and energy ───────────────────────────────────────────────────────────────────────────


def record(emulated: bool = False) -> dict:
    how = "emulated" if emulated else "measured"
    engine = EngineRow(
        id="e",
        runtime="tensorrt",
        precision="int8",
        shipped=True,
        metrics={"accuracy": Measurement(value=0.91, unit="fraction", n=256)},
        drop_points=Measurement(value=0.2, unit="points", n=256, low=-0.5, high=0.9),
        latency_p50_ms=Measurement(value=1.25, unit="ms", n=900, low=1.2, high=1.3, how=how),
    )
    return {
        "device": "orin1", "created": "2026-11-25", "status": "done", "emulated": emulated,
        "primary": "accuracy", "points_per_unit": 100.0, "bundle": "h", "verdict_line": "ships there",
        "facts": {"board": {"model": "Orin Nano"}},
        "rows": [{
            "engine": engine.model_dump(mode="json"), "built": "trtexec", "check": "passed",
            "check_text": "52 dB, 32 inputs",
            "end_to_end_ms": {"decode": {"value": 2.5, "unit": "ms", "how": how}},
            "energy_gross_mj": {"value": 14.5, "unit": "mJ", "n": 5, "low": 14.1, "high": 15.0, "how": how},
            "energy": {"meter": "INA3221", "how": "integrated", "scope": "module-input",
                       "rails": ["VDD_IN"], "achieved_hz": {"VDD_IN": 99.2}, "idle_w": 3.9},
        }],
    }  # fmt: skip


def test_a_device_stands_with_its_figures_and_every_label_of_its_energy():
    source = page.to_page(
        [Shown("out", ResultTable(command="compress", rows=[]), devices=(record(),))]
    )
    table = re.search(r'<table class="sorts devices">.*?</table>', source, re.DOTALL)[0]
    assert "orin1" in table and "Orin Nano" in table and "★ ships there" in table
    assert 'data-field="latency_p50_ms" data-value="1.25"' in table and "1.20 … 1.30" in table
    assert 'data-field="energy_gross_mj" data-value="14.5"' in table and "decode 2.50" in table
    labels = re.search(r'<table class="sorts energy">.*?</table>', source, re.DOTALL)[0]
    for word in ("INA3221", "integrated", "module-input", "VDD_IN 99.2", "3.90"):
        assert word in labels


def test_an_emulated_device_shows_no_time_and_no_joule():
    emulated = Shown("out", ResultTable(command="compress", rows=[]), devices=(record(True),))
    source = page.to_page([emulated])
    table = re.search(r'<table class="sorts devices">.*?</table>', source, re.DOTALL)[0]
    assert "1.25" not in table and "14.5" not in table and "2.50" not in table
    assert table.count("— (emulated)") >= 3 and 'data-value="0.91"' in table


def test_deploys_of_another_bundle_are_not_shown_and_a_damaged_one_is_told(sweep):
    folder = next((sweep / "points").iterdir())
    kept = folder / "measurements"
    kept.mkdir()
    (kept / "deploy-orin1-1.json").write_text(json.dumps(record()), encoding="utf-8")
    assert shown_of(folder).devices == ()
    own = {**record(), "bundle": shown_of(folder).hash}
    (kept / "deploy-orin1-2.json").write_text(json.dumps(own), encoding="utf-8")
    assert len(shown_of(folder).devices) == 1
    (kept / "deploy-orin1-3.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"deploy-orin1-3.json cannot be read"):
        shown_of(folder)
    for file in kept.iterdir():
        file.unlink()
    kept.rmdir()
