"""`edgeml export`: a graph for TensorRT, its engine, or the command that builds it on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import preprocess_options, preprocess_values
from .shape_options import parse_shapes, shape_options

EPILOG = """\b
Examples:
  edgeml export out --to tensorrt-rtx --fp16 -o out-rtx
  edgeml export model.onnx --to tensorrt --command --tensorrt 10.3
  edgeml export model.onnx --to tensorrt --command --tensorrt 10.3 --int8 --data imagefolder:photos -o out-trt
"""


@click.command(epilog=EPILOG)
@click.argument("model", metavar="BUNDLE|MODEL.onnx")
@click.option(
    "--to", type=click.Choice(["tensorrt", "tensorrt-rtx"]), required=True, help="What for."
)
@click.option(
    "--command", is_flag=True, help="Print the trtexec line for the device; build nothing."
)
@click.option(
    "--tensorrt",
    metavar="VERSION",
    help="8.5.2, 8.6.2, 10.3, 10.13, 10.16, 11.4 or rtx [the installed one].",
)
@click.option(
    "--precision",
    metavar="fp16|int8",
    help="Cast or quantize the graph first [as it is]; of a bundle for TensorRT, which graph.",
)
@click.option("--fp16", is_flag=True, help="Short for --precision fp16.")
@click.option(
    "--int8", is_flag=True, help="Short for --precision int8 (FP16 around it from 10 on)."
)
@click.option(
    "--data",
    metavar="SOURCE",
    help="Real samples for --precision [a bundle's reference inputs: fp16].",
)
@click.option(
    "--calibration-samples",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="Read at most.",
)
@preprocess_options
@shape_options
@click.option(
    "--workspace", type=click.IntRange(min=1), metavar="MIB", help="Most scratch memory on the GPU."
)
@click.option(
    "--compute-capability", metavar="SM89", help="GPU to build for, TensorRT-RTX only [SM89]."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="The directory to write; must not exist.",
)
def export(
    model: str,
    to: str,
    command: bool,
    tensorrt: str | None,
    precision: str | None,
    fp16: bool,
    int8: bool,
    data: str | None,
    calibration_samples: int,
    min_shapes: tuple[str, ...],
    opt_shapes: tuple[str, ...],
    max_shapes: tuple[str, ...],
    workspace: int | None,
    compute_capability: str | None,
    output: Path | None,
    **preprocess: Any,
) -> None:
    """Write a typed graph for TensorRT and build its engine, or print the trtexec line.

    The graph is linted first. OUT gets model.onnx, the engine, named after the TensorRT version and GPU
    architecture it is for, and engine.json. A plan runs only where it was built for: ship the ONNX.
    """
    from ..compress.export_tensorrt import export_tensorrt
    from ..errors import InputError

    asked = [p for p in (precision, "fp16" if fp16 else None, "int8" if int8 else None) if p]
    if len(set(asked)) > 1:
        raise InputError(f"--precision {' and '.join(asked)}: give one")
    done = export_tensorrt(
        model,
        output,
        to,
        tensorrt=tensorrt,
        precision=asked[0] if asked else None,
        data=data,
        preprocess=preprocess_values(**preprocess),
        samples=calibration_samples,
        min_shapes=parse_shapes(min_shapes, "--min-shape"),
        opt_shapes=parse_shapes(opt_shapes, "--opt-shape"),
        max_shapes=parse_shapes(max_shapes, "--max-shape"),
        workspace_mib=workspace,
        compute_capability=compute_capability,
        build=not command,
    )
    for line in done.lines:
        click.echo(line, err=True)
    if done.directory is not None:
        click.echo(f"wrote {done.directory}", err=True)
    if command and done.command:
        click.echo(done.command)
