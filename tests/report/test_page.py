"""The page: every figure is the JSON's, no name is ever markup, nothing asks a network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from edgeml.artifact.measurement import Measurement, not_measured
from edgeml.artifact.result_row import EngineRow, ResultTable
from edgeml.errors import InputError
from edgeml.report import page
from edgeml.report.page_data import Shown, chart_data
from edgeml.report.page_files import csv_of, json_of, markdown_of, page_of, write_page
from edgeml.report.write import from_json, to_json

HOSTILE = [
    "</script><script>document.title='pwned'</script>",
    "<img src=x onerror=document.title='pwned'>",
    "<svg onload=document.title='pwned'>",
    '" onmouseover="document.title=1" x="',
    "' autofocus onfocus='document.title=1",
    "<!-- <script>",
    "--></script><h1>x</h1>",
    "<![CDATA[<script>1</script>]]>",
    "</title><script>1</script>",
    "</style><script>1</script>",
    "</textarea><iframe src=javascript:1>",
    "javascript:document.title=1",
    '<a href="javascript:document.title=1">press</a>',
    "<b>bold</b><sup>2</sup>",
    "&lt;script&gt;1&lt;/script&gt;",
    "&#60;script&#62;1",
    "$\\href{javascript:1}{x}$",
    "%{x}<extra>%{customdata}</extra>",
    "\u2028alert(1)\u2029\x00\x1b[31m\u202egnp",
    "${document.title=1}`{{constructor}}",
]


def m(value, low=None, high=None, unit="ms", how="measured"):
    return Measurement(value=value, low=low, high=high, unit=unit, n=5000, how=how)


def row(name, runtime="openvino", p50=0.134, change=-0.06, **fields):
    values = {
        "id": name,
        "runtime": runtime,
        "precision": "int8",
        "route": "nncf performance",
        "metrics": {"accuracy": m(0.979123, 0.975, 0.983, "fraction")},
        "change_points": m(change, change - 0.21, change + 0.2112, "points"),
        "drop_points": m(-change, -change - 0.19, -change + 0.19, "points"),
        "flips": m(0.003, 0.001, 0.006, "fraction"),
        "latency_p50_ms": m(p50, p50 * 0.98, p50 * 1.03),
        "latency_p99_ms": m(p50 * 1.1234567),
        "speedup": m(1.4 / p50, 1.3 / p50, 1.5 / p50, "ratio"),
        "size_bytes": 312_345,
        "energy_gross_mj": m(12.3456, 12.0, 12.9, "mJ"),
    }
    return EngineRow(**{**values, **fields})


def result(names=("plain",), **fields) -> ResultTable:
    """A result with every part that the page draws, named as told."""
    name = names[0]
    rows = [
        row(
            "a",
            shipped=True,
            verdict="proven",
            put_back=[{"node": name, "what": name, "snr_db": 11.25, "won_us": None}],
        ),
        row("b", "onnxruntime", 0.3, 0.2, latency_p90_ms=m(228.0, how="emulated"), reason=name),
        row("c", p50=0.4, status="screened", flips=not_measured("fraction", name), mark=name),
        EngineRow(id="d", runtime="-", precision="int8", route=name, status="failed", reason=name),
        row("e", "torch", 1.4, status="reference").model_copy(
            update={"change_points": None, "drop_points": None, "size_bytes": None}
        ),
    ]
    rows += [row(f"h{i}", route=n, warnings=[n]) for i, n in enumerate(names)]
    classes = [
        {
            "class": n,
            "n": 60 + i,
            "significant": i == 0,
            "change_points": m(i - 9.25, i - 12.5, i - 1.0, "points").model_dump(mode="json"),
        }
        for i, n in enumerate(names)
    ]
    values = {
        "command": "compress",
        "primary": "accuracy",
        "rows": rows,
        "verdict_line": f"ships openvino int8: {name}",
        "final": {"n": 650, "reads": 1, "split_hash": "ab", "by_class": classes},
        "budget": [
            {"part": "latency", "limit": "60%", "unit": "of plain INT8", "value": 0.5411}
            | {"bound": 0.5523, "verdict": "proven", "over": 0.0, "builds": 5}
        ],
        "steps": [
            {"step": "original", "latency_p50_ms": 1.4, "metric": 0.99, "size_bytes": None},
            {"step": "original, plain INT8", "latency_p50_ms": 0.2, "metric": 0.985},
            {"step": f"round 1: {name}", "ratio": 0.8221, "metric": 0.9501, "epochs": 2}
            | {"table_errors": [0.01, -0.02], "seconds": 12.4},
        ],
        "removed": [
            {"round": 1, "group": n, "kind": "channels", "layers": [n], "before": 64}
            | {"after": 16, "saved_us": 4.237, "importance_lost": 0.1501359}
            for n in names
        ],
        "layers": [
            {"name": n, "kind": n, "executed": n, "precision": n if i else None}
            | {"time_ms": 0.0031 * (i + 1), "macs": 1000 * i}
            for i, n in enumerate(names)
        ],
        "machine": {"cpu": name, "isa": ["avx2"], "tools": {"torch": name}},
        "settings": {"threads": 2, "batch": 1, "max_drop_points": 1.0, "data": name, "model": name},
        "warnings": [f"look: {name}"],
        "advice": [f"try: {name}"],
    }
    return from_json(to_json(ResultTable(**{**values, **fields})), "it")


class Reader(HTMLParser):
    """The page as a browser would take it: elements, attributes, cells and script texts."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.cells: list[tuple[dict[str, str], dict[str, str], str, list[str]]] = []
        self.texts: dict[str, str] = {}
        self._row: dict[str, str] = {}
        self._script: str | None = None
        self._table = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        values = {key: value or "" for key, value in attrs}
        self.elements.append((tag, values))
        if tag == "table":
            self._table = values["class"].split()[-1]
        if tag == "tr":
            self._row = values
        if tag == "td":
            self.cells.append((self._row, values, self._table, []))
        if tag == "script":
            self._script = values.get("id", "page")

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is not None:
            self.texts[self._script] = self.texts.get(self._script, "") + data
        elif self.cells:
            self.cells[-1][3].append(data)


def read(*tables: ResultTable, names=None) -> Reader:
    names = names or [f"out{i}" for i in range(len(tables))]
    return Reader(page.to_page([Shown(n, t) for n, t in zip(names, tables, strict=True)]))


PLOTLY = page.plotly_script


@pytest.fixture(autouse=True)
def short_plotly(monkeypatch):
    """A short script in the place of Plotly's 4.8 MB, where no chart is drawn."""
    monkeypatch.setattr(page, "plotly_script", lambda: "window.Plotly = {};\n")


@pytest.fixture
def whole_plotly(short_plotly, monkeypatch):
    """Plotly as it is installed."""
    monkeypatch.setattr(page, "plotly_script", PLOTLY)


# ── every figure is the JSON's ───────────────────────────────────────────────────────────────────


def test_every_figure_of_every_row_is_the_jsons():
    found, raw = read(result()), json.loads(to_json(result()))
    cells = {
        (row["data-id"], values["data-field"]): (values, "".join(said))
        for row, values, table, said in found.cells
        if table == "rows" and "data-field" in values
    }
    checked = 0
    for one in raw["rows"]:
        fields = {k: v for k, v in one.items() if isinstance(v, dict) and "value" in v}
        fields |= {f"metrics.{name}": v for name, v in one["metrics"].items()}
        for field, measured in fields.items():
            values, said = cells.pop((one["id"], field))
            if measured["value"] is None:
                assert "data-value" not in values and said == "not measured"
                continue
            for part in ("value", "low", "high"):
                if measured["low"] is not None or part == "value":
                    assert json.loads(values[f"data-{part}"]) == measured[part]
            assert values["data-how"] == measured["how"] and int(values["data-n"]) == measured["n"]
            assert ("emulated" in said) == (measured["how"] == "emulated")
            checked += 1
        if one["size_bytes"] is not None:
            assert json.loads(cells.pop((one["id"], "size_bytes"))[0]["data-value"]) == 312_345
    assert checked == 38
    # Whatever is left is a cell of something that this row does not have.
    assert not [key for key, (values, _) in cells.items() if "data-value" in values]


def test_what_a_cell_says_is_its_value_rounded():
    texts = {
        (row["data-id"], values["data-field"]): "".join(said)
        for row, values, table, said in read(result()).cells
        if table == "rows" and "data-field" in values
    }
    assert texts["a", "latency_p50_ms"] == "0.1340.131 … 0.138"
    assert texts["a", "metrics.accuracy"] == "97.91 %97.50 % … 98.30 %"
    assert texts["a", "change_points"] == "−0.06−0.27 … +0.15"
    assert texts["a", "drop_points"] == "0.06≤ 0.25"
    assert texts["a", "size_bytes"] == "0.3 MB"
    assert texts["b", "latency_p90_ms"] == "228 (emulated)"
    assert texts["a", "latency_p90_ms"] == "not measured"
    assert texts["e", "change_points"] == ""


def test_steps_removed_limits_and_classes_are_the_jsons():
    table = result(("cat", "dog"))
    found: dict[tuple[str, str], list[float]] = {}
    for _, values, name, _ in read(table).cells:
        if "data-value" in values:
            found.setdefault((name, values["data-field"]), []).append(
                json.loads(values["data-value"])
            )
    for name in ("metric", "latency_p50_ms", "ratio", "epochs", "seconds"):
        told = [step[name] for step in table.steps if step.get(name) is not None]
        assert found["steps", name] == told
    for name in ("round", "before", "after", "saved_us", "importance_lost"):
        assert found["removed", name] == [group[name] for group in table.removed]
    for name in ("time_ms", "macs"):
        assert found["layers", name] == [layer[name] for layer in table.layers]
    assert found["layers", "snr_db"] == found["put-back", "snr_db"] == [11.25]
    by_class = table.final["by_class"]
    assert found["classes", "n"] == [entry["n"] for entry in by_class]
    assert found["classes", "change_points"] == [e["change_points"]["value"] for e in by_class]
    assert found["budget", "value"] == [0.5411] and found["budget", "bound"] == [0.5523]


def test_every_point_of_the_charts_is_the_jsons():
    table = result()
    raw = {one["id"]: one for one in json.loads(to_json(table))["rows"]}
    data = json.loads(read(table).texts["chart-data"])
    assert data == json.loads(json.dumps(chart_data([Shown("out0", table)])))
    assert [point["kind"] for point in data["points"]][:4] == [
        "shipped",
        "measured",
        "screened",
        "reference",
    ]
    for point in data["points"]:
        for axis, values in point["values"].items():
            field = axis.removesuffix(" (emulated)").removeprefix("metrics.")
            one = raw[point["id"]]
            measured = one["metrics"].get(field) or one[field]
            if measured is None:
                # The reference's change, which is zero by definition.
                assert point["kind"] == "reference" and values == [0, None, None]
            elif field == "size_bytes":
                assert values == [measured, None, None]
            else:
                assert values == [measured["value"], measured["low"], measured["high"]]
    assert data["details"][0]["steps"]["rows"][2]["ratio"] == 0.8221
    assert data["details"][0]["classes"]["rows"][0]["value"] == -9.25
    assert [layer["us"] for layer in data["details"][0]["layers"]] == [
        layer["time_ms"] * 1e3 for layer in table.layers
    ]


def test_emulated_and_measured_never_share_an_axis():
    keys = [axis["key"] for axis in json.loads(read(result()).texts["chart-data"])["axes"]]
    assert "latency_p90_ms (emulated)" in keys and "latency_p90_ms" not in keys


def test_the_raw_json_is_whole():
    table = result(HOSTILE)
    assert from_json(read(table).texts["raw-0"], "raw") == table


# ── what it says ─────────────────────────────────────────────────────────────────────────────────


def test_three_lines_say_what_was_asked_what_ships_and_why():
    source = page.to_page([Shown("out", result(("digits",)), recipe={"precisions": ["int8"]})])
    (asked, recommended, why) = re.findall(r"<dd>(.*?)</dd>", source)[:3]
    assert "on digits; precision int8; a drop of at most 1.0 points of accuracy" in asked
    assert "latency at most 60%" in asked
    assert "p50 0.134 ms (measured), 10.4 × the reference&#x27;s speed, 0.3 MB" in recommended
    assert why.startswith("ships openvino int8: digits · test (n = 650, read once)")


def test_where_nothing_ships_the_page_says_so():
    rows = [row("a", verdict="missed", change=-4.0)]
    source = page.to_page([Shown("out", result(rows=rows))])
    assert "nothing: no engine ships" in source and "summary missed" in source


def test_an_empty_or_bare_result_is_a_page():
    assert "no verdict was given" in page.to_page([Shown("x", ResultTable(command="x", rows=[]))])


def test_several_results_say_what_must_not_be_compared():
    other = result(("plain",), machine={"cpu": "Cortex-A78AE"}, primary="F1")
    source = page.to_page([Shown("one", result()), Shown("two", other)])
    assert "timed on different machines" in source and "scored by different metrics" in source
    assert "timed in separate runs" in page.to_page([Shown("one", result()), Shown("2", result())])


def test_without_plotly_the_tables_stand_alone(monkeypatch):
    monkeypatch.setattr(page, "plotly_script", lambda: None)
    found = read(result())
    assert "plotly" not in found.texts and len(found.cells) > 100
    assert "pip install" in page.to_page([Shown("out", result())])


# ── text from files, and the network ─────────────────────────────────────────────────────────────


def test_twenty_hostile_names_add_no_element_and_no_attribute():
    assert len(HOSTILE) == 20
    calm = [f"name {i}" for i in range(20)]
    for name in HOSTILE:
        names = [name, *(n for n in HOSTILE if n != name)]
        wild = read(result(names), names=[name])
        plain = read(result(calm), names=["name"])
        assert [tag for tag, _ in wild.elements] == [tag for tag, _ in plain.elements]
        assert [set(a) for _, a in wild.elements] == [set(a) for _, a in plain.elements]
        for one in ("chart-data", "raw-0"):
            assert not set("<>&\u2028\u2029") & set(wild.texts[one])


def test_only_the_two_scripts_it_was_written_with_may_run_and_nothing_is_fetched(whole_plotly):
    found = read(result())
    (policy,) = [a["content"] for tag, a in found.elements if "http-equiv" in a]
    plotly = gzip.decompress(base64.b64decode(found.texts["plotly"])).decode("utf-8")
    assert plotly == page.plotly_script() and "plotly.js v" in plotly[:200]
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in (found.texts["page"], plotly)
    ]
    assert f"script-src {' '.join(hashes)};" in policy and "default-src 'none'" in policy
    assert not [a for _, a in found.elements if "src" in a or "href" in a]
    assert len(page.to_page([Shown("out", result())])) < 2_500_000


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def test_one_result_gets_a_page_beside_the_files_it_always_had(tmp_path):
    made = write_page([Shown("out", result())], tmp_path / "page")
    assert [path.name for path in made] == [f"report.{s}" for s in ("html", "md", "csv", "json")]
    assert made[3].read_text(encoding="utf-8") == to_json(result())
    with pytest.raises(InputError, match=r"report.html exists"):
        write_page([Shown("out", result())], tmp_path / "page")


def test_several_results_are_told_apart_in_every_file():
    one, two = Shown("=one", result()), Shown("two", result(rows=[row("z", gpu_compute_ms=m(1))]))
    assert [b["bundle"] for b in json.loads(json_of([one, two]))["bundles"]] == ["=one", "two"]
    lines = csv_of([one, two]).splitlines()
    assert lines[0].startswith("bundle,id,") and len(lines) == 1 + len(one.table.rows) + 1
    assert lines[1].startswith("'=one,a,") and lines[-1].startswith("two,z,")
    assert "# edgeml compress: two" in markdown_of([one, two])


def test_a_free_field_that_cannot_be_drawn_is_one_line():
    with pytest.raises(InputError, match="out: a result that no page can be drawn of"):
        page_of([Shown("out", result(removed=[{"round": {}, "layers": 3}]))])


# ── in a browser ─────────────────────────────────────────────────────────────────────────────────

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium")
def test_a_browser_draws_every_chart_and_runs_no_name(tmp_path, whole_plotly):
    place = tmp_path / "page.html"
    shown = [Shown(HOSTILE[0], result(HOSTILE)), Shown(HOSTILE[1], result(HOSTILE[::-1]))]
    place.write_text(page.to_page(shown), encoding="utf-8")
    ran = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--virtual-time-budget=10000", "--enable-logging=stderr"),
            *(f"--user-data-dir={tmp_path / 'profile'}", place.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert "CONSOLE" not in ran.stderr
    assert 'data-drawn="yes"' in ran.stdout
    assert "pwned" not in re.findall(r"<title>(.*?)</title>", ran.stdout)[0].split("&lt;")[0]
    drawn = Drawn(ran.stdout)
    # Two trade-off fronts' points, two waterfalls and two charts of classes.
    assert drawn.points >= 2 * (4 + 20) + 2 * 20
    assert drawn.bars >= 2 * 4
    assert not drawn.links and not drawn.handlers and not drawn.foreign


class Drawn(HTMLParser):
    """Counts what the browser holds in the end: points, bars, and anything a name brought in."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.points = self.bars = 0
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.foreign: list[str] = []
        self._in_bar = False
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        values = {key: value or "" for key, value in attrs}
        names = values.get("class", "").split()
        self.points += tag == "path" and "point" in names
        self.bars += tag == "g" and "point" in names
        if tag == "a" and (values.get("href") or values.get("xlink:href")):
            self.links.append(str(values))
        self.handlers += [key for key in values if key.startswith("on")]
        if tag in ("img", "iframe", "object", "embed") and values.get("src"):
            self.foreign.append(str(values))
