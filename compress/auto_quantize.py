"""The fewest bits that keep an accuracy budget: ModelOpt's ranking of layers, our bisection, scored on an engine.

ModelOpt's ``auto_quantize`` ranks layers by how far quantizing each alone moves the outputs (KL divergence, no
labels) and picks those to quantize for a budget of *effective bits*, the mean of bits over the weights: 8 is all
INT8 (or FP8), 16 nothing. It knows no accuracy budget (0.47), so we bisect over the bits: rank once, then for each
try solve, calibrate, export, and score the file in an engine.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BuildError
from ..export.model_files import model_bytes
from .calibration import Calibration
from .node_names import match_nodes
from .quantize_modelopt import (
    Method,
    examples,
    export_like,
    heavy_layers,
    modelopt_versions,
    modules_of_nodes,
    quantize_module,
)
from .step import StepResult

if TYPE_CHECKING:
    import torch

ALL, NONE = 8.0, 16.0
# Each try calibrates and scores once; after 6 the bits are known to an eighth.
TRIES = 6
# Samples that layers are ranked on: each is run once a layer.
RANKED = 16


@dataclass(frozen=True)
class Try:
    """One point of the bisection.

    Attributes:
        effective_bits: asked of ModelOpt.
        floats: the layers it left in float.
        drop_points: what the engine lost, as `score` gave it.
    """

    effective_bits: float
    floats: tuple[str, ...]
    drop_points: float


class AutoQuantizeModelopt:
    """INT8 or FP8 with as few layers in float as keep the budget.

    Args:
        module: the float torch module that the run's ONNX file was exported from; left as it is.
        score: an exported file -> the points its engine loses (ONNX Runtime at BASIC runs the Q/DQ that were
            written; above it FP8 is wrong).
        max_drop_points: the budget.
        method: ``max``, ``smoothquant`` or ``fp8``; layers are ranked by max in any case (ModelOpt ranks by
            no other).
        nodes_to_exclude: regular expressions over ONNX node names that stay in float.
        tries: files made and scored at most.
        scored_on: stands for what `score` reads, in the settings that key the result.

    Attributes:
        tried: of the last call, in order.

    Raises:
        MissingPart: modelopt or torch is not installed.
    """

    runtimes: tuple[str, ...] = ("tensorrt", "tensorrt-rtx")
    calibrates = True

    def __init__(
        self,
        module: torch.nn.Module,
        score: Callable[[Path], float],
        max_drop_points: float,
        method: Method = "max",
        nodes_to_exclude: tuple[str, ...] = (),
        tries: int = TRIES,
        scored_on: str = "",
    ) -> None:
        self.scored_on = scored_on
        self.module, self.score, self.max_drop_points = module, score, max_drop_points
        self.method, self.nodes_to_exclude, self.tries = method, nodes_to_exclude, tries
        self.route = f"modelopt auto {method}"
        self.precision = "fp8" if method == "fp8" else "int8"
        self.tried: list[Try] = []
        self._versions = modelopt_versions()

    def settings(self) -> dict[str, Any]:
        return {
            "route": self.route,
            "max_drop_points": self.max_drop_points,
            "nodes_to_exclude": list(self.nodes_to_exclude),
            "tries": self.tries,
            "scored_on": self.scored_on,
            "versions": self._versions,
        }

    def __call__(self, model: Path, calibration: Calibration, directory: Path) -> StepResult:
        """Writes ``model.int8.onnx`` (or ``model.fp8.onnx``): the fewest bits that kept the budget, or the least
        loss where none did, which a note says.

        Raises:
            BuildError: nothing can be quantized.
        """
        excluded = modules_of_nodes(model, match_nodes(model, self.nodes_to_exclude))
        layers, solve = rank(self.module, calibration, self.method, excluded)
        self.tried = []
        made: dict[tuple[str, ...], tuple[Path, int, float]] = {}
        path = directory / f"model.{self.precision}.onnx"
        with tempfile.TemporaryDirectory(dir=directory) as scratch:

            def attempt(bits: float) -> float:
                floats = tuple(name for name in layers if name not in solve(bits))
                if len(floats) == len(layers):
                    return float("-inf")  # the float network itself
                if floats not in made:
                    left_out = [*excluded, *floats]
                    ready, _ = quantize_module(self.module, calibration, self.method, left_out)
                    file = Path(scratch, f"{len(made)}.onnx")
                    done = export_like(model, ready, examples(calibration), file)
                    made[floats] = (file, done.quantizers, self.score(file))
                    self.tried.append(Try(bits, floats, made[floats][2]))
                return made[floats][2]

            low, high = ALL, NONE
            kept = attempt(low) <= self.max_drop_points
            while not kept and len(made) < self.tries and high - low > (NONE - ALL) / 2**self.tries:
                middle = (low + high) / 2
                if attempt(middle) <= self.max_drop_points:
                    high = middle
                else:
                    low = middle
            good = [t for t in self.tried if t.drop_points <= self.max_drop_points]
            best = (
                min(good, key=lambda t: (t.effective_bits, t.drop_points))
                if good
                else min(self.tried, key=lambda t: t.drop_points)
            )
            file, quantizers, drop = made[best.floats]
            if file.with_name(
                f"{file.name}.data"
            ).exists():  # which the graph names by its own name
                raise BuildError(f"{self.route} writes no network beyond 2 GB")
            shutil.move(file, path)
        notes = [f"{name} stays in float, which the budget asks for" for name in best.floats]
        if not good:
            notes.append(
                f"no choice of layers kept {self.max_drop_points:g} points in {len(self.tried)} tries; this "
                f"one loses {drop:.2f}"
            )
        return StepResult(path, quantizers, model_bytes(path), notes)


def rank(
    module: torch.nn.Module, calibration: Calibration, method: Method, excluded: list[str]
) -> tuple[list[str], Callable[[float], set[str]]]:
    """Rank the layers once.

    Returns:
        The names of the layers that may be quantized, and a function that tells for effective bits which
        of them are.

    Raises:
        BuildError: there is none, or outputs are no logits that could be compared.
    """
    from itertools import islice

    import torch

    from ..export.onnx_graph import forward_feed
    from .modelopt_export import import_modelopt, quiet
    from .modelopt_prepare import prepared, recurrent_hidden

    mtq = import_modelopt()
    feed, _ = forward_feed(torch, module, examples(calibration))
    ready = prepared(module, feed)
    layers = heavy_layers(mtq, ready, excluded)
    if not layers:
        raise BuildError(
            f"{type(module).__name__} has no convolution or Linear layer that ModelOpt quantizes"
        )
    given = [forward_feed(torch, ready, s)[0] for s in islice(iter(calibration), RANKED)]

    def logits(model: torch.nn.Module, sample: dict[str, Any]) -> torch.Tensor:
        from torch.utils import _pytree

        result = model(**sample)
        first = next(t for t in _pytree.tree_leaves(result) if isinstance(t, torch.Tensor))
        return first.flatten(1) if first.dim() > 3 else first

    with recurrent_hidden(ready), quiet(), torch.no_grad():
        _, state = mtq.auto_quantize(
            ready,
            constraints={"effective_bits": (ALL + NONE) / 2},
            quantization_formats=[_format(method)],
            data_loader=given,
            forward_step=logits,
            disabled_layers=sorted(_all_quantizable(ready) - set(layers)) or None,
            num_calib_steps=len(given),
            num_score_steps=len(given),
            method="kl_div",
        )

    def solve(bits: float) -> set[str]:
        if bits <= ALL:
            return set(layers)
        with quiet():
            found = mtq.get_auto_quantize_config(state, {"effective_bits": bits})
        return {
            name
            for name in layers
            for entry in found["quant_cfg"]
            if entry["quantizer_name"] == f"{name}.weight_quantizer" and entry.get("enable", True)
        }

    return layers, solve


def _format(method: Method) -> dict[str, Any]:
    """`quantize_modelopt.configuration` by patterns, as auto_quantize wants it; max is what it ranks by."""
    bits: Any = (4, 3) if method == "fp8" else 8
    axis = None if method == "fp8" else 0
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": axis}},
            {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": bits, "axis": None}},
        ],
        "algorithm": "max",
    }


def _all_quantizable(module: torch.nn.Module) -> set[str]:
    from .modelopt_prepare import HEAVY

    return {name for name, part in module.named_modules() if isinstance(part, HEAVY)}
