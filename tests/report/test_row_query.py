"""`--pick`'s conditions: read by Python's parser, never run, refused with their place."""

from __future__ import annotations

import pytest
from edgeml.artifact.measurement import Measurement, not_measured
from edgeml.artifact.result_row import EngineRow
from edgeml.errors import InputError
from edgeml.report.row_query import LONGEST, columns_of, read_query
from hypothesis import given, settings
from hypothesis import strategies as st


def m(value, low=None, high=None, unit="ms"):
    return Measurement(value=value, unit=unit, n=900, low=low, high=high)


ROW = columns_of(
    EngineRow(
        id="a",
        runtime="openvino",
        precision="int8",
        metrics={"accuracy": m(0.91, unit="fraction"), "top-5": m(0.99, unit="fraction")},
        drop_points=m(0.4, -0.1, 0.9, "points"),
        latency_p50_ms=m(0.2, 0.19, 0.21),
        latency_p99_ms=not_measured("ms", "no time"),
        size_bytes=312_345,
        shipped=True,
        params={"latency": 0.6, "kinds": "block"},
    )
)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("latency_p50_ms <= 0.2 and drop_points < 1", True),
        ("latency_p50_ms < 0.2", False),
        ("latency_p50_ms.high <= 0.21 and latency_p50_ms.n > 800", True),
        ("0.1 < latency_p50_ms <= 0.2", True),
        ("0.2 < latency_p50_ms or size_bytes < 4e5", True),
        ("not (drop_points > 0.3 and accuracy > 0.9)", False),
        ("not (drop_points > 0.5 or accuracy < 0.9)", True),
        ("not latency_p50_ms > 1 and not shipped == False", True),
        ("metrics.accuracy >= 0.91 and metrics['top-5'] == 0.99", True),
        ("runtime == 'openvino' and precision != \"fp32\"", True),
        ("drop_points > -1 and 1 > drop_points", True),
        ("shipped and params.kinds == 'block' and params.latency < 1", True),
        ("not shipped", False),
        # What was not measured proves nothing, whichever way it is asked.
        ("latency_p99_ms < 1e9", False),
        ("not latency_p99_ms < 1e9", False),
        ("latency_p99_ms.how == 'not measured'", True),
    ],
)
def test_a_condition_reads_as_it_is_written(text, holds):
    assert read_query(text, [ROW]).condition.holds(ROW) is holds


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "is empty"),
        ("latency_p50_ms <=", r"at its end"),
        ("latency_p50_ms < 0.2 && shipped", r"at character 23 \('& shipped'\)"),
        ("latency_p50_ms < 0.2 ms", r"at character 2\d "),
        ("latency_p50_ms = 0.2", "at character"),
        ("latency_p50 < 1", r"at character 1 .*no column latency_p50, did you mean latency_p50_ms"),
        ("shipped and latencyy < 1", "at character 13"),
        ("runtime == openvino", "at character 12 .*a text wants quotes"),
        ("latency_p50_ms < latency_p99_ms", "two columns are not compared"),
        ("runtime < 'z'", "at character 11 .*== or !="),
        ("runtime == 3", "runtime is a text, not a number"),
        ("latency_p50_ms == 'fast'", "latency_p50_ms is a number, not a text"),
        ("latency_p50_ms", "latency_p50_ms is a number, not a true/false"),
        ("1 < 2", "one side must be a column"),
        ("0.2", "a comparison is wanted"),
        ("latency_p50_ms in (1, 2)", "only < <= > >= == != compare"),
        ("latency_p50_ms + 1 < 2", "one side must be a column"),
        ("latency_p50_ms < 1 + 1", "at character 18"),
        ("latency_p50_ms < 1j", "a number or a text"),
        ("abs(drop_points) < 1", "one side must be a column"),
        ("__import__('os').system('true')", "a comparison is wanted"),
        ("[x for x in 'ab'] == shipped", "at character"),
        ("lambda: 0", "a comparison is wanted"),
        ("(shipped := True)", "a comparison is wanted"),
        ("f'{shipped}' == runtime", "at character"),
        ("a\0b", "does not parse"),
        ("é == 'x' and nothing < 1", "at character 1 "),
        ("shipped and 'é' == runtime and nothing < 1", "at character 32"),
        ("x" * (LONGEST + 1), f"longer than {LONGEST}"),
        ("(" * 500 + "shipped" + ")" * 500, "does not parse|nested"),
    ],
)
def test_what_is_no_condition_is_refused_in_one_line_with_its_place(text, where):
    with pytest.raises(InputError, match=where) as caught:
        read_query(text, [ROW])
    assert "\n" not in str(caught.value) and "--pick" in str(caught.value)


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        read_query(text, [ROW]).condition.holds(ROW)
    except InputError as e:
        assert "\n" not in str(e)


numbers = st.floats(-10, 10).map(lambda x: round(x, 2))
COMPARISONS = st.tuples(
    st.sampled_from(["drop_points", "latency_p50_ms"]),
    st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    numbers,
).map(lambda t: f"{t[0]} {t[1]} {t[2]}")
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda t: f"({' '.join(t)})"),
        inner.map(lambda text: f"(not {text})"),
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(CONDITIONS, numbers, numbers)
def test_it_means_what_python_means_and_is_at_distance_0_where_it_holds(text, drop, p50):
    row = {"drop_points": drop, "latency_p50_ms": p50}
    query = read_query(text, [row])
    assert query.condition.holds(row) == eval(text, {}, dict(row))
    assert (query.condition.distance(row) == 0) == query.condition.holds(row)


def test_what_is_missed_is_told_in_words():
    query = read_query("latency_p50_ms <= 0.15 and drop_points < 1 and latency_p99_ms < 2", [ROW])
    told = query.missed_by(ROW)
    assert told == (
        "latency_p50_ms 0.200000 (wanted <= 0.15), latency_p99_ms not measured (wanted < 2)"
    )
