"""`edgeml bench`: time bundles or engine files, compare two or more."""

from __future__ import annotations

from pathlib import Path

import click

from .options import FiniteFloat, json_option, write_json

EPILOG = """\b
Examples:
  edgeml bench out --duration 10
  edgeml bench out other --end-to-end --data imagefolder:photos
  edgeml bench model.onnx --batch 1,8,32 --threads 2
  edgeml bench out --energy
"""


class Batches(click.ParamType):
    """``8``, or several as in ``1,8,32``."""

    name = "batches"

    def convert(self, value: object, param: object, ctx: object) -> tuple[int, ...]:
        try:
            sizes = tuple(dict.fromkeys(int(part) for part in str(value).split(",")))
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            self.fail(f"{value!r} is no batch size; give 8, or several as in 1,8,32", param, ctx)
        return sizes


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
@click.option(
    "--energy", is_flag=True, help="Joules by this machine's meter, about 70 s an engine."
)
@click.option(
    "--batch",
    "batches",
    type=Batches(),
    metavar="N[,N...]",
    default=None,
    help="Static batch size [1]; several make a row each.",
)
@click.option("--threads", type=click.IntRange(min=1), default=None, help="CPU threads [all].")
@click.option(
    "--trust-plan",
    metavar="SHA256",
    help="A TensorRT plan of that hash may run, though built elsewhere.",
)
@json_option
def bench(
    paths: tuple[Path, ...],
    duration_s: float,
    iterations: int | None,
    warmup: int | None,
    percentiles: tuple[float, ...],
    end_to_end: bool,
    data: str | None,
    energy: bool,
    batches: tuple[int, ...] | None,
    threads: int | None,
    trust_plan: str | None,
    json_file: str | None,
) -> None:
    """Time the shipped engines of bundles, or engine files, in interleaved blocks.

    Latency percentiles with intervals, throughput with parallel requests, load time, first
    inference and peak memory in a process of their own. Two or more: a verdict. What is measured of a
    bundle is kept in its measurements folder.
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
            batch=batches,
            percentiles=tuple(dict.fromkeys((50, 90, 99, *percentiles))),
            raw_images=raw,
            energy=energy,
            trust_plan=trust_plan,
            log=progress,
        )
    if json_file != "-":
        print_table(table)
    write_json(table, json_file)
