"""The result table in the terminal: a row an engine, best first, and the line that says what ships.

No number is ever cut: where the terminal is narrow, columns move into a second line of each row;
where the output is no terminal (a pipe, a file), a row is one line however wide it gets.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from ..artifact.machine import isa_name
from ..artifact.measurement import Measurement
from ..artifact.result_row import EngineRow, ResultTable
from ..artifact.row_text import decimals, engine_label, engine_name, significant
from .score_text import score_lines

NOT_MEASURED = "not measured"
GAP = "  "
# For terminals that cannot write these signs (an ASCII or Latin-1 locale).
PLAIN_SIGNS = str.maketrans({"−": "-", "×": "x", "←": "<-", "–": "-", "≤": "<=", "·": ";"})
SUFFIX = {"measured": "", "estimated": " (estimated)", "emulated": " (emulated)"}

# Where a sweep's row stands to the front, at its end.
FRONT = {"yes": "front", "cannot tell": "front or dominated: cannot tell"}

Get = Callable[[EngineRow], Measurement | None]

# How `artifact.machine.noise_warning` begins: each timed stage of a run may give one.
NOISE = "noisy machine:"


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        title: its head.
        cells: a text a row.
        left: aligned to the left (text), else to the right (numbers).
    """

    title: str
    cells: list[str]
    left: bool = False

    @property
    def width(self) -> int:
        return max(cell_len(text) for text in (self.title, *self.cells))


def clean(text: str) -> str:
    """Text from files made safe to print: one line, and no control or direction characters.

    >>> clean("a\\x1b[31mred\\nb")
    'a?[31mred b'
    """
    text = text.replace("\n", " ").replace("\r", " ").replace("\t", " ")
    return "".join(c if c.isprintable() else "?" for c in text)


def print_table(table: ResultTable, file: TextIO | None = None, width: int | None = None) -> None:
    """Print the table, what it was measured on, the test result and the verdict.

    Args:
        file: where to; standard output by default.
        width: columns to fit into; by default the terminal's, and no bound where there is none.
    """
    file = file or sys.stdout
    console = Console(file=file, highlight=False, markup=False, emoji=False)
    if width is None and console.is_terminal:
        width = console.width
    for text, style in lines(table, width):
        try:
            text.encode(getattr(file, "encoding", None) or "utf-8")
        except (UnicodeEncodeError, LookupError):
            text = text.translate(PLAIN_SIGNS).encode("ascii", "replace").decode("ascii")
        # soft_wrap: rich neither cuts nor breaks the line.
        console.print(Text(text, style=style), soft_wrap=True)


def lines(table: ResultTable, width: int | None = None) -> list[tuple[str, str]]:
    """The printed lines with their styles; none is wider than `width` where that can be."""
    drawn = [row for row in table.rows if row.status != "failed" and not _dominated(row)]
    found = _grid(table, drawn, width) if drawn else []
    notes = [
        *_left_behind(table),
        *caption(table),
        *(f"warning: {clean(line)}" for line in all_warnings(table)),
        *end_to_end(table),
        *final_lines(table),
        *map(clean, score_lines(table)),
        *map(clean, table.advice),
    ]
    if notes:
        found.append(("", ""))
    for note in notes:
        style = "yellow" if note.startswith("warning") else "dim" if note.startswith("on ") else ""
        found += [(line, style) for line in _wrapped(note, width)]
    if table.verdict_line:
        found += [("", "")] if notes or drawn else []
        found += [(line, "bold") for line in _wrapped(clean(table.verdict_line), width)]
    return found


def columns(
    table: ResultTable, rows: Sequence[EngineRow], missing: str = NOT_MEASURED
) -> list[Column]:
    """Every column but the engine's name and the marks, in the table's order.

    A quantity that no row has is left out. Measured, estimated and emulated values of one quantity
    stand in columns of their own.

    Args:
        missing: what stands where a row lacks a value that others have.
    """
    scale = table.points_per_unit
    found: list[Column] = []

    def add(title: str, get: Get, show: Callable[[Measurement], str]) -> None:
        values = [get(row) for row in rows]
        for how, suffix in SUFFIX.items():
            if not any(m is not None and m.value is not None and m.how == how for m in values):
                continue
            cells = []
            for row, m in zip(rows, values, strict=True):
                if m is not None and m.value is not None:
                    # A value got in another way stands in that way's own column.
                    cells.append(show(m) if m.how == how else "")
                else:
                    cells.append("" if row.status == "reference" else missing)
            found.append(Column(title + suffix, cells))

    if table.primary is not None:
        primary = table.primary
        name = clean(primary)
        add(name, lambda row: row.metrics.get(primary), lambda m: metric_text(m.value, scale))
        add("change (95 %)", lambda row: row.change_points, lambda m: change_text(m, scale))
        add("flips", lambda row: row.flips, lambda m: f"{decimals(m.value * 100, 1)} %")
    for title, field in (("p50 ms", "latency_p50_ms"), ("p99", "latency_p99_ms")):
        add(title, _getter(field), lambda m: significant(m.value))
    add("× ref", lambda row: row.speedup, lambda m: significant(m.value))
    for title, field in (
        ("per s", "throughput_per_s"),
        ("load ms", "load_ms"),
        ("first ms", "first_inference_ms"),
    ):
        add(title, _getter(field), lambda m: significant(m.value))
    add("GPU ms", lambda row: row.gpu_compute_ms, lambda m: significant(m.value))
    for title, field in (("mJ", "energy_gross_mj"), ("net mJ", "energy_net_mj")):
        before = len(found)
        add(title, _getter(field), lambda m: significant(m.value))
        # Asked for and not there: the warning below the table says why.
        if len(found) == before and any(_getter(field)(row) is not None for row in rows):
            found.append(Column(title, [missing] * len(rows)))
    add("memory", lambda row: row.peak_memory_bytes, lambda m: size_text(m.value))
    if any(row.size_bytes is not None for row in rows):
        sizes = [
            size_text(row.size_bytes)
            if row.size_bytes is not None
            else ""
            if row.status == "reference"
            else missing
            for row in rows
        ]
        found.append(Column("size", sizes))
    return found


def row_label(table: ResultTable, row: EngineRow, route: bool = True) -> str:
    """The engine's name; in a bench with the path it was loaded from, in a sweep with its trial or as
    which baseline it stands there: that tells two apart."""
    label = engine_label(row) if route else engine_name(row)
    if table.command == "bench":
        label = f"{row.id}: {label}"
    elif row.baseline and row.status != "reference":
        label = f"baseline {row.baseline}: {label}"
    elif row.trial is not None:
        label = f"trial {row.trial}: {label}"
    return clean(f"{label} (reference)" if row.status == "reference" else label)


def marks(row: EngineRow) -> list[str]:
    """What stands at the end of a row: shipped, screened, missed, a caveat."""
    found = ["← shipped"] if row.shipped else []
    if row.status == "screened":
        n = max((m.n for m in row.metrics.values()), default=0)
        found.append(f"screened (n = {n:,})" if n else "screened")
    elif row.verdict == "missed":
        found.append("missed")
    if row.front in FRONT:
        found.append(FRONT[row.front])
    if row.timed == "by trial":
        found.append("own bench")
    if row.mark:
        found.append(clean(row.mark))
    return found


def metric_text(value: float, points_per_unit: float) -> str:
    """A fraction as a percentage, anything else with four significant digits.

    >>> metric_text(0.97912, 100), metric_text(30.3612, 1)
    ('97.91 %', '30.36')
    """
    return f"{decimals(value * 100)} %" if points_per_unit == 100 else significant(value, 4)


def change_text(change: Measurement, points_per_unit: float, interval: bool = True) -> str:
    """A change in points with its interval: ``−0.06 (−0.27 +0.15)``."""

    def signed(value: float) -> str:
        if points_per_unit == 100:
            return decimals(value, 2, sign=True)
        return ("+" if value > 0 else "") + significant(value)

    text = signed(change.value)
    if not interval or change.low is None or change.high is None:
        return text
    return f"{text} ({signed(change.low)} {signed(change.high)})"


def size_text(size_bytes: float) -> str:
    """Bytes in kB, MB or GB (powers of ten, as disks are sold).

    >>> size_text(312_000), size_text(5_400_000), size_text(900), size_text(2.5e9)
    ('0.3 MB', '5.4 MB', '0.9 kB', '2.5 GB')
    """
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.1f} GB"
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.1f} kB"


def caption(table: ResultTable) -> list[str]:
    """What the numbers were measured on (CPU, ISA, threads, batch, n); a metric whose change has
    the other sign than its difference gets a line of its own."""
    machine, settings = table.machine, table.settings
    parts = [f"on {machine['cpu']} ({isa_name(machine)})" if machine.get("cpu") else ""]
    for word in ("threads", "batch"):
        values = settings.get(word)
        values = values if isinstance(values, list) else [values]
        # A bench of several bundles lists one value each.
        told = ", ".join(dict.fromkeys("all" if v is None else str(v) for v in values))
        if settings.get(word) is not None:
            parts.append(f"{told} threads" if word == "threads" else f"batch {told}")
    n = max((m.n for row in table.rows for m in row.metrics.values()), default=0)
    parts.append(f"n = {n:,} (validation)" if n else "")
    line = ", ".join(part for part in parts if part)
    found = [line if line.startswith("on ") else f"on {line}"] if line else []
    if table.lower_is_better and table.primary is not None:
        found.append(f"{table.primary}: lower is better; a negative change is worse")
    return [clean(line) for line in found]


def final_lines(table: ResultTable) -> list[str]:
    """The test result, and the classes that lost most where that is more than chance."""
    final, scale = table.final, table.points_per_unit
    if not final:
        return []
    name = table.primary or "score"
    reads = final.get("reads")
    once = {None: "", 1: ", read once"}.get(reads, f", read {reads} times")
    parts = []
    for who in ("reference", "engine"):
        value = _value(final, who, "metrics", name)
        if value is not None:
            parts.append(f"{who} {name} {metric_text(value, scale)}")
    if change := _measurement(final.get("change_points")):
        parts.append(f"change {change_text(change, scale)}")
    if flips := _measurement(final.get("flips")):
        parts.append(f"flips {decimals(flips.value * 100, 1)} %")
    if drop := _measurement(final.get("drop_points")):
        verdict = f": {final['verdict']}" if final.get("verdict") else ""
        bound = "" if drop.high is None else f", drop at most {decimals(drop.high)} (95 %){verdict}"
        parts.append(bound.removeprefix(", ") or f"drop {decimals(drop.value)}{verdict}")
    found = [f"test (n = {final.get('n', 0):,}{once}): {', '.join(parts)}"]
    worst = [
        f"{entry['class']} {change_text(change, scale)} n = {entry['n']:,}"
        for entry in final.get("by_class") or []
        if entry.get("significant")
        and (change := _measurement(entry.get("change_points")))
        and change.value < 0
    ]
    if worst:
        found.append(f"worst classes on test: {'; '.join(worst[:3])}")
    return [clean(line) for line in found]


def end_to_end(table: ResultTable) -> list[str]:
    """The stages of `bench --end-to-end`, a line an engine."""
    found = []
    for name, stages in (table.settings.get("end_to_end") or {}).items():
        told = []
        for stage, values in stages.items():
            m = _measurement(values)
            if m:
                unit = "/s" if m.unit == "1/s" else f" {m.unit}"
                told.append(f"{stage} {significant(m.value)}{unit}")
        found.append(clean(f"end to end, {name}: {', '.join(told)}"))
    return found


def all_warnings(table: ResultTable) -> list[str]:
    """The run's and the rows' warnings, each once; of several on noise the noisiest."""
    of_rows = (warning for row in table.rows for warning in row.warnings)
    found = list(dict.fromkeys([*table.warnings, *of_rows]))
    noise = [warning for warning in found if warning.startswith(NOISE)]
    if len(noise) < 2:
        return found
    worst = max(noise, key=lambda warning: int((re.findall(r"(\d+)%", warning) or ["0"])[0]))
    return [warning for warning in found if warning not in noise or warning == worst]


def _left_behind(table: ResultTable) -> list[str]:
    """Engines that failed or were screened out, with the reason; of a sweep, where they are many,
    how many there were."""
    if table.command == "sweep":
        dominated = sum(map(_dominated, table.rows))
        failed = sum(row.status == "failed" for row in table.rows)
        found = [f"{dominated} more were dominated"] * bool(dominated)
        found += [f"{failed} failed"] * bool(failed)
        return [f"{', '.join(found)}: see results.json or the page"] if found else []
    return [
        clean(f"{row.status}: {row_label(table, row)}: {row.reason or 'no reason told'}")
        for row in table.rows
        if row.status == "failed" or (row.status == "screened" and row.reason)
    ]


def _dominated(row: EngineRow) -> bool:
    """Whether it is one of a sweep's many rows that the front leaves behind."""
    return row.front == "no" and row.baseline is None


def _grid(table: ResultTable, rows: list[EngineRow], width: int | None) -> list[tuple[str, str]]:
    """The widest layout that fits: one line a row, then two, then fewer columns in the first."""
    for layout in (_one_line, _two_lines, _narrow):
        head, details, dashed = layout(table, rows)
        widths = [column.width for column in head]
        total = sum(widths) + len(GAP) * (len(widths) - 1)
        if width is None or total <= width:
            break
    titles = [column.title for column in head]
    found = [(_joined(titles, head, widths), "bold")]
    for index, row in enumerate(rows):
        style = "bold green" if row.shipped else "dim" if row.status == "screened" else ""
        found.append((_joined([column.cells[index] for column in head], head, widths), style))
        if detail := " · ".join(details[index]):
            found += [(line, style) for line in _wrapped(f"  {detail}", width, "    ")]
    if dashed and any("–" in column.cells for column in head):
        found.append((f"–: {NOT_MEASURED}", "dim"))
    return found


Layout = tuple[list[Column], list[list[str]], bool]


def _one_line(table: ResultTable, rows: list[EngineRow]) -> Layout:
    names = Column("engine", [row_label(table, row) for row in rows], left=True)
    ends = Column("", [", ".join(marks(row)) for row in rows], left=True)
    head = [names, *columns(table, rows), ends]
    return [c for c in head if c.title or any(c.cells)], [[] for _ in rows], False


def _two_lines(table: ResultTable, rows: list[EngineRow]) -> Layout:
    """Route and marks in a line of their own under the row."""
    names = Column("engine", [row_label(table, row, route=False) for row in rows], left=True)
    details = [[*([clean(row.route)] if row.route else []), *marks(row)] for row in rows]
    return [names, *columns(table, rows, missing="–")], details, True


def _narrow(table: ResultTable, rows: list[EngineRow]) -> Layout:
    """The interval, p99 and what only a bench measures move to the second line as well."""
    head, details, dashed = _two_lines(table, rows)
    kept = []
    for column in head:
        if column.title.startswith("change"):
            short, title = [], column.title.replace(" (95 %)", "")
            for index, cell in enumerate(column.cells):
                value, _, interval = cell.partition(" (")
                short.append(value)
                if interval:
                    details[index].append(f"95 %: {interval.removesuffix(')')}")
            kept.append(Column(title, short))
        elif column.title.startswith(("p99", "per s", "load", "first", "memory")):
            for index, cell in enumerate(column.cells):
                if cell not in ("", "–"):
                    details[index].append(f"{column.title} {cell}")
        else:
            kept.append(column)
    return kept, details, dashed


def _joined(cells: Sequence[str], head: Sequence[Column], widths: Sequence[int]) -> str:
    padded = []
    for cell, column, width in zip(cells, head, widths, strict=True):
        space = " " * (width - cell_len(cell))
        padded.append(cell + space if column.left else space + cell)
    return GAP.join(padded).rstrip()


def _wrapped(line: str, width: int | None, indent: str = "  ") -> list[str]:
    """Broken between words to `width`; words longer than it stay whole."""
    if width is None or cell_len(line) <= width:
        return [line]
    # A number stays with its unit, and an interval's ends together.
    held = re.sub(r" (?=%|points|= |ms\b)|(?<= =) |(?<=[\d.]) (?=[−+])", "\u00a0", line)
    broken = textwrap.wrap(
        held,
        max(width, 20),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [part.replace("\u00a0", " ") for part in broken]


def _getter(field: str) -> Get:
    return lambda row: getattr(row, field)


def _measurement(values: Any) -> Measurement | None:
    """A measurement of `final`, which is plain data; None where it has no value."""
    if not values:
        return None
    found = values if isinstance(values, Measurement) else Measurement.model_validate(values)
    return None if found.value is None else found


def _value(values: Any, *path: str) -> float | None:
    for key in path:
        if not isinstance(values, dict) or key not in values:
            return None
        values = values[key]
    found = _measurement(values)
    return found.value if found else None
