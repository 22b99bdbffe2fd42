"""What `--plan` says of a target that is not this machine."""

from __future__ import annotations

from importlib.util import find_spec

from ..artifact.boards import BOARDS
from ..artifact.recipe import Recipe
from ..artifact.target import Target
from ..artifact.tensorrt_versions import TensorRTVersion, trtexec_typing
from ..errors import InputError
from ..export.tensorrt_plan import TRTEXEC, stand_in
from ..runtime.remote_bench import RemoteMeter
from .candidates import Candidate
from .device_builds import BUILDS
from .target_candidates import require_target, target_candidates, target_version


def target_plan(
    recipe: Recipe, target: Target, data: str, meter: RemoteMeter | None = None
) -> tuple[list[str], list[str]]:
    """The stages from quantizing to the device, and what is missing here.

    Args:
        data: what calibrates and is scored.
        meter: times the engines on the device; None measures no latency.
    """
    maybe = None if recipe.model.endswith(".onnx") else recipe.model
    try:
        require_target(recipe, target)
        found = target_candidates(recipe, target, module=maybe)
        version = target_version(recipe, target)
    except InputError as e:
        return [], [f"engine: {e}"]
    missing = [f"quantize: {route}: {reason}" for route, reason in found.lacking]
    lines = []
    for step in dict.fromkeys(c.step for c in found.engines if c.step is not None):
        samples = recipe.quantize_step.calibration_samples
        lines.append(
            f"quantize    {step.route}, {samples} calibration samples of "
            f"{recipe.calibration_data or data}"
        )
    for candidate in found.engines:
        lines.append(f"engine      {_form(candidate, version)}")
    board = BOARDS.get(target.board or "")
    if board is not None and meter is None:
        modules = " or ".join(map(str, board.memory_gb))
        lines.append(f"memory      {modules} GB by module, believed; the device tells what is free")
    if version is None:
        lines.append(f"numerics    the runtimes of {target.name}, here")
    else:
        lines += _tensorrt_lines(recipe, target, version, missing)
    if meter is None:
        how = f"not measured here: edgeml deploy OUT times them on {target.name}"
    else:
        how = f"built and timed on {meter.describe()['device']}, in interleaved blocks"
        if recipe.latency or recipe.latency_p99:
            how += f"; the verdict by {BUILDS} builds there"
    lines.append(f"latency     {how}")
    return lines, missing


def _form(candidate: Candidate, version: TensorRTVersion | None) -> str:
    route = f" ({candidate.route})" if candidate.route else ""
    if version is None:
        route = f" ({candidate.route}, {candidate.execution})" if candidate.route else ""
        return f"{candidate.runtime} {candidate.precision}{route}"
    form = "types in the graph" if version.strong else "fp32 graph of opset 17, the builder chooses"
    beside = ", FP16 outside Q/DQ" if candidate.step and version.strong else ""
    return f"{candidate.runtime} {candidate.precision}{route}: {form}{beside}"


def _tensorrt_lines(
    recipe: Recipe, target: Target, version: TensorRTVersion, missing: list[str]
) -> list[str]:
    lines = [f"lint        against TensorRT {version.name}"]
    if find_spec("tensorrt_rtx") and find_spec("polygraphy"):
        capability = stand_in(target.compute_capability or "SM89")
        lines.append(f"legal       TensorRT-RTX parses and builds each graph for {capability}")
    else:
        missing.append(
            "legal: TensorRT-RTX is not installed, graphs are linted only: pip install "
            "'edgeml-toolchain[tensorrt-rtx]'"
        )
    lines.append("numerics    ONNX Runtime at BASIC, FP16 results rounded to FP16")
    if version.rtx:
        return [*lines, "build       edgeml export OUT --to tensorrt-rtx -o OUT-rtx"]
    int8 = recipe.quantize_step is not None
    flags = " ".join(trtexec_typing(version, int8, fp16=True))
    return [
        *lines,
        f"build       on the device: {TRTEXEC} --onnx=… --saveEngine=… {flags}".rstrip()
        + f" {version.skip_inference} (build.sh)",
    ]
