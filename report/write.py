"""A result as JSON, CSV and Markdown files. What comes from files and users is escaped for each."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from ..artifact.measurement import Measurement
from ..artifact.result_row import SCHEMA_VERSION, EngineRow, ResultTable
from ..errors import InputError, nearest, one_line
from .score_text import score_lines
from .sweep_text import front_lines, params_text
from .table import (
    all_warnings,
    caption,
    clean,
    columns,
    end_to_end,
    final_lines,
    lines,
    marks,
    row_label,
)

FORMATS = ("md", "csv", "json")
MEASURED = [
    name
    for name, field in EngineRow.model_fields.items()
    if "Measurement" in str(field.annotation) and name != "metrics"
]
PLAIN = [
    "id",
    "runtime",
    "precision",
    "execution",
    "route",
    "status",
    "reason",
    "verdict",
    "shipped",
    "mark",
    "size_bytes",
]

# Of a sweep's rows only.
OF_TRIALS = ["trial", "rung", "baseline", "timed", "front", "recipe_hash", "bundle"]
ON_TEST = ["change_points", "drop_points", "flips"]


def to_json(table: ResultTable) -> str:
    """The documented JSON (docs/result-schema.md), indented, with a newline at the end."""
    return table.model_dump_json(indent=2) + "\n"


def from_json(text: str | bytes, where: str) -> ResultTable:
    """A `ResultTable` of a JSON text.

    Args:
        where: what the text is, for the message.

    Raises:
        InputError: it is no JSON, of a later schema, or a field does not fit; the first is named.
    """
    try:
        values = json.loads(text)
    except ValueError as e:
        raise InputError(f"{where} is no JSON: {one_line(e)}") from e
    version = values.get("schema_version") if isinstance(values, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(
            f"{where} has schema version {version}, this edgeml reads {SCHEMA_VERSION}; upgrade it"
        )
    try:
        table = ResultTable.model_validate(values)
        # `final` and `settings` are free mappings: drawing them is what checks them.
        lines(table)
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{where} holds no result table: {place}: {clean(first['msg'])}") from e
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise InputError(f"{where} holds a result that cannot be drawn: {one_line(e)}") from e
    return table


def to_csv(table: ResultTable) -> str:
    """A line an engine; a measurement is five columns: value, _low, _high, _n, _how. A sweep's rows
    have their trial, front, recipe and test score behind.

    Text that a spreadsheet would take for a formula gets a leading apostrophe.
    """
    names = list(dict.fromkeys(name for row in table.rows for name in row.metrics))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    measured = [f"metric {name}" for name in names] + MEASURED
    head = [f"{name}{part}" for name in measured for part in ("", "_low", "_high", "_n", "_how")]
    sweep = table.command == "sweep"
    tested = [f"test {name}" for name in (*names, *ON_TEST)] if sweep else []
    more = [f"{name}{part}" for name in tested for part in ("", "_low", "_high", "_n", "_how")]
    trial = [*OF_TRIALS, "front_against", "recipe"] if sweep else []
    writer.writerow([csv_cell(name) for name in (*PLAIN, *head, "warnings", *trial, *more)])
    for row in table.rows:
        cells = [csv_cell(getattr(row, name)) for name in PLAIN]
        for m in (*(row.metrics.get(n) for n in names), *(getattr(row, n) for n in MEASURED)):
            cells += _measured_cells(m)
        cells.append(csv_cell("; ".join(row.warnings)))
        if sweep:
            cells += [csv_cell(getattr(row, name)) for name in OF_TRIALS]
            cells += [csv_cell("; ".join(row.front_against)), csv_cell(params_text(row.params))]
            test = row.test or {}
            scores = [(test.get("metrics") or {}).get(name) for name in names]
            for values in (*scores, *(test.get(name) for name in ON_TEST)):
                cells += _measured_cells(Measurement.model_validate(values) if values else None)
        writer.writerow(cells)
    return out.getvalue()


def to_markdown(table: ResultTable, name: str | None = None) -> str:
    """The terminal's table as a Markdown page, under the command's name and `name`."""
    sweep = table.command == "sweep"
    drawn = [row for row in table.rows if row.status != "failed"]
    title = f"edgeml {table.command}" + (f": {name}" if name else "")
    page = [f"# {escaped(title)}", ""]
    if table.verdict_line:
        page += [f"**{escaped(table.verdict_line)}**", ""]
    if drawn:
        middle = columns(table, drawn)
        more = ["recipe", "front"] if sweep else []
        page.append(_line(["engine", *(column.title for column in middle), "", *more]))
        rules = ["---", *("---:" for _ in middle), "---", *("---" for _ in more)]
        page.append(_line(rules, escape=False))
        for index, row in enumerate(drawn):
            cells = [row_label(table, row), *(column.cells[index] for column in middle)]
            cells.append(", ".join(marks(row)))
            if sweep:
                cells += [params_text(row.params), "; ".join(front_lines(table, row))]
            page.append(_line(cells))
        page.append("")
    notes = (*caption(table), *final_lines(table), *score_lines(table))
    notes = (*notes, *end_to_end(table), *table.advice)
    page += [f"{escaped(line)}\n" for line in notes]
    behind = [row for row in table.rows if row.status in ("failed", "screened") and row.reason]
    for title, entries in (
        ("Left behind", [f"{row_label(table, row)}, {row.status}: {row.reason}" for row in behind]),
        ("Warnings", all_warnings(table)),
    ):
        if entries:
            page += [f"## {title}", "", *(f"- {escaped(entry)}" for entry in entries), ""]
    return "\n".join(page).rstrip("\n") + "\n"


WRITERS = {"md": to_markdown, "csv": to_csv, "json": to_json}


def write(
    table: ResultTable, destination: Path, formats: Sequence[str] = FORMATS, overwrite: bool = False
) -> list[Path]:
    """Write ``report.md``, ``report.csv`` and ``report.json`` into a directory, or one file.

    Args:
        destination: a directory (made if need be), or a file whose suffix names the format.
        formats: which ones, for a directory.
        overwrite: replace files that exist.

    Returns:
        The files written.

    Raises:
        InputError: a format is unknown, a file exists, or a directory's name is that of a file.
    """
    return write_files(
        {name: partial(make, table) for name, make in WRITERS.items()},
        Path(destination),
        formats,
        overwrite,
    )


def write_files(
    writers: Mapping[str, Callable[[], str]],
    destination: Path,
    formats: Sequence[str],
    overwrite: bool = False,
) -> list[Path]:
    """Write ``report.FORMAT`` of each format into a directory, or one file by its suffix.

    Args:
        writers: what makes a format's text, by the format's name.

    Raises:
        InputError: as of `write`.
    """
    suffix = destination.suffix.removeprefix(".")
    if suffix in writers and not destination.is_dir():
        files = {destination: suffix}
    else:
        if destination.exists() and not destination.is_dir():
            known = ", ".join(f".{name}" for name in writers)
            raise InputError(f"{destination} is a file; name a directory or an {known}")
        files = {destination / f"report.{name}": name for name in formats}
    for path, name in files.items():
        if name not in writers:
            raise InputError(f"unknown report format {name!r}, {nearest(name, writers)}")
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists; remove it or choose another place with -o")
    # Everything is made before anything is written, so that a failure leaves nothing behind.
    texts = {path: writers[name]() for path, name in files.items()}
    from ..artifact.atomic_file import write_text

    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return list(texts)


def csv_cell(value: object) -> object:
    """A CSV cell; text that begins like a formula is disarmed (OWASP, CSV injection)."""
    if not isinstance(value, str):
        return "" if value is None else value
    text = clean(value)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@", "|", "%") else text


def _measured_cells(m: Measurement | None) -> list[object]:
    if m is None:
        return ["", "", "", "", ""]
    return [csv_cell(m.value), csv_cell(m.low), csv_cell(m.high), m.n, m.how]


def escaped(text: str) -> str:
    """Text that Markdown takes for text, in a table's cell too."""
    text = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#!~])", r"\\\1", text)


def _line(cells: Sequence[str], escape: bool = True) -> str:
    return "| " + " | ".join(escaped(cell) if escape else cell for cell in cells) + " |"
