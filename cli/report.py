"""`edgeml report`: a bundle's table again, on screen or as files."""

from __future__ import annotations

from pathlib import Path

import click

from .options import json_option, write_json

EPILOG = """\b
Examples:
  edgeml report out
  edgeml report out -o report-of-out
  edgeml report out --json -
"""


@click.command(epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path), metavar="BUNDLE")
@click.option(
    "-o",
    "--output",
    "output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write report.md, report.csv and report.json there.",
)
@json_option
def report(bundle: Path, output: Path | None, json_file: str | None) -> None:
    """Print the table of BUNDLE: every engine that was tried, and why this one ships."""
    from ..artifact.bundle import bundle_around, open_bundle
    from ..errors import InputError
    from ..report.table import print_table
    from ..report.write import from_json, write

    results = open_bundle(bundle).file("results.json")
    table = from_json(results.read_bytes(), str(results))
    if output is not None:
        if around := bundle_around(output):
            raise InputError(f"{output} lies in the bundle {around}, which stays as it is")
        for path in write(table, output):
            click.echo(f"wrote {path}", err=True)
    if json_file != "-":
        print_table(table)
    write_json(table, json_file)
