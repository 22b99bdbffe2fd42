"""`edgeml doctor`: what works on this machine, tried and not only imported."""

from __future__ import annotations

import sys

import click

from .options import json_option

EPILOG = """\b
Examples:
  edgeml doctor
  edgeml doctor --json -
"""


@click.command(epilog=EPILOG)
@json_option
def doctor(json_file: str | None) -> None:
    """Try each part of edgeml on this machine and say what to install."""
    import json

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..compress.doctor import examine

    parts = [part.__dict__ for part in examine()]
    if json_file != "-":
        table = Table(box=None, pad_edge=False)
        for column in ("part", "version", "works", "what was tried, what to do"):
            table.add_column(column, overflow="fold")
        for part in parts:
            works = "[green]yes[/]" if part["works"] else "[red]no[/]"
            row = (part["name"], part["version"] or "—", works, escape(part["detail"]))
            table.add_row(*row)
        Console(width=None if sys.stdout.isatty() else 120).print(table)
    if json_file == "-":
        click.echo(json.dumps({"schema_version": 1, "parts": parts}, indent=2))
    elif json_file:
        from pathlib import Path

        from ..artifact.atomic_file import write_json

        write_json(Path(json_file), {"schema_version": 1, "parts": parts})
