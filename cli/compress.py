"""`edgeml compress`: a recipe from flags, one call, the table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from ..artifact.recipe import Recipe
    from ..runtime.remote_bench import RemoteMeter

EPILOG = """\b
Examples:
  edgeml compress model.onnx --data imagefolder:photos --int8 -o out
  edgeml compress net.py:build --weights w.safetensors --data images-csv:val.csv \\
      --calibration-data imagefolder:calib --int8 --max-drop 0.5 -o out
  edgeml compress runs/resnet56 --latency 60% --max-drop 0.5 -o out
  edgeml compress recogniser.onnx --task ocr_task.py:Task --int8 -o out
  edgeml compress model.onnx --data imagefolder:photos --int8 --target jetson-orin-nano -o out
"""


@click.command(epilog=EPILOG)
@click.argument("model", required=False)
@click.option("--weights", metavar="FILE", help="Weights for a factory, .safetensors.")
@click.option(
    "--data",
    metavar="SOURCE",
    help="Samples: digits, mnist5k, imagefolder:, images-csv:, images:, npz:, file.py:factory.",
)
@sample_options
@click.option(
    "--fold-preprocess",
    is_flag=True,
    default=None,
    help="Put cast, mean/std and layout into the graph (uint8 NHWC in).",
)
@bad_sample_option
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    metavar="fp32|bf16|fp16|int8|fp8",
    help="Only this may ship.",
)
@click.option("--int8", "int8", is_flag=True, help="Short for --precision int8.")
@click.option("--fp16", "fp16", is_flag=True, help="Short for --precision fp16.")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="openvino|onnxruntime",
    help="Only this runtime.",
)
@click.option(
    "--route",
    "routes",
    multiple=True,
    metavar="nncf|onnxruntime|'onnxruntime dynamic'|tensorrt-form|modelopt",
    help="Only this quantization route.",
)
@click.option(
    "--target",
    metavar="cpu|intel-cpu|arm64|rtx|jetson-…|FILE.yaml|ssh://[USER@]HOST[:PORT]",
    default=None,
    help="Where it will run [cpu: this machine]; latency elsewhere is measured by ssh:// only.",
)
@click.option(
    "--tensorrt", metavar="VERSION", default=None, help="Write graphs for it [the target's usual]."
)
@click.option(
    "--calibration-samples", type=click.IntRange(min=1), default=None, help="Read at most [300]."
)
@click.option(
    "--calibration-method",
    metavar="auto|minmax|percentile|entropy",
    default=None,
    help="How ranges are found [auto: minmax; the slow ones where it misses].",
)
@click.option(
    "--nodes-to-exclude", multiple=True, metavar="REGEX", help="Nodes that stay in float."
)
@click.option(
    "--reduce-range",
    is_flag=True,
    default=None,
    help="7-bit weights (ONNX Runtime on x86 without VNNI).",
)
@click.option(
    "--allow-random-calibration",
    is_flag=True,
    default=None,
    help="Calibrate on noise; marks the result.",
)
@click.option(
    "--max-drop",
    type=float,
    default=None,
    help="Points of the primary metric that may be lost [1].",
)
@click.option(
    "--latency",
    metavar="60%|5ms",
    default=None,
    help="Keep the p50 at most this; a percentage is of the plain INT8 engine of the same run.",
)
@click.option("--latency-p99", metavar="60%|5ms", default=None, help="Keep the p99 at most this.")
@click.option(
    "--max-size", metavar="60%|400KB", default=None, help="The engine's files at most this."
)
@click.option(
    "--max-energy", metavar="60%|12mJ", default=None, help="Energy an inference; needs a meter."
)
@click.option(
    "--epochs", type=click.IntRange(min=0), default=None, help="Bound of all fine-tuning [10]."
)
@click.option(
    "--finetune",
    metavar="FILE.py:FN",
    default=None,
    help="Instead of our training loop: fn(model, teacher, out, deadline_s) -> model.",
)
@click.option(
    "--qat",
    is_flag=True,
    default=None,
    help="Train the INT8 engine of OpenVINO or TensorRT, too, with the original as the teacher.",
)
@click.option(
    "--groups",
    metavar="FILE.csv:COLUMN",
    default=None,
    help="Groups of test samples, by file or index [the classes].",
)
@click.option(
    "--max-drop-worst",
    type=float,
    default=None,
    metavar="POINTS",
    help="What any group may lose on test; above it, beyond chance, is exit 3.",
)
@click.option(
    "--samples",
    is_flag=True,
    default=None,
    help="Show up to 24 flipped samples in the result (they may be private).",
)
@click.option(
    "--drift",
    type=click.IntRange(1, 64),
    default=None,
    metavar="N",
    help="Compare explanations of N test samples with the reference's (slow).",
)
@click.option("--strict", is_flag=True, default=None, help="Ship only what is proven.")
@engine_options
@click.option(
    "--objective",
    type=click.Choice(["latency", "throughput"]),
    default=None,
    help="What engines are compiled for and chosen by [latency].",
)
@click.option(
    "--time",
    "time_s",
    type=Duration(),
    default=None,
    metavar="2h|90m|600s",
    help="Bound of the search.",
)
@click.option(
    "--table-time",
    "table_time_s",
    type=Duration(),
    default=None,
    metavar="2h|90m|600s",
    help="Bound of measuring a device's latency table [30m].",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=None, help="Of splits and picked samples [0]."
)
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Repeat a run; flags win over it.",
)
@click.option("--trust-code", is_flag=True, help="Run the user code that a bundle names.")
@click.option(
    "--plan",
    is_flag=True,
    help="Print the stages and what is missing here; over ssh://, time up to three small networks there.",
)
@click.option(
    "-o",
    "--output",
    "output",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="The bundle to write; must not exist.",
)
@json_option
def compress(
    output: Path | None,
    json_file: str | None,
    recipe_file: Path | None,
    trust_code: bool,
    plan: bool,
    int8: bool,
    fp16: bool,
    **flags: Any,
) -> int:
    """Make the fastest engine of MODEL that keeps the accuracy budget, and prove it.

    MODEL is model.onnx, FILE.py:FACTORY (runs that file), a bundle, hf:DIR_OR_ID, zoo:NAME or
    timm:NAME. Engines are built by every route and runtime installed here, verified, scored and
    timed; the measured best ships in OUT.
    """
    from ..artifact.recipe import build_recipe, read_recipe
    from ..compress.recipe_from_flags import recipe_values

    flags["precisions"] = (
        *flags["precisions"],
        *(["int8"] if int8 else []),
        *(["fp16"] if fp16 else []),
    )
    flags["preprocess"] = take_preprocess(flags)
    where = f"recipe {recipe_file}" if recipe_file else "options"
    base = read_recipe(recipe_file) if recipe_file else {}
    if str(flags["target"] or "").startswith("ssh://"):
        return _on_device(base, flags, where, recipe_file, output, json_file, trust_code, plan)
    values = recipe_values(base, flags, where, trust_code)
    recipe = build_recipe(values, where, recipe_file)
    return _run(recipe, output, json_file, trust_code, plan)


def _on_device(
    base: dict[str, Any],
    flags: dict[str, Any],
    where: str,
    recipe_file: Path | None,
    output: Path | None,
    json_file: str | None,
    trust_code: bool,
    plan: bool,
) -> int:
    """The same with engines timed on a device: its board is the target."""
    from ..artifact.recipe import build_recipe
    from ..compress.recipe_from_flags import recipe_values
    from ..deploy.address import parse_address
    from ..deploy.meter import DeviceMeter
    from .progress import Progress

    address = parse_address(flags["target"], "--target")
    with DeviceMeter(address, log=Progress()) as meter:
        flags["target"] = meter.target
        if meter.facts.tensorrt is not None and meter.facts.tensorrt_builds:
            flags["tensorrt"] = flags["tensorrt"] or meter.facts.tensorrt
        values = recipe_values(base, flags, where, trust_code, timed=True)
        recipe = build_recipe(values, where, recipe_file)
        return _run(recipe, output, json_file, trust_code, plan, meter)


def _run(
    recipe: Recipe,
    output: Path | None,
    json_file: str | None,
    trust_code: bool,
    plan: bool,
    meter: RemoteMeter | None = None,
) -> int:
    """Plan or compress, and print."""
    from ..errors import InputError

    if plan:
        from ..compress.plan import plan_lines

        click.echo("\n".join(plan_lines(recipe, trust_code, meter)))
        return 0
    if output is None:
        raise InputError("no output: say where the bundle goes, as in -o out")
    from ..compress.run_recipe import run_recipe
    from ..report.budget_table import budget_lines
    from ..report.table import print_table
    from .progress import Progress

    with Progress() as progress:
        result = run_recipe(recipe, output, log=progress, trust_code=trust_code, meter=meter)
    if json_file != "-":
        for line in budget_lines(result.table):
            click.echo(line)
        print_table(result.table)
    write_json(result.table, json_file)
    return result.exit_code
