"""Which engines are tried: routes × runtimes × the types their float layers run in."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

from ..artifact.recipe import QuantizeStep, Recipe
from ..artifact.target import TARGETS, Target, find_target
from ..errors import InputError, MissingPart
from .quantize_dynamic import QuantizeDynamic
from .quantize_modelopt import QuantizeModelopt
from .quantize_modelopt_onnx import QuantizeModeloptOnnx
from .quantize_nncf import QuantizeNncf
from .quantize_onnxruntime import QuantizeOnnxRuntime
from .quantize_tensorrt_form import QuantizeTensorrtForm
from .step import QuantizationStep


class Route(Protocol):
    """Makes a route's step; a missing library is `MissingPart`.

    Args:
        nodes: regular expressions over ONNX node names that stay in float.
        reduce_range: as in `artifact.recipe_steps.QuantizeStep`.
        module: the float torch module, for the routes that start from it.
    """

    def __call__(
        self, nodes: tuple[str, ...], reduce_range: bool = False, module: Any = None
    ) -> QuantizationStep: ...


# Route word → step: the one map, for `compress`, `edgeml.compress.quantize` and `doctor`. The first word of
# a name is the family that `--route` names, the second its calibration method.
ROUTES: dict[str, Route] = {
    "nncf performance": lambda nodes, *_: QuantizeNncf("performance", nodes),
    "nncf mixed": lambda nodes, *_: QuantizeNncf("mixed", nodes),
    "onnxruntime minmax": lambda *given: QuantizeOnnxRuntime("minmax", *given[:2]),
    "onnxruntime percentile": lambda *given: QuantizeOnnxRuntime("percentile", *given[:2]),
    "onnxruntime entropy": lambda *given: QuantizeOnnxRuntime("entropy", *given[:2]),
    "onnxruntime dynamic": lambda *given: QuantizeDynamic(*given[:2]),
    # For TensorRT and TensorRT-RTX: slow in ONNX Runtime and OpenVINO.
    "tensorrt-form minmax": lambda *given: QuantizeTensorrtForm("minmax", *given[:2]),
    "tensorrt-form percentile": lambda *given: QuantizeTensorrtForm("percentile", *given[:2]),
    "tensorrt-form entropy": lambda *given: QuantizeTensorrtForm("entropy", *given[:2]),
    "modelopt max": lambda nodes, _=False, module=None: QuantizeModelopt(module, "max", nodes),
    "modelopt smoothquant": lambda nodes, _=False, module=None: QuantizeModelopt(
        module, "smoothquant", nodes
    ),
    "modelopt fp8": lambda nodes, _=False, module=None: QuantizeModelopt(module, "fp8", nodes),
    "modelopt-onnx max": lambda nodes, *_: QuantizeModeloptOnnx("max", nodes),
    "modelopt-onnx entropy": lambda nodes, *_: QuantizeModeloptOnnx("entropy", nodes),
}
# Family → the runtimes that execute what it makes.
FAMILIES: dict[str, tuple[str, ...]] = {
    "nncf": QuantizeNncf.runtimes,
    "onnxruntime": QuantizeOnnxRuntime.runtimes,
    "tensorrt-form": QuantizeTensorrtForm.runtimes,
    "modelopt": QuantizeModelopt.runtimes,
}
# What QAT made (`quantize_qat.py`, `quantize_modelopt_qat.py`): it needs a run of the whole way, so it is no route
# to ask for.
QAT_ROUTE = "nncf qat"
MODELOPT_QAT_ROUTE = "modelopt qat"
QAT_ROUTES = (QAT_ROUTE, MODELOPT_QAT_ROUTE)
# Slow calibrators, which `auto` tries where minmax misses the budget.
SLOW = ("percentile", "entropy")


@dataclass(frozen=True)
class Candidate:
    """One engine to try.

    Attributes:
        runtime: the library that executes it.
        precision: what it is sold as: fp32, bf16, fp16, int8.
        execution: the type its float layers run in.
        step: the quantization step whose model it runs; None for the float model.
    """

    runtime: str
    precision: str
    execution: str = "fp32"
    step: QuantizationStep | None = None

    @property
    def route(self) -> str | None:
        return self.step.route if self.step else None

    @property
    def id(self) -> str:
        """Unique within a run and usable as a file name."""
        parts = [self.runtime, self.precision]
        if self.step:
            parts += self.step.route.split()
            if self.execution != "fp32":
                parts.append(self.execution)
        return "-".join(parts)


def installed_runtimes(wanted: tuple[str, ...] | None) -> list[str]:
    """Runtimes that build engines from files and are installed, in the table's order.

    Raises:
        MissingPart: one that was asked for, or every one, is not installed.
    """
    known = ("openvino", "onnxruntime")
    asked = [name for name in known if wanted is None or name in wanted]
    there = [name for name in asked if find_spec(name)]
    missing = [name for name in asked if name not in there]
    if missing and (wanted is not None or not there):
        raise MissingPart(
            f"{missing[0]} is not installed: pip install 'edgeml-toolchain[{missing[0]}]'"
        )
    if not there:
        raise InputError("--runtime torch builds no engine file; name openvino or onnxruntime too")
    return there


def executable_precisions(runtime: str) -> tuple[str, ...]:
    """The float types this machine's CPU executes in that runtime."""
    if runtime == "openvino":
        from ..runtime.openvino_engine import executable_precisions as openvino_precisions

        return openvino_precisions()
    return ("fp32",)


def quantization_steps(
    settings: QuantizeStep,
    operators: Container[str] = (),
    second_round: bool = False,
    target: Target | None = None,
    precision: str = "int8",
    module: Any = None,
) -> tuple[list[QuantizationStep], list[tuple[str, str]]]:
    """The quantization steps of a recipe's step, and those that cannot be tried with the reason.

    Args:
        operators: of the graph. ONNX Runtime's dynamic quantization is tried where an LSTM is among
            them, which no other route quantizes, or where it is asked for by its own name.
        second_round: the slow calibration methods that `auto` adds when minmax missed the budget.
        target: routes whose engines it cannot execute are left out, unless they were asked for;
            None is this machine.
        precision: int8, or fp8, which ModelOpt alone makes.
        module: the torch module; without it ModelOpt starts from the graph.
    """
    runtimes = set((target or TARGETS["cpu"]).runtimes)
    families = settings.routes or [f for f, runs in FAMILIES.items() if runtimes & set(runs)]
    steps: list[QuantizationStep] = []
    lacking: list[tuple[str, str]] = []
    for family in families:
        if family == "modelopt":
            words, reasons = _modelopt_words(
                settings.calibration_method, precision, module is not None, second_round
            )
        elif precision == "fp8":
            words, reasons = [], []
            if settings.routes:
                reasons = [(family, f"{family} makes no fp8, the route modelopt does")]
        else:
            words, reasons = _words(family, settings.calibration_method, operators, second_round)
        lacking += reasons
        for word in words:
            try:
                step = ROUTES[word](settings.nodes_to_exclude, settings.reduce_range, module)
            except MissingPart as e:
                if settings.routes is not None:
                    raise
                lacking.append((family, str(e)))
                break
            steps.append(step)
    return steps, lacking


def _words(
    family: str, method: str, operators: Container[str], second_round: bool
) -> tuple[list[str], list[tuple[str, str]]]:
    """The words of a family that a calibration method asks for, and why others cannot be tried."""
    if family in ROUTES:  # asked for by its whole name
        return ([] if second_round else [family]), []
    if family == "nncf":
        if method in SLOW:
            return [], [(f"nncf {method}", f"NNCF's OpenVINO route has no {method} calibration")]
        return ([] if second_round else ["nncf performance", "nncf mixed"]), []
    if second_round:
        return [f"{family} {slow}" for slow in SLOW if method == "auto"], []
    words = [f"{family} {'minmax' if method == 'auto' else method}"]
    if family != "onnxruntime":
        return words, []
    if "LSTM" in operators:
        return [*words, QuantizeDynamic.route], []
    if "GRU" in operators:
        return words, [(QuantizeDynamic.route, "it quantizes LSTMs, and no GRU")]
    return words, []


def _modelopt_words(
    method: str, precision: str, torch: bool, second_round: bool
) -> tuple[list[str], list[tuple[str, str]]]:
    """As `_words`: ModelOpt starts from the torch module where there is one, else from the graph."""
    if precision == "fp8":
        if not torch:
            return [], [
                (
                    "modelopt fp8",
                    "FP8 is made of the torch module, and this is a graph: give net.py:build --weights",
                )
            ]
        return ([] if second_round else ["modelopt fp8"]), []
    if method == "percentile":
        return [], [("modelopt percentile", "ModelOpt has no percentile calibration")]
    if second_round:
        smooth = ["modelopt smoothquant"] if torch else []
        return ([*smooth, "modelopt-onnx entropy"] if method == "auto" else []), []
    if method == "entropy":
        return ["modelopt-onnx entropy"], []
    return ["modelopt max" if torch else "modelopt-onnx max"], []


def require_candidates(recipe: Recipe) -> None:
    """Refuse a recipe of which nothing can ship, whatever is measured.

    Raises:
        InputError: routes, runtimes and precisions leave no engine that this machine, or the recipe's
            target, could run.
    """
    target = find_target(recipe.target)
    if not target.this_machine:
        from .target_candidates import require_target

        require_target(recipe, target)
        return
    steps, lacking = quantization_steps(recipe.quantize_step) if recipe.quantize_step else ([], [])
    runtimes = installed_runtimes(recipe.runtimes)
    found = float_candidates(recipe) + int8_candidates(recipe, steps)
    if any(recipe.precisions is None or c.precision in recipe.precisions for c in found):
        return
    reasons = [reason for _, reason in lacking]
    reasons += sorted({f"{s.route} makes engines of {' and '.join(s.runtimes)}" for s in steps})
    why = f" ({'; '.join(reasons)})" if reasons else ""
    raise InputError(
        f"no engine could ship: {' and '.join(runtimes)} here has none in "
        f"{' or '.join(recipe.precisions or ())}{why}; widen --precision, --runtime or --route"
    )


def float_candidates(recipe: Recipe) -> list[Candidate]:
    """The float model in every runtime and every type the CPU executes."""
    wanted = set(recipe.precisions or ("fp32", "bf16", "fp16"))
    found = []
    for runtime in installed_runtimes(recipe.runtimes):
        there = executable_precisions(runtime)
        for precision in ("fp32", "bf16", "fp16"):
            # fp32 and bf16 are always measured, so that INT8 is seen to pay; fp16 where it may ship.
            if precision in there and (precision != "fp16" or precision in wanted):
                found.append(Candidate(runtime, precision, precision))
    return found


def int8_candidates(recipe: Recipe, steps: list[QuantizationStep]) -> list[Candidate]:
    """Each quantized model in every runtime that takes it, its float layers in fp32 and in bf16."""
    return [
        Candidate(runtime, "int8", execution, step)
        for step in steps
        for runtime in installed_runtimes(recipe.runtimes)
        if runtime in step.runtimes
        for execution in ("fp32", "bf16")
        if execution in executable_precisions(runtime)
    ]
