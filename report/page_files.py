"""The page and its companions on disk: HTML, Markdown, CSV and JSON of one bundle or several."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..artifact.result_row import ResultTable
from ..errors import InputError, one_line
from .compare_table import comparison_json, comparison_lines
from .page import to_page
from .page_data import Shown
from .write import csv_cell, escaped, to_csv, to_json, to_markdown, write_files

FORMATS = ("html", "md", "csv", "json")


def write_page(results: Sequence[Shown], destination: Path) -> list[Path]:
    """Write ``report.html``, ``.md``, ``.csv`` and ``.json`` into a directory, or one of them.

    Of several results the Markdown holds their pages one after the other, the CSV a first column
    ``bundle``, and the JSON what `one_or_several` says.

    Args:
        destination: a directory, or a file whose suffix names the format.

    Returns:
        The files written.

    Raises:
        InputError: a file exists, or a directory's name is that of a file.
    """
    writers = {
        "html": lambda: page_of(results),
        "md": lambda: markdown_of(results),
        "csv": lambda: csv_of(results),
        "json": lambda: json_of(results),
    }
    return write_files(writers, destination, FORMATS)


def page_of(results: Sequence[Shown]) -> str:
    """The page.

    Raises:
        InputError: a free field (steps, removed, settings) holds what cannot be drawn.
    """
    try:
        return to_page(results)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        names = ", ".join(shown.name for shown in results)
        raise InputError(f"{names}: a result that no page can be drawn of: {one_line(e)}") from e


def markdown_of(results: Sequence[Shown]) -> str:
    """The Markdown of each, under its name where there are several."""
    if len(results) == 1:
        return to_markdown(results[0].table)
    pages = [to_markdown(shown.table, shown.name) for shown in results]
    if changed := comparison_lines(results):
        lines = [
            f"- {escaped(line.strip())}" if line[0] == " " else f"\n{escaped(line)}\n"
            for line in changed
        ]
        pages.append("\n".join(["# What changed", *lines]) + "\n")
    return "\n".join(pages)


def csv_of(results: Sequence[Shown]) -> str:
    """A line an engine; of several results the columns of all, empty where one lacks them."""
    if len(results) == 1:
        return to_csv(results[0].table)
    # The cells are safe already: they are read back as they were written.
    read = [list(csv.DictReader(io.StringIO(to_csv(shown.table)))) for shown in results]
    names = list(dict.fromkeys(name for rows in read for row in rows for name in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["bundle", *names])
    for shown, rows in zip(results, read, strict=True):
        for row in rows:
            writer.writerow([csv_cell(shown.name), *(row.get(name, "") for name in names)])
    return out.getvalue()


def one_or_several(results: Sequence[Shown]) -> ResultTable | dict[str, Any]:
    """The table of one result; of several ``{"bundles": [{"bundle": name, "result": table}],
    "comparison": […]}`` (docs/report.md)."""
    if len(results) == 1:
        return results[0].table
    # By its JSON text: a number that JSON cannot hold is null there.
    bundles = [{"bundle": s.name, "result": json.loads(to_json(s.table))} for s in results]
    return {"bundles": bundles, "comparison": comparison_json(results)}


def json_of(results: Sequence[Shown]) -> str:
    """The documented JSON; of several results one object that holds each with its name."""
    found = one_or_several(results)
    return json.dumps(found, indent=2) + "\n" if isinstance(found, dict) else to_json(found)
