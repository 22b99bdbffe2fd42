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
    """Train a ResNet-20 on 3,000 digits, compress it to INT8, verify, measure, ship. Three minutes."""
    from ..compress.demo import run_demo
    from ..report.table import print_table
    from .progress import Progress

    with Progress() as progress:
        result = run_demo(output, log=progress)
    if json_file != "-":
        print_table(result.table)
        click.echo(
            f"\nThe bundle is {output}. Next:\n"
            f"  python {output}/example.py            # runs the engine without edgeml\n"
            f"  edgeml bench {output} --duration 5     # latency, throughput, memory\n"
            f"  edgeml report {output} -o page --open  # the trade-off page; Markdown, CSV and JSON beside it\n"
            "  edgeml compress --help               # your own network and data"
        )
    write_json(result.table, json_file)
    return result.exit_code
