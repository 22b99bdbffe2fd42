"""Which engines are made for a target that is not this machine."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from ..artifact.recipe import Recipe
from ..artifact.target import Target
from ..artifact.tensorrt_versions import TensorRTVersion
from ..errors import InputError, MissingPart
from .budget_parts import needs_baseline
from .candidates import Candidate, executable_precisions, installed_runtimes, quantization_steps

# What edgeml writes graphs in for TensorRT; bf16 has no caster here, int4 waits for language models.
WRITTEN = ("fp32", "fp16", "int8", "fp8")
QUANTIZED = ("int8", "fp8")
NO_INT8_CONVOLUTIONS = (
    "TensorRT-RTX runs INT8 for weights of products only (its support matrix), not for convolutions: "
    "give --fp16, or --precision fp8 (Ada and Blackwell)"
)


@dataclass(frozen=True)
class Candidates:
    """What is tried.

    Attributes:
        engines: in the order they are made.
        lacking: (route, reason) of what cannot be tried.
    """

    engines: list[Candidate] = field(default_factory=list)
    lacking: list[tuple[str, str]] = field(default_factory=list)


def target_version(recipe: Recipe, target: Target) -> TensorRTVersion | None:
    """The TensorRT that graphs are written for; None for targets without."""
    return target.tensorrt_version(recipe.tensorrt) if target.by_tensorrt else None


def target_candidates(
    recipe: Recipe,
    target: Target,
    operators: Container[str] = (),
    second_round: bool = False,
    module: Any = None,
) -> Candidates:
    """The engines of a recipe for `target`.

    FP16 is always among those of a TensorRT target: an INT8 engine can be slower than it, which only the
    device shows.

    Args:
        operators: of the float graph; empty where it is not known yet.
        second_round: only the slow calibration methods that `auto` adds.
        module: the torch module; None where the model is a graph.

    Raises:
        InputError: the recipe asks for what the target cannot execute or edgeml cannot write.
        MissingPart: a route or runtime that was asked for is not installed.
    """
    version = target_version(recipe, target)
    if version is None:
        return _on_cpu(recipe, target, operators, second_round)
    if recipe.runtimes is not None:
        raise InputError(
            f"--runtime {recipe.runtimes[0]}: engines for {target.name} are TensorRT's; leave it out, or "
            "take --target arm64 for ONNX Runtime on its CPU"
        )
    for precision in recipe.precisions or ():
        if precision not in WRITTEN:
            raise InputError(
                f"--precision {precision}: edgeml writes no {precision} graph for TensorRT; give one of "
                f"{', '.join(WRITTEN)}"
            )
    runtime = target.runtimes[0]
    engines: list[Candidate] = []
    if not second_round:
        if "fp32" in (recipe.precisions or ()):
            engines.append(Candidate(runtime, "fp32"))
        engines.append(Candidate(runtime, "fp16", "fp16"))
    asked = [p for p in QUANTIZED if p in (recipe.precisions or ())]
    # Where limits are a share of plain INT8, it is measured whatever may ship.
    by_default = ["int8"] if recipe.precisions is None or needs_baseline(recipe) else []
    found = Candidates(engines)
    settings = recipe.quantize_step
    if settings is None:
        return found
    for precision in dict.fromkeys([*asked, *by_default]):
        if precision == "int8" and version.rtx and "Conv" in operators:
            if precision in asked:
                raise InputError(NO_INT8_CONVOLUTIONS)
            found.lacking.append(("tensorrt-form", NO_INT8_CONVOLUTIONS))
            continue
        steps, lacking = quantization_steps(
            settings, operators, second_round, target, precision, module
        )
        engines += [
            Candidate(runtime, precision, "fp16", step)
            for step in steps
            if runtime in step.runtimes
        ]
        found.lacking.extend(lacking)
        if (
            precision in asked
            and not second_round
            and not any(c.precision == precision for c in engines)
        ):
            raise MissingPart("; ".join(reason for _, reason in lacking) or _no_route(precision))
    return found


def _no_route(precision: str) -> str:
    return f"no route of --route makes {precision} engines for TensorRT"


def _on_cpu(
    recipe: Recipe, target: Target, operators: Container[str], second_round: bool
) -> Candidates:
    """Engines of a CPU's own runtimes; they run here too, which gives their numerics."""
    wanted = recipe.runtimes or target.runtimes
    for name in wanted:
        if name not in target.runtimes:
            raise InputError(
                f"--runtime {name}: {target.name} runs {' and '.join(target.runtimes)}"
            )
    runtimes = [name for name in installed_runtimes(None) if name in wanted]
    if not runtimes:
        raise MissingPart(
            f"{wanted[0]} is not installed: pip install 'edgeml-toolchain[{wanted[0]}]'"
        )
    # Types that this machine does not execute cannot be scored here.
    floats = {
        name: [p for p in executable_precisions(name) if p in target.precisions]
        for name in runtimes
    }
    engines = []
    if not second_round:
        engines = [Candidate(name, p, p) for name in runtimes for p in floats[name]]
    settings = recipe.quantize_step
    if settings is None:
        return Candidates(engines)
    steps, lacking = quantization_steps(settings, operators, second_round, target)
    engines += [
        Candidate(name, "int8", execution, step)
        for step in steps
        for name in runtimes
        if name in step.runtimes
        for execution in floats[name]
        if execution != "fp16"
    ]
    return Candidates(engines, lacking)


def require_target(recipe: Recipe, target: Target) -> None:
    """Refuse before any work a recipe of which nothing can be made for `target`.

    Raises:
        InputError: as `target_candidates`, or nothing of the precisions that may ship is among them.
        MissingPart: what casts graphs to FP16 is not installed.
    """
    # Whether a bundle holds a graph or a network is known when it is opened.
    maybe = None if recipe.model.endswith(".onnx") else recipe.model
    found = target_candidates(recipe, target, module=maybe)
    if target.by_tensorrt:
        for name in ("onnxconverter_common", "onnxruntime"):
            if find_spec(name) is None:
                package = name.replace("_", "-")
                raise MissingPart(f"{package} is not installed: pip install {package}")
    if recipe.precisions and not any(c.precision in recipe.precisions for c in found.engines):
        reasons = "; ".join(reason for _, reason in found.lacking)
        raise InputError(
            f"no engine could ship for {target.name} in {' or '.join(recipe.precisions)}"
            f"{': ' + reasons if reasons else ''}; widen --precision, --runtime or --route"
        )
