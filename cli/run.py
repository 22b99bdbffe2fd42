"""`edgeml run`: a photo, a text or arrays in, the task's answer out."""

from __future__ import annotations

from pathlib import Path

import click

from .options import json_option, write_json

EPILOG = """\b
Examples:
  edgeml run out --input photo.jpg
  edgeml run out --input "shares fell on Monday" --json -
  edgeml run out --input features.npz --output outputs.npz
  edgeml run out --input photo.jpg --to jetson@orin1
"""


@click.command(epilog=EPILOG)
@click.argument("path", type=click.Path(path_type=Path), metavar="BUNDLE")
@click.option(
    "--input",
    "sources",
    multiple=True,
    required=True,
    metavar="FILE|TEXT",
    help="An image, a text or .txt file, or .npz arrays by input name (.npy for one); may be repeated.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.npz",
    help="Write the raw outputs: arrays NNN.NAME, NNN counts the inputs.",
)
@click.option(
    "--to",
    metavar="ADDRESS",
    help="Run on a device over SSH, as edgeml deploy --to; preprocessed here.",
)
@click.option(
    "--target", metavar="NAME", help="With --to: arm64 or intel-cpu run ONNX Runtime there."
)
@json_option
def run(
    path: Path,
    sources: tuple[str, ...],
    output: Path | None,
    to: str | None,
    target: str | None,
    json_file: str | None,
) -> None:
    """Preprocess, infer, and print the task's answer.

    Preprocessing is the bundle's own. A classification answers with its five highest classes, any
    other task with the shape and range of each output.
    """
    from ..errors import InputError
    from ..runtime.run_bundle import run_bundle
    from .progress import Progress

    if output is not None:
        check_output(output)
    if target and not to:
        raise InputError("--target says what runs on a device; give --to, or leave it out")
    if to:
        from ..deploy.run_remote import remote_runner

        with Progress() as progress:
            answers = run_bundle(path, sources, remote_runner(path, to, target, progress))
    else:
        answers = run_bundle(path, sources)
    if output is not None:
        write_outputs(output, answers)
    if json_file != "-":
        for answer in answers:
            click.echo("\n".join(answer.lines()))
    write_json([answer.as_json() for answer in answers], json_file)


def check_output(output: Path) -> None:
    """Refuse a place that cannot be written before the work whose result would go there."""
    from ..artifact.bundle import bundle_around
    from ..errors import InputError

    if output.suffix != ".npz":
        raise InputError(f"--output {output} is written as .npz; name it so")
    if bundle := bundle_around(output):
        raise InputError(f"--output {output} lies in the bundle {bundle}, which stays as it is")
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")


def write_outputs(output: Path, answers: list) -> None:
    """Every answer's outputs, ``NNN.NAME``."""
    import numpy as np

    from ..artifact.atomic_file import replacing

    arrays = {
        f"{i:03}.{name}": array
        for i, answer in enumerate(answers)
        for name, array in answer.outputs.items()
    }
    with replacing(output) as part:
        np.savez(part, **arrays)
