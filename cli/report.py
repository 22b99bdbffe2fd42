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
  edgeml report sweep --pick "latency_p50_ms <= 0.2 and drop_points < 1" -o chosen
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
    help="Write report.html (the trade-off page), .md, .csv and .json there; with --pick a bundle.",
)
@click.option("--open", "show", is_flag=True, help="Open the page of -o in a browser.")
@click.option(
    "--pick",
    "condition",
    metavar="CONDITION",
    help="Copy the bundle of the most accurate engine for which it holds, over the JSON's columns.",
)
@json_option
def report(
    bundles: tuple[Path, ...],
    output: Path | None,
    show: bool,
    condition: str | None,
    json_file: str | None,
) -> None:
    """Print the table of each BUNDLE or sweep: every engine that was tried, and why this one ships."""
    from ..artifact.bundle import bundle_around
    from ..errors import InputError
    from ..report.compare_table import comparison_lines
    from ..report.open_results import shown_of
    from ..report.page_files import one_or_several, write_page
    from ..report.table import clean, print_table

    if condition is not None:
        return _pick(bundles, condition, output, show, json_file)
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
        if changed := comparison_lines(results):
            click.echo("\n" + "\n".join(changed))
    write_json(one_or_several(results), json_file)


def _pick(
    paths: tuple[Path, ...],
    condition: str,
    output: Path | None,
    show: bool,
    json_file: str | None,
) -> None:
    from ..errors import InputError
    from ..report.open_results import shown_of
    from ..report.pick import copy_point, pick

    if len(paths) != 1:
        raise InputError(f"--pick picks from one bundle or sweep; {len(paths)} are given")
    if output is None or show:
        raise InputError("--pick copies a bundle to -o DIR, and opens no page")
    picked = pick(shown_of(paths[0]), condition)
    click.echo(picked.line, err=json_file == "-")
    copy_point(picked, output, _loads)
    click.echo(f"wrote {output}", err=True)
    write_json(picked.row.model_dump(mode="json"), json_file)


def _loads(bundle: Path) -> None:
    """Load the shipped engine and run one of the bundle's inputs through it."""
    from ..artifact.bundle import open_bundle
    from ..runtime.bench_bundles import reference_inputs
    from ..runtime.engine import load

    if open_bundle(bundle).engine().runtime.startswith("tensorrt"):
        click.echo("not loaded here: TensorRT builds it where it runs", err=True)
        return
    with load(bundle) as engine:
        engine.run(reference_inputs(bundle, engine))


def _open(written: list[Path]) -> None:
    import webbrowser

    from ..errors import InputError

    page = next((path for path in written if path.suffix == ".html"), None)
    if page is None:
        raise InputError(f"--open opens a page, and {written[0]} is none; give -o a directory")
    if not webbrowser.open(page.resolve().as_uri()):
        click.echo(f"no browser found: open {page.resolve()}", err=True)
