"""Why a budget was missed: the layers that quantization hurts most, and the next command to try."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import one_line
from ..export.layer_noise import worst_layers_onnx, worst_layers_openvino
from .budget import Budget, Choice, lost
from .build_engines import Trial, quantized_model
from .fairness import unfair
from .job import Job
from .stages import Stages

WORST = 5
# Real inputs whose noise is summed: more move the order of the first five no further (Lite0).
SAMPLES = 8


def is_missed(
    choice: Choice, final: dict[str, Any] | None, parts: list[dict[str, Any]], strict: bool
) -> bool:
    """Whether a part of the budget is missed, or, with `strict`, one is not proven."""
    tested = (final or {}).get("verdict")
    verdicts = [part["verdict"] for part in parts]
    if choice.exit_code == 3 or tested == "missed" or unfair(final, strict):
        return True
    if strict and (tested not in (None, "proven") or any(v != "proven" for v in verdicts)):
        return True
    return "missed" in verdicts


def advice_on(
    job: Job,
    shipped: Trial,
    final: dict[str, Any] | None,
    parts: list[dict[str, Any]],
    budget: Budget,
    output: Path,
    stages: Stages,
) -> list[str]:
    """What to try where the budget is missed: layers in float where accuracy is, limits that hold where
    a limit is."""
    over = [part for part in parts if part["verdict"] == "missed"]
    lines = []
    if not over or lost(shipped.row, (final or {}).get("verdict"), budget):
        lines = explain_miss(job, shipped, output, stages)
    return lines + reachable(over, output)


def explain_miss(job: Job, nearest: Trial, output: Path, stages: Stages) -> list[str]:
    """Lines for the user: the five worst layers of the nearest engine with their signal to noise,
    and a command that leaves them in float.

    Args:
        nearest: the INT8 engine that missed by the least.
        output: where this run's bundle goes; the command starts from its recipe.
    """
    step = nearest.candidate.step if nearest.candidate else None
    if step is None:
        return []
    feeds = list(islice(job.calibration(), SAMPLES))
    try:
        quantized, _ = quantized_model(job, step, stages)
        worst_layers = worst_layers_openvino if quantized.suffix == ".xml" else worst_layers_onnx
        worst = worst_layers(job.onnx, quantized, feeds, WORST)
    except Exception as e:  # advice on top: the result must not be lost to it
        return [f"the worst layers are not known: {one_line(e)}"]
    if not worst:
        return []
    told = ", ".join(f"{name} {snr:.1f} dB" for name, snr in worst)
    pattern = "^(" + "|".join(re.escape(name) for name, _ in worst) + ")$"
    # The flag replaces the recipe's own patterns: what is in float already stays there.
    patterns = [*job.settings.nodes_to_exclude, pattern]
    excluded = " ".join(f"--nodes-to-exclude {shlex.quote(p)}" for p in patterns)
    again = output.with_name(f"{output.name}-2")
    return [
        f"worst layers of {nearest.row.id} (signal to noise): {told}",
        f"try: edgeml compress --recipe {shlex.quote(str(output / 'recipe.yaml'))} "
        f"{excluded} -o {shlex.quote(str(again))}",
    ]


def reachable(missed: Sequence[Mapping[str, Any]], output: Path) -> list[str]:
    """The command with limits that this run's engine keeps; none where no limit was missed.

    Args:
        missed: rows of `budget_parts.judge_parts`.

    >>> reachable([{"part": "latency", "unit": "of plain INT8", "value": 0.62, "bound": 0.631}],
    ...           Path("out"))
    ['try: edgeml compress --recipe out/recipe.yaml --latency 64% -o out-2']
    """
    flags = []
    for part in missed:
        most = max(part["value"], part["bound"])
        if not math.isfinite(most) or (part["unit"] == "of plain INT8" and most >= 1):
            continue
        if part["unit"] == "of plain INT8":
            limit = f"{min(100, math.ceil(100 * most))}%"
        else:
            number = f"{math.ceil(most)}" if part["unit"] == "bytes" else f"{1.01 * most:.3g}"
            limit = number + {"bytes": "B", "mj": "mJ"}.get(part["unit"], part["unit"])
        flags.append(f"--{part['part'].replace('_', '-')} {limit}")
    if not flags:
        return []
    again = output.with_name(f"{output.name}-2")
    return [
        f"try: edgeml compress --recipe {shlex.quote(str(output / 'recipe.yaml'))} "
        f"{' '.join(flags)} -o {shlex.quote(str(again))}"
    ]
