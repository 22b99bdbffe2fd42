"""FP16 outside Q/DQ: the types a strongly typed TensorRT obeys, written into the graph.

By onnxconverter-common. A node whose tensors come near FP16's range on calibration data, or behind which the
outputs part, stays in fp32 and is named; scales of Q/DQ become FP16 too (opset 19 and later).
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.atomic_file import replacing
from ..errors import (
    BuildError,
    InputError,
    MissingPart,
    ParityError,
    nearest,
    one_line,
)
from ..export.blame import first_divergence
from ..export.lint_fixes import load_whole
from ..export.lint_graph import LintGraph, attribute, label
from ..export.lint_rules_version import FP16_MAX
from ..export.parity import compare
from ..export.probe import batch_of, chunks, float_probes, probed_engine
from ..runtime.engine import EngineOptions, load_file

# Data that was not seen may reach twice as far.
HEADROOM = 2.0
# Samples the ranges are read from, and those the outputs are compared on.
RANGE_SAMPLES, COMPARED_SAMPLES = 32, 8
# A network that needs more nodes in fp32 than this by blame is not one for FP16.
BLAMED = 8
# Smallest positive FP16 number (subnormal).
FP16_TINY = 5.96e-8
# With Q/DQ a value beside a rounding border falls the other way: a whole step apart, now and then. Measured:
# EfficientNet-Lite0 22.5 dB.
QUANTIZED_DB = 15.0
# The converter keeps these in fp32 by default for ONNX Runtime's sake; TensorRT has them in FP16.
_ALLOWED = ("Min", "Max", "Resize", "Upsample")
# FP16 scales of QuantizeLinear are of this opset (ONNX Changelog).
SCALES_OPSET = 19


@dataclass(frozen=True)
class Fp16Result:
    """What `cast_fp16` wrote.

    Attributes:
        path: the file; inputs and outputs keep their types.
        kept: node → why it stays in fp32.
        nodes: of the graph, constants and the converter's casts not counted.
    """

    path: Path
    kept: dict[str, str]
    nodes: int


def cast_fp16(
    model: Path,
    out: Path,
    samples: Iterable[Mapping[str, np.ndarray]],
    keep: Iterable[str] = (),
    emulation: Path | None = None,
) -> Fp16Result:
    """Write `model` with its float tensors in FP16 to `out`, and show that it computes the same.

    Args:
        model: a float or Q/DQ graph in fp32.
        out: the file to write.
        samples: real inputs ``{name: [1, …]}``; at most `RANGE_SAMPLES` are read.
        keep: names of nodes that stay in fp32.
        emulation: where `emulate_fp16`'s graph of the result goes; None keeps none.

    Returns:
        The file, and the nodes that stay in fp32 with the reason.

    Raises:
        InputError: a node to keep does not exist.
        MissingPart: onnxconverter-common or onnxruntime is not installed.
        BuildError: the converter fails, or a Q/DQ graph has an opset without FP16 scales.
        ParityError: the outputs part although `BLAMED` nodes were kept; nothing is written.
    """
    for name in ("onnxconverter_common", "onnxruntime"):
        if find_spec(name) is None:
            package = name.replace("_", "-")
            raise MissingPart(f"{package} is not installed: pip install {package}")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    model, out = Path(model), Path(out)
    inputs = [dict(sample) for sample in islice(samples, RANGE_SAMPLES)]
    if not inputs:
        raise BuildError("casting to FP16 needs calibration samples: they show what overflows")
    graph = LintGraph.read(model)
    quantized = any(n.op_type == "QuantizeLinear" for n in graph.nodes)
    if quantized and graph.opset < SCALES_OPSET:
        raise BuildError(
            f"{model}: opset {graph.opset} has no FP16 scales; Q/DQ in FP16 graphs need opset "
            f"{SCALES_OPSET}"
        )
    names = {label(node) for node in graph.nodes}
    for name in keep:
        if name not in names:
            raise InputError(f"{model}: no node {name!r} to keep in fp32, {nearest(name, names)}")
    kept = dict.fromkeys(keep, "asked for") | overflowing(model, inputs)
    kept |= {
        label(node): f"the converter leaves {node.op_type} in fp32"
        for node in graph.nodes
        if node.op_type in _blocked_operators()
    }
    compared = inputs[:COMPARED_SAMPLES]
    with tempfile.TemporaryDirectory(prefix="edgeml-fp16-") as scratch:
        rounded = Path(scratch, "rounded.onnx")
        for _ in range(BLAMED + 1):
            emulate_fp16(model, rounded, kept)
            problem = _difference(model, rounded, compared, quantized)
            if problem is None:
                break
            layer = _blamed(model, rounded, compared)
            # A difference shows where large numbers cancel; they were rounded by what made them.
            blamed = [layer] if layer not in kept else _makers(graph, layer)
            fresh = [name for name in blamed if name is not None and name not in kept]
            if not fresh:
                raise ParityError(f"FP16 does not compute what fp32 does: {problem}")
            kept |= dict.fromkeys(fresh, f"the outputs part there: {problem}")
        else:
            raise ParityError(
                f"FP16 does not compute what fp32 does with {len(kept)} nodes kept in fp32: {problem}"
            )
    with replacing(out) as part:
        _convert(model, part, kept)
        _check_loads(model, part, inputs[0])
    if emulation is not None:
        emulate_fp16(model, emulation, kept)
    floats = [n for n in graph.nodes if n.op_type not in ("Constant", "Shape")]
    return Fp16Result(out, kept, len(floats))


def _blocked_operators() -> list[str]:
    from onnxconverter_common.float16 import DEFAULT_OP_BLOCK_LIST

    return [op for op in DEFAULT_OP_BLOCK_LIST if op not in _ALLOWED]


def overflowing(model: Path, inputs: list[dict[str, np.ndarray]]) -> dict[str, str]:
    """Nodes that make or read a tensor beyond FP16's range over `HEADROOM`, and how far it reached.

    Args:
        inputs: real samples ``{name: [1, …]}``.
    """
    graph, limit = LintGraph.read(model), FP16_MAX / HEADROOM
    reach: dict[str, float] = {}
    for chunk in chunks(float_probes(model, batch_of(inputs))):
        values = [probe.value for probe in chunk]
        with probed_engine(model, values, "onnxruntime", EngineOptions(batch=None)) as engine:
            for feed in inputs:
                for name, value in engine.run(feed).items():
                    if value.dtype.kind == "f" and value.size:
                        # Masks hold −∞ on purpose, which FP16 has too.
                        finite = np.abs(value[np.isfinite(value)])
                        largest = float(finite.max()) if finite.size else 0.0
                        reach[name] = max(reach.get(name, 0.0), largest)
    for feed in inputs:
        for name, value in feed.items():
            if value.dtype.kind == "f":
                reach[name] = max(reach.get(name, 0.0), float(np.abs(value).max(initial=0.0)))
    for node in graph.nodes:
        for name in node.input:
            stored = graph.constant(name) if name not in reach else None
            if stored is not None and stored.dtype.kind == "f" and stored.size:
                finite = np.abs(stored[np.isfinite(stored)])
                reach[name] = float(finite.max()) if finite.size else 0.0
    found = {}
    for node in graph.nodes:
        far = max((reach.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
        if far > limit:
            found[label(node)] = f"values reach {far:,.0f}; FP16 ends at 65,504"
    return found


def _convert(model: Path, out: Path, kept: dict[str, str]) -> None:
    import onnx
    from onnxconverter_common.float16 import convert_float_to_float16

    whole = load_whole(model)
    for node in whole.graph.node:
        node.name = label(node)
    # The converter (1.16) gives a Cast to float an FP16 output, but not the attribute that makes it one.
    casts = [
        node.name
        for node in whole.graph.node
        if node.op_type == "Cast" and attribute(node, "to") == onnx.TensorProto.FLOAT
    ]
    try:
        with warnings.catch_warnings():
            # Of numbers below FP16's smallest, which it rounds up to that; what is too large is kept.
            warnings.simplefilter("ignore")
            cast = convert_float_to_float16(
                whole,
                min_positive_val=FP16_TINY,
                max_finite_val=FP16_MAX,
                keep_io_types=True,
                op_block_list=_blocked_operators(),
                node_block_list=[*kept, *casts],
            )
        onnx.save_model(cast, str(out))
        onnx.checker.check_model(str(out))
    except Exception as e:  # the converter raises anything
        raise BuildError(f"onnxconverter-common cannot cast {model}: {one_line(e)}") from e


def emulate_fp16(model: Path, out: Path, kept: Container[str] = ()) -> None:
    """Write the fp32 graph with every float result, and weight, of the nodes not kept rounded to FP16.

    This is what is compared and scored: ONNX Runtime's CPU kernels have no FP16, it casts around them and
    drops the casts between two, so that the cast graph itself runs in fp32 there (tried with 1.32).
    """
    import onnx
    from onnx import TensorProto, helper

    whole = load_whole(model)
    graph = LintGraph(whole, model)
    nodes = []

    def halved(tensor: str, into: str) -> list[Any]:
        short = f"{into}__fp16"
        return [
            helper.make_node("Cast", [tensor], [short], to=TensorProto.FLOAT16),
            helper.make_node("Cast", [short], [into], to=TensorProto.FLOAT),
        ]

    for node in graph.nodes:
        if label(node) in kept or node.op_type == "Constant":
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if graph.stored_type(name) == TensorProto.FLOAT:
                into = f"{label(node)}__{i}"
                nodes += halved(name, into)
                node.input[i] = into
        nodes.append(node)
        for i, name in enumerate(node.output):
            if graph.elem_type(name) == TensorProto.FLOAT:
                node.output[i] = f"{name}__fp32"
                nodes += halved(node.output[i], name)
    del whole.graph.node[:]
    whole.graph.node.extend(nodes)
    onnx.save_model(whole, str(out))


def _difference(
    model: Path, rounded: Path, inputs: list[dict[str, np.ndarray]], quantized: bool
) -> str | None:
    """Why FP16 is not accepted; None where it is."""
    options = EngineOptions(batch=None)
    with (
        load_file(model, "onnxruntime", options) as reference,
        load_file(rounded, "onnxruntime", options) as candidate,
    ):
        report = compare(reference, candidate, inputs, "int8" if quantized else "fp16")
    if not report.passed or (quantized and report.sqnr_db < QUANTIZED_DB):
        return report.line
    return None


def _check_loads(model: Path, cast: Path, feed: dict[str, np.ndarray]) -> None:
    """A runtime takes the graph that ships: types and casts fit."""
    try:
        with load_file(cast, "onnxruntime", EngineOptions(batch=None)) as engine:
            engine.run(feed)
    except Exception as e:  # ours of loading, and whatever running raises
        raise BuildError(f"{model} in FP16 does not load: {one_line(e)}") from e


def _makers(graph: LintGraph, layer: str | None) -> list[str]:
    """The nodes whose results `layer` reads."""
    [node] = [node for node in graph.nodes if label(node) == layer]
    makers = [graph.producers.get(name) for name in node.input]
    return [label(maker) for maker in makers if maker is not None]


def _blamed(model: Path, rounded: Path, inputs: list[dict[str, np.ndarray]]) -> str | None:
    blame = first_divergence(
        model, "onnxruntime", "onnxruntime", inputs[:2], "fp16", candidate_onnx=rounded
    )
    return None if blame is None else blame.layer
