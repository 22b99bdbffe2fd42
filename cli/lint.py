"""`edgeml lint`: what a TensorRT version would reject, make wrong or make slow."""

from __future__ import annotations

from pathlib import Path

import click

from .options import json_option
from .shape_options import parse_shapes, shape_options

EPILOG = """\b
Examples:
  edgeml lint model.onnx --tensorrt 10.3
  edgeml lint model.onnx --tensorrt 8.5.2 --fix fixed.onnx
  edgeml lint model.onnx --tensorrt rtx --opt-shape input:1x3x224x224 --json -
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option(
    "--tensorrt",
    metavar="VERSION",
    required=True,
    help="8.5.2, 8.6.2, 10.3, 10.13, 10.16, 11.4 or rtx.",
)
@click.option(
    "--fix",
    "fixed",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Mend what is mechanical, prove it, write it there.",
)
@shape_options
@json_option
def lint(
    model: Path,
    tensorrt: str,
    fixed: Path | None,
    min_shapes: tuple[str, ...],
    opt_shapes: tuple[str, ...],
    max_shapes: tuple[str, ...],
    json_file: str | None,
) -> int:
    """Check an ONNX file for a TensorRT version, and mend it.

    Each finding names the node, the rule, what TensorRT would do, and the cure; nodes of one rule and
    one cause share a line (--json names each). Exit code 0 when it is clean or has warnings only, 1 when
    the engine would not build or would be wrong.
    """
    import json

    from ..artifact.atomic_file import write_json
    from ..export.lint_finding import grouped
    from ..export.lint_proof import fix
    from ..export.qdq_lint import lint as check

    shapes = [
        parse_shapes(s, f)
        for f, s in zip(
            ("--min-shape", "--opt-shape", "--max-shape"),
            (min_shapes, opt_shapes, max_shapes),
            strict=True,
        )
    ]
    report = check(model, tensorrt, shapes={name for given in shapes for name in given})
    result = report.to_json()
    lines = grouped(report.findings)
    if fixed is not None:
        done = fix(model, fixed, report.version)
        report = done.remaining
        mended = ", ".join(f"{rule} {count}×" for rule, count in done.counts.items()) or "nothing"
        lines += [f"fixed {mended}: {fixed}", f"proof {done.proof}", f"build {done.built}"]
        lines += [f"remains {line}" for line in grouped(report.findings)]
        result |= {
            "fixed": {
                "path": str(fixed),
                "counts": done.counts,
                "proof": done.proof,
                "build": done.built,
                "remaining": report.to_json(),
            }
        }
    warnings = len(report.findings) - len(report.errors)
    lines.append(
        f"TensorRT {report.version.name}: {len(report.errors)} errors, {warnings} warnings"
    )
    if json_file == "-":
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo("\n".join(lines))
        if json_file:
            write_json(Path(json_file), result)
    refused = fixed is not None and done.built.startswith("refused")
    return 1 if report.errors or refused else 0
