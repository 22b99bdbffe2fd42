"""`--plan`: the stages of a recipe, what each needs, and what is missing here; nothing is run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ..artifact.budget_limit import PARTS
from ..artifact.machine import usable_threads
from ..artifact.recipe import Recipe
from ..artifact.target import find_target
from ..errors import InputError
from ..runtime.remote_bench import RemoteMeter
from .candidates import float_candidates, int8_candidates, quantization_steps, require_candidates
from .plan_training import lacking_parts, onnx_alone, sparsity_refused, training_lines, trains
from .target_plan import target_plan
from .target_times import refuse_for_device


def plan_lines(
    recipe: Recipe, trust_code: bool = False, meter: RemoteMeter | None = None
) -> list[str]:
    """The plan as text.

    Args:
        recipe: what would be run; its model is looked for, its code is not run.
        trust_code: as in `run_recipe`.
        meter: of the device that answers: where the recipe prunes, the model is opened then, and a few
            networks are built and timed there to tell how long its latency table takes.

    Raises:
        MissingPart: a route that was asked for is not installed.
    """
    lines, missing = [], []
    path = Path(recipe.model.rpartition(":")[0] or recipe.model)
    is_onnx, is_bundle = recipe.model.endswith(".onnx"), Path(recipe.model).is_dir()
    named_file = path.suffix == ".py" or is_onnx
    if named_file and not path.exists():
        missing.append(f"model: no file at {path}")
    missing += _missing_files(recipe)
    if not is_onnx and not is_bundle:
        lines.append("export      torch → ONNX (dynamo, opset 20), verified on real inputs")
        missing += [
            f"export: {name} is not installed: pip install 'edgeml-toolchain[train]'"
            for name in ("torch", "onnxscript")
            if not find_spec(name)
        ]
    if is_bundle and trust_code:
        lines.append("trust       the user code that the bundle names will run")
    data = recipe.data or recipe.task
    lines.append(f"reference   scored on validation: {data or 'not scored: no data'}")
    target = find_target(recipe.target)
    trained = trains(recipe) and not onnx_alone(recipe.model)
    if trains(recipe) and not trained:
        lines.append(
            f"train       nothing: {recipe.model} is ONNX alone, without weights to train; limits that "
            "quantization misses are refused then"
        )
    if trained:
        lines += training_lines(recipe, here=target.this_machine)
        missing += lacking_parts(recipe)
        missing += [f"finetune: {line}" for line in [sparsity_refused(recipe)] if line]
    if meter is not None:
        try:
            refuse_for_device(recipe, meter)
        except InputError as e:
            missing.append(f"limits: {e}")
    if trained and recipe.step("prune") and not target.this_machine:
        if meter is None:
            lines.append("table       not measured: no device answers")
            missing.append(
                f"prune: it is steered by times of {target.name}: --target ssh://USER@HOST"
            )
        elif not missing:
            from .device_plan import device_table_line

            lines.append(device_table_line(recipe, meter, trust_code))
    told, lacking = (
        _engines_here(recipe, data)
        if target.this_machine
        else target_plan(recipe, target, data or "noise", meter)
    )
    lines += told
    missing += lacking
    if recipe.max_drop_points is not None:
        sort = "proven" if recipe.strict else "proven, else plausible"
        only = f", {'/'.join(recipe.precisions)} only" if recipe.precisions else ""
        best = "the fastest" if target.this_machine or meter else "the fewest bits"
        lines.append(
            f"choose      {best} that loses ≤ {recipe.max_drop_points:g} points ({sort}){only}"
        )
    for part in PARTS:
        if limit := recipe.limit(part):
            of = " of the original's plain INT8 engine in the same run" if limit.relative else ""
            name = part.replace("max_", "").replace("_", " ")
            lines.append(f"limit       {name} at most {limit.text}{of}")
    lines.append("test        the shipped engine and the reference, once")
    return lines + [f"MISSING     {line}" for line in missing or ["nothing"]]


def _engines_here(recipe: Recipe, data: str | None) -> tuple[list[str], list[str]]:
    """Quantizing, building and timing on this machine; and what is missing for it."""
    lines: list[str] = []
    steps, lacking = quantization_steps(recipe.quantize_step) if recipe.quantize_step else ([], [])
    for step in steps:
        samples = recipe.quantize_step.calibration_samples
        where = recipe.calibration_data or data or "noise"
        lines.append(f"quantize    {step.route}, {samples} calibration samples of {where}")
    missing = [f"quantize: {route}: {reason}" for route, reason in lacking]
    try:
        require_candidates(recipe)
        for candidate in float_candidates(recipe) + int8_candidates(recipe, steps):
            name = f"{candidate.runtime} {candidate.precision}"
            route = f" ({candidate.route}, {candidate.execution})" if candidate.route else ""
            lines.append(f"engine      {name}{route}")
    except InputError as e:
        missing.append(f"engine: {e}")
    threads = usable_threads(recipe.threads)
    lines.append(f"measure     batch {recipe.batch}, {threads} threads, {recipe.objective}")
    return lines, missing


def _missing_files(recipe: Recipe) -> list[str]:
    """Files and folders that the recipe names and that are not there."""
    named = {name: getattr(recipe, name) for name in ("weights", "classes")}
    if recipe.task:
        named["task"] = recipe.task.rpartition(":")[0]
    for name in ("data", "calibration_data"):
        scheme, _, rest = (getattr(recipe, name) or "").partition(":")
        if scheme.endswith(".py"):
            named[name] = scheme
        elif scheme in ("imagefolder", "images-csv", "images", "npz", "text-csv"):
            named[name] = rest
    return [
        f"{name.replace('_', ' ')}: nothing at {place}"
        for name, place in named.items()
        if place and not Path(place).exists()
    ]
