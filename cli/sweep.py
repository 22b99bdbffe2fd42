"""`edgeml sweep`: a recipe from flags, one call, the front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import (
    Duration,
    bad_sample_option,
    engine_options,
    json_option,
    sample_options,
    take_preprocess,
    write_json,
)

EPILOG = """\b
Examples:
  edgeml sweep runs/resnet56 --objectives accuracy,latency,size --time 2h -o sweep
  edgeml sweep net.py:build --weights w.safetensors --data imagefolder:photos --trials 40 -o sweep
  edgeml sweep --resume sweep
  edgeml report sweep -o page
"""


@click.command(epilog=EPILOG)
@click.argument("model", required=False)
@click.option("--weights", metavar="FILE", help="Weights for a factory, .safetensors.")
@click.option("--data", metavar="SOURCE", help="Samples, as of `edgeml compress`.")
@sample_options
@bad_sample_option
@click.option(
    "--objectives",
    default=None,
    metavar="LIST",
    help="Of accuracy,latency,size,energy; the first two always [all but energy, which needs a meter].",
)
@click.option("--trials", type=click.IntRange(min=0), default=None, help="Stop after so many.")
@click.option(
    "--time", "time_s", type=Duration(), default=None, metavar="2h|90m|600s", help="Stop after it."
)
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="openvino|onnxruntime",
    help="Only this runtime.",
)
@click.option(
    "--route", "routes", multiple=True, metavar="NAME", help="Only this quantization route."
)
@click.option(
    "--calibration-samples", type=click.IntRange(min=1), default=None, help="Read at most [300]."
)
@click.option(
    "--max-drop",
    type=float,
    default=None,
    help="Exit 3 where all of the front loses more points [1].",
)
@click.option(
    "--epochs", type=click.IntRange(min=0), default=None, help="Of the long fine-tuning [10]."
)
@engine_options
@click.option(
    "--seed", type=click.IntRange(min=0), default=None, help="Of splits and the search [0]."
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    help="Trials at a time; nothing trains while engines are timed [1].",
)
@click.option(
    "--measure-on", metavar="ssh://HOST", help="Refused: engines are timed on this machine."
)
@click.option("--trust-code", is_flag=True, help="Run the user code that a bundle names.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Go on with this sweep; --trials and --time count from its start.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The sweep's directory; one that was begun by the same command is gone on with.",
)
@json_option
def sweep(
    model: str | None,
    objectives: str | None,
    trials: int | None,
    time_s: float | None,
    workers: int,
    measure_on: str | None,
    resume: Path | None,
    output: Path | None,
    json_file: str | None,
    trust_code: bool,
    **flags: Any,
) -> int:
    """Try many configurations of MODEL, and tell which are on the front.

    Each trial prunes the network, fine-tunes it or not, and measures one engine on this machine; the
    best are timed together at the end and scored on test once. Ctrl-C, then the same command or
    --resume DIR, goes on where it stopped.
    """
    from ..compress.sweep import parse_objectives, run_sweep, stored_sweep
    from ..errors import InputError, MissingPart
    from ..report.table import print_table
    from .progress import Progress

    if measure_on is not None:
        raise MissingPart(
            f"--measure-on {measure_on}: a sweep times its engines on this machine; sweep here, then "
            f"`edgeml deploy SWEEP/points/ID --to {measure_on}` measures points of the front there"
        )
    flags["preprocess"] = take_preprocess(flags)
    if resume is not None:
        given = [n for n, v in flags.items() if v is not None and v != ()]
        given += [n for n, v in (("MODEL", model), ("-o", output), ("objectives", objectives)) if v]
        if given:
            raise InputError(
                f"--resume {resume} goes on with what the sweep was asked; leave out {given[0]}"
            )
        recipe, state = stored_sweep(resume)
        output, wanted = resume, tuple(state["objectives"])
        if trials is None and time_s is None:
            facts = state.get("facts") or {}
            trials, time_s = facts.get("trials"), facts.get("time_s")
    else:
        if output is None:
            raise InputError("no output: say where the sweep goes, as in -o sweep")
        from ..artifact.recipe import build_recipe
        from ..compress.recipe_from_flags import recipe_values

        wanted = parse_objectives(objectives or "accuracy,latency,size")
        values = recipe_values({}, {**flags, "model": model}, "options", trust_code)
        recipe = build_recipe(values, "options", None)
    with Progress() as progress:
        result = run_sweep(
            recipe,
            output,
            wanted,
            trials=trials,
            time_s=time_s,
            workers=workers,
            log=progress,
            trust_code=trust_code,
        )
    if json_file != "-":
        print_table(result.table)
    write_json(result.table, json_file)
    return result.exit_code
