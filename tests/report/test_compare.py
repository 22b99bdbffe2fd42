"""`report A B`: what changed, significantly or not, and what must not be compared."""

from __future__ import annotations

import json
import math

import pytest
from edgeml.artifact.measurement import Measurement
from edgeml.artifact.result_row import EngineRow, ResultTable
from edgeml.report.compare import compare, settings_changed
from edgeml.report.compare_table import comparison_json, comparison_lines, comparison_sections
from edgeml.report.page_data import Shown
from edgeml.report.page_files import json_of, markdown_of


def m(value, low=None, high=None, unit="ms", **more):
    return Measurement(value=value, low=low, high=high, unit=unit, n=5000, **more)


def dump(*args, **more):
    return m(*args, **more).model_dump(mode="json")


def shown(name, change, speedup, *, size=1000, reference=0.91, split="ab", hash_=None, **more):
    """A bundle whose engine changed by (value, low, high) points and is so many times faster."""
    rows = [
        EngineRow(
            id="e",
            runtime="openvino",
            precision="int8",
            shipped=True,
            metrics={"accuracy": m(0.9, 0.89, 0.91, "fraction")},
            change_points=m(*change, "points"),
            latency_p50_ms=m(1 / speedup[0]),
            speedup=m(*speedup, "ratio"),
            size_bytes=size,
        ),
        EngineRow(id="ref", runtime="torch", precision="fp32", status="reference"),
    ]

    def metric(value):
        return {"accuracy": dump(value, value - 0.008, value + 0.008, "fraction")}

    final = {
        "n": 5000,
        "split_hash": split,
        "change_points": dump(*change, "points"),
        "reference": {"id": "ref", "metrics": metric(reference)},
        "engine": {"id": "e", "metrics": metric(reference + change[0] / 100)},
    }
    values = {
        "command": "compress",
        "primary": "accuracy",
        "rows": rows,
        "final": final,
        "machine": {"cpu": "a CPU", "isa": ["avx2"], "cores": 2, "tools": {"openvino": "1"}},
        "settings": {"threads": 2, "batch": 1, "model": "net"},
    }
    fields = {k: more.pop(k) for k in list(more) if k in ResultTable.model_fields}
    return Shown(name, ResultTable(**{**values, **fields}), hash=hash_, **more)


A = shown("a", (-0.1, -0.3, 0.1), (7.0, 6.9, 7.1))


def by_key(*pair):
    return {change.key: change for change in compare(*pair)}


def test_a_faster_smaller_and_worse_engine_is_told_as_such():
    found = by_key(A, shown("b", (-2.0, -2.4, -1.6), (9.0, 8.8, 9.2), size=800))
    change = found["final.change_points"]
    assert change.says == "worse" and change.difference.value == pytest.approx(-1.9)
    half = math.hypot(0.4, 0.2)
    assert change.difference.low == pytest.approx(-1.9 - half)
    assert change.difference.high == pytest.approx(-1.9 + half)
    speed = found["speedup"]
    assert speed.says == "better" and speed.difference.value == pytest.approx(9 / 7)
    assert 1.25 < speed.difference.low < 9 / 7 < speed.difference.high < 1.33
    assert found["size_bytes"].says == "better" and found["size_bytes"].difference.value == -200
    assert found["latency_p50_ms"].says == "not comparable"


def test_what_the_intervals_do_not_show_is_no_difference():
    found = by_key(A, shown("b", (0.0, -0.2, 0.2), (7.05, 6.9, 7.2)))
    assert found["final.change_points"].says == "no difference shown"
    assert found["speedup"].says == "no difference shown"
    assert found["size_bytes"].says == "equal"


def test_the_interval_is_newcombes_where_independent_samples_are_compared():
    """56 of 70 against 48 of 80: 0.0524 to 0.3339 (Newcombe 1998, method 10, case a)."""

    def wilson(k, n, z=1.959964):
        p = k / n
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return p, (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)

    def final(k, n, reference):
        return {
            "n": n,
            "split_hash": "ab",
            "reference": {"id": "ref", "metrics": {"accuracy": dump(reference, unit="fraction")}},
            "engine": {"id": "e", "metrics": {"accuracy": dump(*wilson(k, n), "fraction")}},
        }

    one = shown("a", (0, -1, 1), (1, 1, 1), final=final(48, 80, 0.5))
    two = shown("b", (0, -1, 1), (1, 1, 1), final=final(56, 70, 0.6))
    found = by_key(one, two)["final.engine.metrics.accuracy"]
    assert found.difference.value == pytest.approx(0.2)
    assert found.difference.low == pytest.approx(0.0524, abs=5e-5)
    assert found.difference.high == pytest.approx(0.3339, abs=5e-5)
    assert found.says == "better" and "another reference" in found.why


@pytest.mark.parametrize(
    ("other", "key", "why"),
    [
        ({"split": "cd"}, "final.engine.metrics.accuracy", "different test samples"),
        ({"primary": "F1"}, "final.engine.metrics.accuracy", "different metrics"),
        ({"final": None}, "metrics.accuracy", "not both have a test score"),
        ({"machine": {"cpu": "another"}}, "speedup", "different machines"),
        (
            {"machine": {"cpu": "a CPU", "isa": ["avx2"], "cores": 1}},
            "speedup",
            "on 2 and on 1 cores",
        ),
        ({"settings": {"threads": 1, "batch": 1, "model": "net"}}, "speedup", "threads 2 and 1"),
        ({"settings": {"threads": 2, "batch": 1, "model": "x"}}, "speedup", "different networks"),
    ],
)
def test_what_must_not_be_compared_is_not(other, key, why):
    change = by_key(A, shown("b", (-2.0, -2.4, -1.6), (9.0, 8.8, 9.2), **other))[key]
    assert change.difference is None and change.says == "not comparable" and why in change.why


@pytest.mark.parametrize("first", ["a", "b"])
def test_a_bench_of_both_has_the_last_word_on_speed(first):
    """edgeml bench of the two, whichever was named first: above 1 the other is faster."""
    names = {"out-a": "hash-a", "out-b": "hash-b"}
    one, two = ("out-a", "out-b") if first == "a" else ("out-b", "out-a")
    ratio = (0.5, 0.4, 0.6) if first == "a" else (2.0, 1 / 0.6, 1 / 0.4)
    bench = {
        "machine": {"cpu": "a quiet CPU"},
        "settings": {
            "bundles": names,
            "comparisons": {two: {"against": one, "verdict": "", "ratio": dump(*ratio, "ratio")}},
        },
    }
    a = shown("a", (0, -1, 1), (7.0, 6.9, 7.1), hash_="hash-a")
    b = shown("b", (0, -1, 1), (7.0, 6.9, 7.1), hash_="hash-b", benches=(bench,))
    speed = by_key(a, b)["speedup"]
    assert speed.says == "worse" and speed.difference.value == pytest.approx(0.5)
    assert speed.difference.low == pytest.approx(0.4) and "a quiet CPU" in speed.why


def test_a_result_that_ships_nothing_is_compared_with_none():
    bare = Shown("s", ResultTable(command="sweep", rows=[]))
    assert compare(A, bare) == [] and compare(bare, A) == []
    assert "comparison" in json.loads(json_of([A, bare]))


def test_what_was_made_differently_is_told():
    b = shown(
        "b", (0, -1, 1), (7, 6, 8), recipe={"precisions": ["int8"], "seed": 1},
        machine={"cpu": "a CPU", "isa": ["avx2"], "cores": 2, "tools": {"openvino": "2"}},
    )  # fmt: skip
    told = {name: (one, two) for name, one, two in settings_changed(A, b)}
    assert told["version openvino"] == ("1", "2")
    assert told["recipe seed"] == ("none", "1")
    assert "setting threads" not in told and "what ships" not in told


def test_the_same_figures_stand_in_every_file():
    b = shown("<b>", (-2.0, -2.4, -1.6), (9.0, 8.8, 9.2), size=800)
    (told,) = comparison_json([A, b])
    by = {change["key"]: change for change in told["changes"]}
    assert json.loads(json_of([A, b]))["comparison"] == json.loads(json.dumps([told]))
    page = comparison_sections([A, b])
    for change in by.values():
        for part in ("a", "b", "difference"):
            value = (change[part] or {}).get("value")
            cell = page.split(f'data-key="{change["key"]}"')[1].split(f'data-field="{part}"')[1]
            if value is not None:
                assert cell.startswith(f' data-value="{json.dumps(value)}"')
    assert "<b>" not in page
    lines = "\n".join(comparison_lines([A, b]))
    assert "−0.10 → −2.00; −1.90 (−2.35 … −1.45): worse" in lines
    assert "7.00 → 9.00; 1.29 × (1.25 … 1.32): better" in lines
    assert "−1.90" in markdown_of([A, b]) and "# What changed" in markdown_of([A, b])
