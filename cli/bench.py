"""`edgeml bench`: time bundles or engine files, compare two or more."""

from __future__ import annotations

from pathlib import Path

import click

from .options import FiniteFloat, engine_options, json_option, write_json

EPILOG = """\b
Examples:
  edgeml bench out --duration 10
  edgeml bench out other --end-to-end --data imagefolder:photos
  edgeml bench model.onnx --batch 8 --threads 2
"""


@click.command(epilog=EPILOG)
@click.argument(
    "paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE..."
)
@click.option(
    "--duration",
    "duration_s",
    type=FiniteFloat(min=0.05),
    default=2.0,
    show_default=True,
    help="Seconds an engine.",
)
@click.option(
    "--iterations",
    type=click.IntRange(min=1),
    default=None,
    help="So many inferences instead of --duration.",
)
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    default=None,
    help="Inferences before timing [until steady].",
)
@click.option(
    "--percentile",
    "percentiles",
    type=FiniteFloat(0, 100),
    multiple=True,
    help="Further percentiles in the JSON.",
)
@click.option(
    "--end-to-end", is_flag=True, help="Time decode, preprocess, infer, postprocess apart."
)
@click.option("--data", metavar="SOURCE", help="Images for --end-to-end [the bundle's own].")
@engine_options
@json_option
def bench(
    paths: tuple[Path, ...],
    duration_s: float,
    iterations: int | None,
    warmup: int | None,
    percentiles: tuple[float, ...],
    end_to_end: bool,
    data: str | None,
    threads: int | None,
    batch: int | None,
    json_file: str | None,
) -> None:
    """Time the shipped engines of bundles, or engine files, in interleaved blocks.

    Latency percentiles with intervals, throughput with parallel requests, load time, first
    inference and peak memory in a process of their own. Two or more: a verdict.
    """
    from ..errors import InputError
    from ..report.table import print_table
    from ..runtime.bench_bundles import bench_bundles
    from .progress import Progress

    raw = None
    if data and not end_to_end:
        raise InputError("--data gives the images of --end-to-end; leave it out or time end to end")
    if end_to_end:
        from ..train.raw_images import raw_images

        raw = raw_images(data, paths[0])
    with Progress() as progress:
        table = bench_bundles(
            paths,
            duration_s=duration_s,
            iterations=iterations,
            warmup=warmup,
            threads=threads,
            batch=batch,
            percentiles=tuple(dict.fromkeys((50, 90, 99, *percentiles))),
            raw_images=raw,
            log=progress,
        )
    if json_file != "-":
        print_table(table)
    write_json(table, json_file)
