"""`edgeml report`: the tables of bundles again, on screen, as files and as a page."""

from __future__ import annotations

from pathlib import Path

import click

from .options import json_option, write_json

EPILOG = """\b
Examples:
  edgeml report out
  edgeml report out -o page --open
  edgeml report out other -o page
  edgeml report out --json -
"""


@click.command(epilog=EPILOG)
@click.argument(
    "bundles", type=click.Path(path_type=Path), metavar="BUNDLE...", nargs=-1, required=True
)
@click.option(
    "-o",
    "--output",
    "output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write report.html (the trade-off page), .md, .csv and .json there.",
)
@click.option("--open", "show", is_flag=True, help="Open the page of -o in a browser.")
@json_option
def report(
    bundles: tuple[Path, ...], output: Path | None, show: bool, json_file: str | None
) -> None:
    """Print the table of each BUNDLE: every engine that was tried, and why this one ships."""
    from ..artifact.bundle import bundle_around
    from ..errors import InputError
    from ..report.page_files import one_or_several, shown_of, write_page
    from ..report.table import clean, print_table

    if show and output is None:
        raise InputError("--open opens the page that -o writes; give -o DIR too")
    results = [shown_of(path) for path in bundles]
    if output is not None:
        if around := bundle_around(output):
            raise InputError(f"{output} lies in the bundle {around}, which stays as it is")
        written = write_page(results, output)
        for path in written:
            click.echo(f"wrote {path}", err=True)
        if show:
            _open(written)
    if json_file != "-":
        for index, shown in enumerate(results):
            if len(results) > 1:
                click.echo(f"{'' if index == 0 else chr(10)}{clean(shown.name)}")
            print_table(shown.table)
    write_json(one_or_several(results), json_file)


def _open(written: list[Path]) -> None:
    import webbrowser

    from ..errors import InputError

    page = next((path for path in written if path.suffix == ".html"), None)
    if page is None:
        raise InputError(f"--open opens a page, and {written[0]} is none; give -o a directory")
    if not webbrowser.open(page.resolve().as_uri()):
        click.echo(f"no browser found: open {page.resolve()}", err=True)
