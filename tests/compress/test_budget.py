"""The choice: proven before plausible, fastest first, and a line that says why."""

from __future__ import annotations

import math

import pytest
from edgeml.artifact.measurement import Measurement, not_measured
from edgeml.artifact.result_row import EngineRow
from edgeml.compress.budget import (
    Budget,
    before_any_work,
    best_first,
    by_builds,
    choose,
    judge,
)
from edgeml.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st


def drop(value, high=None, n=5000):
    return Measurement(value=value, unit="points", n=n, high=value + 0.2 if high is None else high)


def row(name, p50, loss=0.1, high=None, *, spread=0.01, size=1_000_000, n=5000, **fields):
    runtime, precision = name.split()[:2]
    p50_ms = Measurement(
        value=p50, unit="ms", n=100, low=p50 * (1 - spread), high=p50 * (1 + spread)
    )
    fields = {"runtime": runtime, "precision": precision, "size_bytes": size, **fields}
    if loss is not None:
        fields.setdefault("drop_points", drop(loss, high, n))
    return EngineRow(id=name, latency_p50_ms=p50_ms, **fields)


INT8 = row("openvino int8", 0.13, route="nncf performance")
BF16 = row("openvino bf16", 0.22)
FP32 = row("onnxruntime fp32", 0.40, 0.0)


# ── the budget ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_a_budget_that_is_none_is_refused(bad):
    with pytest.raises(InputError, match="--max-drop"):
        Budget(bad)


def test_proven_by_the_bound_plausible_by_the_value_else_missed():
    assert judge(drop(0.4, 1.0), Budget(1.0)) == "proven"
    assert judge(drop(0.4, 1.1), Budget(1.0)) == "plausible"
    assert judge(drop(1.4, 2.0), Budget(1.0)) == "missed"


def test_rounding_of_floats_does_not_miss_a_budget():
    assert judge(drop(0.1 + 0.2, 0.1 + 0.2), Budget(0.3)) == "proven"


def test_without_a_budget_or_a_value_there_is_no_verdict():
    assert judge(drop(0.4), Budget()) is None
    assert judge(not_measured("points", "no data"), Budget(1.0)) is None


@settings(deadline=None)
@given(st.floats(-5, 5), st.floats(0, 3), st.floats(0, 5), st.floats(0, 5))
def test_a_wider_budget_never_gives_a_worse_verdict(value, above, limit, more):
    order = ["missed", "plausible", "proven"]
    found = drop(value, value + above)
    before, after = judge(found, Budget(limit)), judge(found, Budget(limit + more))
    assert order.index(after) >= order.index(before)


def test_too_few_samples_are_told_before_any_work():
    assert before_any_work(5000, Budget(1.0)) is None
    assert before_any_work(100, Budget(1.0)) == (
        "n = 100 cannot prove a drop ≤ 1.0 points even if no answer changes: about 300 needed"
    )
    assert "give a larger budget" in before_any_work(5000, Budget(0.0))


def test_nothing_is_said_beforehand_of_metrics_that_are_not_right_or_wrong():
    assert before_any_work(10, Budget(1.0), right_or_wrong=False) is None
    assert before_any_work(10, Budget()) is None


# ── the choice ───────────────────────────────────────────────────────────────────────────────────


def test_the_fastest_proven_ships_with_the_line_of_the_table():
    choice = choose([FP32, BF16, INT8], Budget(1.0))
    assert choice.row is INT8 and choice.exit_code == 0 and choice.nearest is None
    assert choice.line == (
        "ships openvino int8 (nncf performance): the fastest of 3, "
        "drop below 1.0 points proven (n = 5,000)"
    )


def test_a_proven_one_ships_before_a_faster_plausible_one():
    plausible = row("openvino int8", 0.1, 0.6, 1.4)
    choice = choose([plausible, BF16, FP32], Budget(1.0))
    assert choice.row is BF16
    assert "the fastest of 2 proven among 3" in choice.line


def test_where_none_is_proven_the_fastest_plausible_ships_and_the_line_says_so():
    rows = [row("openvino int8", 0.1, 0.6, 1.6, n=360), row("openvino bf16", 0.2, 0.5, 1.5, n=360)]
    choice = choose(rows, Budget(1.0))
    assert choice.row is rows[0] and choice.exit_code == 0
    assert choice.line == (
        "ships openvino int8: the fastest of 2, drop 0.60 points, below 1.0 not proven: "
        "n = 360, about 2,300 needed"
    )


def test_a_value_that_lies_on_the_budget_is_proven_by_no_number_of_samples():
    choice = choose([row("openvino int8", 0.1, 1.0, 1.6, n=360)], Budget(1.0))
    assert "not proven: n = 360, and no larger set would prove it" in choice.line
    almost = choose([row("openvino int8", 0.1, 1.0 - 1e-200, 1.6, n=360)], Budget(1.0))
    assert almost.line == choice.line


def test_strict_ships_proven_ones_only_and_keeps_the_nearest_bound():
    rows = [row("openvino int8", 0.1, 0.2, 1.6, n=360), row("openvino bf16", 0.2, 0.5, 1.5, n=360)]
    choice = choose(rows, Budget(1.0), strict=True)
    assert choice.exit_code == 3
    assert choice.row is choice.nearest is rows[1]
    assert "--strict" in choice.line and "95 % bound 1.50" in choice.line


def test_none_plausible_is_exit_3_and_says_by_how_much():
    rows = [row("openvino int8", 0.1, 3.0), row("onnxruntime int8", 0.2, 1.46)]
    choice = choose(rows, Budget(1.0))
    assert choice.exit_code == 3
    assert choice.row is choice.nearest is rows[1]
    assert choice.line == (
        "budget missed: none of 2 keeps the drop below 1.0 points; nearest is onnxruntime int8, "
        "drop 1.46 points, 0.46 too many (n = 5,000)"
    )


def test_a_hair_over_the_budget_is_not_told_as_zero():
    choice = choose([row("openvino int8", 0.1, 1.004)], Budget(1.0))
    assert "0.0040 too many" in choice.line


def test_among_equally_fast_ones_the_more_accurate_ships():
    worse = row("openvino int8", 0.100, 0.3, spread=0.05)
    better = row("onnxruntime int8", 0.104, 0.1, spread=0.05)
    choice = choose([worse, better, FP32], Budget(1.0))
    assert choice.row is better
    assert "level with the fastest of 3 and more accurate" in choice.line


def test_among_equally_fast_and_accurate_ones_the_smaller_ships():
    big = row("openvino int8", 0.100, 0.1, spread=0.05, size=2_000_000)
    small = row("onnxruntime int8", 0.104, 0.3 - 0.2, spread=0.05, size=1_000_000)
    choice = choose([big, small], Budget(1.0))
    assert choice.row is small
    assert "and smaller" in choice.line


def test_a_slower_one_is_not_taken_for_its_accuracy():
    fast = row("openvino int8", 0.10, 0.3)
    slow = row("onnxruntime int8", 0.12, 0.0)
    assert choose([fast, slow], Budget(1.0)).row is fast


def test_with_a_precision_flag_only_that_ships_and_the_line_names_what_is_faster():
    slow_int8 = row("openvino int8", 0.5, size=300_000)
    choice = choose([slow_int8, row("onnxruntime fp32", 0.4, 0.0)], Budget(1.0), {"int8"})
    assert choice.row is slow_int8
    assert choice.line.endswith("; onnxruntime fp32 would be faster: 0.400 ms, drop 0.00 points")


def test_a_faster_one_that_misses_the_budget_is_not_recommended():
    barred = row("openvino bf16", 0.01, 9.0)
    choice = choose([INT8, barred], Budget(1.0), {"int8"})
    assert "faster" not in choice.line


def test_a_reference_that_is_faster_is_told():
    reference = row("torch fp32", 0.01, None, status="reference")
    choice = choose([reference, INT8], Budget(1.0))
    assert choice.row is INT8
    assert choice.line.endswith("; the reference torch fp32 is faster: 0.0100 ms")


def test_without_a_budget_the_fastest_allowed_ships():
    choice = choose([row("openvino int8", 0.1, 9.0), FP32], Budget(None))
    assert choice.row.precision == "int8"
    assert "no budget set" in choice.line
    assert choose([row("openvino int8", 0.1, 9.0), FP32], Budget(None), {"fp32"}).row is FP32


def test_without_data_speed_alone_chooses_and_the_line_says_so():
    rows = [
        row("openvino int8", 0.1, drop_points=not_measured("points", "no data")),
        row("openvino fp32", 0.3, drop_points=not_measured("points", "no data")),
    ]
    choice = choose(rows, Budget(1.0), scored=False)
    assert choice.row is rows[0] and choice.exit_code == 0
    assert choice.line.endswith("its drop was not measured: no data")


def test_rows_that_failed_or_were_screened_out_never_ship():
    screened = row("openvino int8", 0.01, status="screened")
    failed = EngineRow(id="f", runtime="openvino", precision="int8", status="failed", reason="no")
    choice = choose([screened, failed, BF16], Budget(1.0))
    assert choice.row is BF16
    assert "of 2" in choice.line  # the screened one was tried, the failed one was not built


def test_the_only_one_left_is_not_told_as_the_only_one_tried():
    failed = row("openvino fp32", 1.0, status="failed", reason="parity failed")
    assert "the only one left of 2" in choose([row("openvino int8", 1.0), failed], Budget(1.0)).line
    assert "the only one tried" in choose([row("openvino int8", 1.0)], Budget(1.0)).line


def test_nothing_built_is_exit_1_with_the_first_reason():
    failed = EngineRow(
        id="f", runtime="openvino", precision="int8", status="failed", reason="unsupported Foo"
    )
    choice = choose([failed, FP32], Budget(1.0), {"int8"})
    assert choice.row is None and choice.exit_code == 1
    assert "no int8 engine was built; 1 failed, openvino int8: unsupported Foo" in choice.line


def test_for_throughput_the_most_inferences_a_second_is_fastest():
    def rate(value):
        return Measurement(value=value, unit="1/s", low=value * 0.99, high=value * 1.01)

    quick = row("openvino int8", 0.1, throughput_per_s=rate(1000))
    wide = row("onnxruntime int8", 0.2, throughput_per_s=rate(2000))
    assert choose([quick, wide], Budget(1.0), objective="throughput").row is wide
    assert choose([quick, wide], Budget(1.0)).row is quick


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0.1, 10),
            st.floats(-1, 3),
            st.floats(0, 2),
            st.sampled_from(["int8", "bf16", "fp32"]),
        ),
        min_size=1,
        max_size=8,
    ),
    st.floats(0, 2),
    st.booleans(),
    st.sampled_from([None, {"int8"}]),
)
def test_the_rule_holds_for_any_rows(engines, limit, strict, allowed):
    rows = [
        row(f"openvino {precision} {i}", p50, loss, loss + above)
        for i, (p50, loss, above, precision) in enumerate(engines)
    ]
    budget = Budget(limit)
    choice = choose(rows, budget, allowed, strict)
    may = [r for r in rows if allowed is None or r.precision in allowed]
    proven = [r for r in may if judge(r.drop_points, budget) == "proven"]
    plausible = [r for r in may if judge(r.drop_points, budget) == "plausible"]
    if not may:
        assert choice.row is None and choice.exit_code == 1
    elif proven:
        assert choice.row in proven and choice.exit_code == 0
    elif plausible and not strict:
        assert choice.row in plausible and choice.exit_code == 0
    else:
        assert choice.row is choice.nearest and choice.exit_code == 3
    if choice.exit_code == 0:
        tier = proven or plausible
        fastest = min(r.latency_p50_ms.high for r in tier)
        assert choice.row.latency_p50_ms.low <= fastest * 1.0001


def test_best_first_puts_what_ships_at_the_head_and_failures_at_the_end():
    reference = row("torch fp32", 1.0, None, status="reference")
    failed = EngineRow(id="f", runtime="openvino", precision="int8", status="failed", reason="no")
    screened = row("onnxruntime int8", 0.05, status="screened")
    rows = [failed, reference, screened, FP32, BF16, INT8]
    choice = choose(rows, Budget(1.0), {"bf16"})
    assert best_first(rows, choice) == [BF16, INT8, FP32, screened, reference, failed]


# ── limits of the engine ─────────────────────────────────────────────────────────────────────────


def test_several_builds_have_the_last_word_on_a_limit():
    limits, accuracy = Budget(0.5, max_p50_ms=0.129), Budget(0.5)
    choice = choose([INT8, BF16], limits)
    assert choice.exit_code == 3 and "p50 0.130 ms of 0.129" in choice.line
    proven, plausible, missed = ([{"verdict": w}] for w in ("proven", "plausible", "missed"))
    again = by_builds(choice, accuracy, proven)
    assert again.exit_code == 0 and again.row is INT8 and again.nearest is None
    assert "within the limits over several builds, drop below 0.5 points proven" in again.line
    assert by_builds(choice, accuracy, plausible).exit_code == 0
    assert by_builds(choice, accuracy, missed) is choice
    assert by_builds(choice, accuracy, plausible, strict=True) is choice
    lossy = choose([row("openvino int8", 0.13, 2.0)], limits)
    assert by_builds(lossy, accuracy, proven) is lossy


def test_the_nearest_is_not_one_that_lost_everything():
    broken = row("openvino int8", 0.10, 60.0)
    slow = row("onnxruntime int8", 0.21, 0.1)
    assert choose([broken, slow], Budget(0.5, max_p50_ms=0.20)).row is slow
    little = row("openvino int8", 0.10, 0.51, high=0.7)
    assert choose([little, slow], Budget(0.5, max_p50_ms=0.20)).row is little
