"""The table: nothing cut, nothing mixed, nothing that a file's text could do to a terminal."""

from __future__ import annotations

import doctest
import io
from importlib import import_module

import pytest
from edgeml.artifact.measurement import Measurement, not_measured
from edgeml.artifact.result_row import EngineRow, ResultTable
from edgeml.report.table import all_warnings, clean, lines, print_table
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len


def m(value, low=None, high=None, unit="ms", n=5000, how="measured"):
    return Measurement(value=value, low=low, high=high, unit=unit, n=n, how=how)


def engine(runtime, precision, route=None, p50=0.134, change=-0.06, **fields):
    values = {
        "id": f"{runtime}-{precision}",
        "runtime": runtime,
        "precision": precision,
        "route": route,
        "metrics": {"accuracy": m(0.9791, unit="fraction")},
        "latency_p50_ms": m(p50),
        "latency_p99_ms": m(p50 * 1.1),
        "speedup": m(1.4 / p50, unit="ratio"),
        "size_bytes": 312_000,
    }
    if change is not None:
        values["change_points"] = m(change, change - 0.21, change + 0.21, "points")
        values["drop_points"] = m(-change, unit="points")
        values["flips"] = m(0.003, unit="fraction")
    return EngineRow(**{**values, **fields})


def table(*rows, **fields):
    values = {
        "command": "compress",
        "primary": "accuracy",
        "rows": list(rows),
        "verdict_line": "ships openvino int8: the fastest of 6, "
        "drop below 1.0 points proven (n = 5,000)",
        "machine": {"cpu": "Xeon 6975P", "isa": ["avx512f", "avx512_vnni"]},
        "settings": {"threads": 2, "batch": 1},
    }
    return ResultTable(**{**values, **fields})


SHIPPED = engine("openvino", "int8", "nncf performance", shipped=True, verdict="proven")
OTHER = engine("onnxruntime", "int8", "onnxruntime percentile", p50=0.181, change=-0.02)
REFERENCE = engine("torch", "fp32", p50=1.4, change=None, status="reference", size_bytes=None)
FAILED = EngineRow(
    id="f",
    runtime="-",
    precision="int8",
    route="nncf percentile",
    status="failed",
    reason="NNCF's OpenVINO route has no percentile calibration",
)
SCREENED = engine(
    "onnxruntime", "fp32", p50=0.4, change=0.0, status="screened", reason="3.0 × slower"
)
FULL = table(SHIPPED, OTHER, SCREENED, REFERENCE, FAILED)


def drawn(result, width=None):
    return [text for text, _ in lines(result, width)]


def test_docstring_examples():
    assert doctest.testmod(import_module("edgeml.report.table")).failed == 0


# ── what it says ─────────────────────────────────────────────────────────────────────────────────


def test_a_row_reads_as_the_documentation_shows_it():
    head, first, *_ = drawn(FULL)
    titles = ["engine", "accuracy", "change (95 %)", "flips", "p50 ms", "p99", "× ref", "size"]
    assert head.split() == " ".join(titles).split()
    assert first.split("  ")[0] == "openvino int8 (nncf performance)"
    for part in ("97.91 %", "−0.06 (−0.27 +0.15)", "0.3 %", "0.134", "10.4", "0.3 MB"):
        assert part in first
    assert first.endswith("← shipped")


def test_the_verdict_is_the_last_line():
    assert drawn(FULL)[-1] == FULL.verdict_line


def test_the_reference_is_flagged_and_has_no_change():
    (line,) = [text for text in drawn(FULL) if "(reference)" in text]
    assert line.startswith("torch fp32 (reference)")
    assert "not measured" not in line


def test_failed_and_screened_rows_give_their_reason_and_n():
    text = "\n".join(drawn(FULL))
    assert "failed: int8 (nncf percentile): NNCF's OpenVINO route has no percentile" in text
    assert "screened (n = 5,000)" in text
    assert "screened: onnxruntime fp32: 3.0 × slower" in text


def test_the_caption_names_cpu_isa_threads_batch_and_n():
    assert "on Xeon 6975P (AVX-512 VNNI), 2 threads, batch 1, n = 5,000 (validation)" in drawn(FULL)


def test_of_an_error_rate_the_caption_says_which_way_is_worse():
    rate = {"metrics": {"CER": m(0.0096, unit="fraction")}}
    row = engine("openvino", "int8", change=-0.37, **rate)
    line = "CER: lower is better; a negative change is worse"
    assert line in drawn(table(row, primary="CER", lower_is_better=True))
    assert not [text for text in drawn(FULL) if "lower is better" in text]


def test_what_was_not_measured_says_so():
    bare = OTHER.model_copy(update={"latency_p99_ms": None, "flips": not_measured("fraction", "-")})
    line = next(text for text in drawn(table(SHIPPED, bare)) if text.startswith("onnxruntime"))
    assert line.count("not measured") == 2


def test_a_metric_that_is_no_fraction_is_printed_plainly():
    metrics = {"perplexity": m(30.36123, unit="metric")}
    row = engine("openvino", "int8", metrics=metrics, change=-0.4)
    text = "\n".join(drawn(table(row, primary="perplexity", points_per_unit=1.0)))
    assert "30.36" in text and "30.36 %" not in text
    assert "−0.400 (−0.610 −0.190)" in text


def test_measured_and_emulated_never_share_a_column():
    emulated = engine("onnxruntime", "int8", latency_p50_ms=m(228.0, how="emulated"))
    head, first, second, *_ = drawn(table(SHIPPED, emulated))
    assert "p50 ms  p50 ms (emulated)" in head
    column = head.index("p50 ms (emulated)")
    assert first[column : column + len("p50 ms (emulated)")].strip() == ""
    assert second[column : column + len("p50 ms (emulated)")].strip() == "228"


def test_the_test_split_has_a_line_of_its_own_with_the_worst_classes():
    def dump(*values):
        return m(*values).model_dump(mode="json")

    classes = [
        {"class": str(i), "n": 50, "significant": i < 5, "change_points": dump(i - 9.0, -12.0, -1)}
        for i in range(9)
    ]
    final = {
        "n": 650,
        "reads": 1,
        "reference": {"metrics": {"accuracy": dump(0.98)}},
        "engine": {"metrics": {"accuracy": dump(0.97)}},
        "change_points": dump(-1.0, -1.5, -0.5),
        "drop_points": dump(1.0, 0.6, 1.4),
        "flips": dump(0.02),
        "verdict": "missed",
        "by_class": classes,
    }
    text = "\n".join(drawn(table(SHIPPED, final=final)))
    assert (
        "test (n = 650, read once): reference accuracy 98.00 %, engine accuracy 97.00 %, "
        "change −1.00 (−1.50 −0.50), flips 2.0 %, drop at most 1.40 (95 %): missed" in text
    )
    assert "worst classes on test: 0 −9.00" in text
    assert "2 −7.00" in text and "3 −6.00" not in text


def test_a_bench_names_paths_and_what_it_alone_measures():
    rows = [
        engine(
            "openvino",
            "int8",
            change=None,
            id=name,
            throughput_per_s=m(7000, unit="1/s"),
            load_ms=m(31),
            peak_memory_bytes=m(9.1e7, unit="bytes"),
            metrics={},
        )
        for name in ("out", "other")
    ]
    settings = {
        "threads": [2, 2],
        "batch": [1, 1],
        "end_to_end": {"out": {"decode": m(1.2).model_dump(mode="json")}},
    }
    text = drawn(table(*rows, command="bench", primary=None, settings=settings, verdict_line=None))
    assert text[0].split("  ")[0] == "engine"
    assert "7,000" in text[1] and "91.0 MB" in text[1] and text[1].startswith("out: openvino int8")
    assert "end to end, out: decode 1.20 ms" in text
    assert "accuracy" not in text[0] and "flips" not in text[0]
    assert any("2 threads, batch 1" in line for line in text)


def test_warnings_are_told_once():
    rows = [SHIPPED.model_copy(update={"warnings": ["noisy: load 7.1"]}), REFERENCE]
    text = drawn(table(*rows, warnings=["noisy: load 7.1", "preprocessing was assumed"]))
    assert text.count("warning: noisy: load 7.1") == 1
    assert "warning: preprocessing was assumed" in text


# ── how it fits ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width):
    text = drawn(FULL, width)
    assert max(map(cell_len, text)) <= width
    joined = "\n".join(text)
    assert "…" not in joined
    for part in (
        "97.91 %",
        "−0.06",
        "−0.27 +0.15",
        "0.134",
        "0.147",
        "10.4",
        "0.3 MB",
        "← shipped",
        "nncf performance",
        "onnxruntime percentile",
    ):
        assert part in joined


def test_wrapping_keeps_a_number_with_its_unit():
    for width in range(30, 110):
        for line in drawn(FULL, width)[-6:]:
            assert not line.lstrip().startswith(("%", "points", "= 5,000"))


def test_a_pipe_gets_one_line_a_row_however_wide():
    out = io.StringIO()
    print_table(FULL, out)
    text = out.getvalue()
    assert "\x1b" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("openvino int8")]
    assert line.endswith("← shipped")


def test_a_terminal_without_these_signs_gets_plain_ones():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    print_table(FULL, out)
    out.flush()
    assert b"-0.06 (-0.27 +0.15)" in raw.getvalue()
    assert b"<- shipped" in raw.getvalue()


def test_an_empty_table_is_no_error():
    assert drawn(table())[-1].startswith("ships")
    assert drawn(ResultTable(command="bench", rows=[])) == []


# ── text from files ──────────────────────────────────────────────────────────────────────────────


HOSTILE = "[bold red]x[/] \x1b[2J\x07 \u202egnp.exe\nsecond line"


def test_text_from_files_can_neither_style_nor_drive_the_terminal():
    row = engine("openvino", "int8", HOSTILE, mark=HOSTILE, warnings=[HOSTILE])
    failed = FAILED.model_copy(update={"reason": HOSTILE})
    result = table(row, failed, machine={"cpu": HOSTILE}, warnings=[HOSTILE], verdict_line=HOSTILE)
    out = io.StringIO()
    print_table(result, out)
    text = out.getvalue()
    assert "[bold red]x[/]" in text
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert "\nsecond line" not in text


@settings(deadline=None)
@given(st.text())
def test_clean_text_is_one_printable_line(text):
    assert clean(text) == "" or clean(text).isprintable()


def test_of_several_warnings_of_noise_the_noisiest_is_told():
    noisy = [f"noisy machine: others used {n}% of the CPU time while this ran" for n in (12, 40, 9)]
    found = all_warnings(table(warnings=[noisy[0], "something else", *noisy[1:]]))
    assert found == ["something else", noisy[1]]
    assert all_warnings(table(warnings=noisy[:1])) == noisy[:1]
