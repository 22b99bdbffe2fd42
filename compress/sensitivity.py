"""What INT8 costs and wins in each layer of an engine: its own noise, and µs by both profiles."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ..artifact.machine_lock import machine_lock
from ..artifact.onnx_file import read_onnx
from ..errors import EdgemlError, one_line
from ..export.layer_noise import WEIGHTED, worst_layers_onnx, worst_layers_openvino
from ..runtime.engine import Engine
from .build_engines import Trial, quantized_model
from .equalise import EQUALISED
from .job import Job, batched
from .stages import Stages

# Real inputs whose noise is summed.
SAMPLES = 8
# Profiles of each engine, of which a layer's median counts.
PROFILES = 3
# A layer that INT8 makes less than this much faster goes back before all others.
WORTH = 1.02
# OpenVINO's profile is given in whole microseconds: less than half of one cannot be told.
LEAST_US = 0.5


@dataclass(frozen=True)
class LayerLoss:
    """One layer.

    Attributes:
        node: its ONNX name.
        what: its operator, and whether it is the first or the last with weights.
        snr_db: signal to the noise that INT8 adds in this layer, in dB; None: less than what
            comes into it, so that its own cannot be told.
        won_us: µs that INT8 saves in it; None where a profile does not name it.
        idle: INT8 makes it less than 1.02 × faster.
    """

    node: str
    what: str
    snr_db: float | None
    won_us: float | None
    idle: bool


def rank_layers(
    job: Job, base: Trial, float_engine: Trial | None, stages: Stages
) -> list[LayerLoss]:
    """The layers with weights, in the order in which they should go back into float: of those that
    INT8 adds noise in the ones that it makes no faster, then by noise power a microsecond won, the
    most first; then those whose own noise cannot be told.

    Args:
        base: an INT8 engine with a quantization step.
        float_engine: the fastest of the same runtime; None: then noise alone ranks them.

    Raises:
        EdgemlError: the quantized graph cannot be compared with the float one.
    """
    feeds = list(islice(job.calibration(), SAMPLES))
    quantized, _ = quantized_model(job, base.candidate.step, stages)
    worst_layers = worst_layers_openvino if quantized.suffix == ".xml" else worst_layers_onnx
    equalised = quantized.with_name(EQUALISED)
    graph = equalised if equalised.is_file() else job.onnx
    nodes = {n.name: n for n in read_onnx(job.onnx).graph.node if n.name}
    try:
        noise = worst_layers(graph, quantized, feeds, len(nodes) + 1)
    except EdgemlError:
        raise
    except Exception as e:  # the runtimes raise anything
        raise EdgemlError(f"the layers' noise is not known: {one_line(e)}") from e
    weighted = [name for name, node in nodes.items() if node.op_type in WEIGHTED]
    int8 = float_ = {}
    if float_engine is not None:
        with machine_lock("timing", stages.log):
            int8 = _layer_us(base.engine, job)
            float_ = _layer_us(float_engine.engine, job)
    layers = []
    seen = {name: snr_db for name, snr_db in noise if name in nodes}
    for name in [*seen, *(name for name in weighted if name not in seen)]:
        before, now = float_.get(name), int8.get(name)
        known = before is not None and now is not None
        place = {weighted[0]: ", first layer", weighted[-1]: ", last layer"}.get(name, "")
        layers.append(
            LayerLoss(
                name,
                nodes[name].op_type + place,
                None if seen.get(name) is None else round(seen[name], 2),
                round(before - now, 2) if known else None,
                known and before < WORTH * now,
            )
        )
    usual = statistics.median([x.won_us for x in layers if x.won_us is not None] or [1.0])

    def per_us(layer: LayerLoss) -> float:
        won = usual if layer.won_us is None else layer.won_us
        power = 0.0 if layer.snr_db is None else 10 ** (-layer.snr_db / 10)
        return power / max(LEAST_US, won)

    return sorted(layers, key=lambda x: (x.snr_db is None, not x.idle, -per_us(x)))


def _layer_us(engine: Engine, job: Job) -> dict[str, float]:
    """ONNX node → median µs, of those that the engine's profile names."""
    node_of = _node_names(job.onnx)
    found: dict[str, list[float]] = {}
    for _ in range(PROFILES):
        for layer in engine.profile(batched(job.sample, job.recipe.batch)):
            name = node_of(layer.name)
            if name is not None:
                found.setdefault(name, []).append(layer.time_ms * 1e3)
    return {name: statistics.median(times) for name, times in found.items()}


def _node_names(path: Path) -> Callable[[str], str | None]:
    """From a runtime's layer names to those of ONNX nodes: OpenVINO names a product before a bias
    ``…/WithoutBiases``, and what gives an output like that; ONNX Runtime appends words."""
    graph = read_onnx(path).graph
    known = {node.name for node in graph.node if node.name}
    ends = {value.name for value in graph.output}
    by_output = {out: n.name for n in graph.node for out in n.output if n.name and out in ends}

    def name_of(layer: str) -> str | None:
        name = layer.split("/WithoutBiases")[0].removesuffix("_kernel_time")
        for word in ("", "_quant", "_nchwc"):
            bare = name.removesuffix(word) if word else name
            if bare in known:
                return bare
        return by_output.get(name)

    return name_of
