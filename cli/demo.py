"""`edgeml demo`: the whole way on data that ships with a dependency."""

from __future__ import annotations

from pathlib import Path

import click

from .options import json_option, write_json

EPILOG = """\b
Examples:
  edgeml demo
  edgeml demo -o my-demo
"""


@click.command(epilog=EPILOG)
@click.option(
    "-o",
    "--output",
    "output",
    type=click.Path(path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    metavar="OUT",
    help="The bundle to write; must not exist.",
)
@json_option
def demo(output: Path, json_file: str | None) -> int:
    """Train a ResNet-20 on 3,000 digits, compress it to INT8, verify, measure, ship, and write the
    trade-off page beside it. Three minutes."""
    from ..compress.demo import run_demo
    from ..errors import InputError
    from ..report.open_results import shown_of
    from ..report.page_files import write_page
    from ..report.table import print_table
    from .progress import Progress

    # A bundle takes no further file: the page lies beside it.
    place = output.with_name(f"{output.name}-page")
    if place.exists():
        raise InputError(f"{place} exists, where the page goes; remove it or choose another -o")
    with Progress() as progress:
        result = run_demo(output, log=progress)
    page = write_page([shown_of(output)], place)[0]
    if json_file != "-":
        print_table(result.table)
        click.echo(
            f"\nThe bundle is {output}, the trade-off page {page}. Next:\n"
            f"  python {output}/example.py            # runs the engine without edgeml\n"
            f"  edgeml bench {output} --duration 5     # latency, throughput, memory\n"
            f"  edgeml report {output} -o page --open  # the page again, opened in a browser\n"
            "  edgeml compress --help               # your own network and data"
        )
    write_json(result.table, json_file)
    return result.exit_code
