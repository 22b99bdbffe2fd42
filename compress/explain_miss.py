"""Why a budget was missed: the layers that quantization hurts most, and the next command to try."""

from __future__ import annotations

import re
import shlex
from itertools import islice
from pathlib import Path

from ..errors import one_line
from ..export.layer_noise import worst_layers_onnx, worst_layers_openvino
from .build_engines import Trial, quantized_model
from .job import Job
from .stages import Stages

WORST = 5
# Real inputs whose noise is summed: more move the order of the first five no further (Lite0).
SAMPLES = 8


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
