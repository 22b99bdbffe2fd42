"""Mending a graph for TensorRT and proving that it still computes the same."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..artifact.atomic_file import replacing
from ..artifact.tensorrt_versions import TensorRTVersion, find_version
from ..errors import BuildError, InputError, MissingPart, ParityError, one_line
from ..runtime.onnxruntime_engine import DISABLED_OPTIMIZERS
from .lint_graph import LintGraph
from .lint_rules_qdq import quantized_type
from .parity import RunningDifference
from .qdq_lint import LintReport, lint
from .tensorrt_plan import Profile, build_engine

if TYPE_CHECKING:
    import onnx

# Exact mends leave float32 rounding of another order of operations; measured on the tests: 3e-7.
EXACT = 1e-4
# A mend that rounds anew may cost one bit of the quantizer's resolution: twice the step, four times the
# noise power (6 dB); 3 dB more for noise that adds up in phase.
NOISE_FACTOR = 8.0
SAMPLES = 4


@dataclass(frozen=True)
class Fixed:
    """What `fix` did and showed.

    Attributes:
        path: the mended file.
        counts: rule → how many nodes were mended.
        remaining: lint of the mended file.
        proof: the comparison in one line.
        built: that TensorRT-RTX takes it, or why that was not tried.
    """

    path: Path
    counts: dict[str, int]
    remaining: LintReport
    proof: str
    built: str


def fix(
    path: Path,
    out: Path,
    tensorrt: str | TensorRTVersion,
    inputs: Sequence[Mapping[str, np.ndarray]] | None = None,
) -> Fixed:
    """Mend what is mechanical, prove it, write it.

    Args:
        path: the ONNX file; left as it is.
        out: the file to write; weights beyond 2 GB are refused.
        tensorrt: the version to mend for.
        inputs: real inputs ``{name: [batch, …]}`` to compare on; None draws noise over the range of
            each input's quantizer (standard normal where it has none), seed 0.

    Raises:
        InputError: `out` is the file itself.
        MissingPart: onnxruntime, which proves the mends, is not installed.
        BuildError: the graph has no form that the version takes.
        ParityError: the mended graph computes something else; nothing is written.
    """
    import onnx

    from .lint_fixes import LOWERED, load_whole, mend

    path, out = Path(path), Path(out)
    if out.exists() and out.samefile(path):
        raise InputError(f"--fix {out} is the model itself; name another file")
    if not out.parent.is_dir():
        raise InputError(f"--fix {out}: there is no folder {out.parent}")
    version = find_version(tensorrt) if isinstance(tensorrt, str) else tensorrt
    graph = LintGraph.read(path)
    original = load_whole(path)
    mended = mend(path, version)
    feeds = list(inputs) if inputs else _noise(graph)
    proof = _prove(original, mended.model, feeds, mended.rounds, LOWERED in mended.counts)
    with replacing(out) as scratch:
        onnx.save_model(mended.model, str(scratch))
    remaining = lint(out, version)
    return Fixed(out, mended.counts, remaining, proof, _try_build(out, graph))


def _noise(graph: LintGraph) -> list[dict[str, np.ndarray]]:
    from onnx import helper

    rng = np.random.default_rng(0)
    feeds = []
    for _ in range(SAMPLES):
        feed = {}
        for value in graph.inputs:
            shape = graph.dims(value.name)
            dtype = helper.tensor_dtype_to_np_dtype(graph.elem_type(value.name))
            if shape is None:
                raise InputError(f"input {value.name} has no shape; the mends cannot be proven")
            # An open axis that is not the batch: long enough for windows and pools.
            shape = tuple(n or (1 if i == 0 else 32) for i, n in enumerate(shape))
            if np.dtype(dtype).kind in "iub":
                feed[value.name] = rng.integers(0, 2, shape).astype(dtype)
                continue
            limits = _range(graph, value.name)
            drawn = rng.uniform(*limits, shape) if limits else rng.standard_normal(shape)
            feed[value.name] = drawn.astype(dtype)
        feeds.append(feed)
    return feeds


def _range(graph: LintGraph, tensor: str) -> tuple[float, float] | None:
    """What the quantizer of a graph input represents without clipping."""
    from onnx import TensorProto

    for node in graph.consumers(tensor):
        if node.op_type != "QuantizeLinear":
            continue
        scale = graph.constant(node.input[1])
        zero = graph.constant(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
        if scale is None or zero is None or not (np.isfinite(scale) & (scale > 0)).all():
            return None
        unsigned = quantized_type(graph, node) == TensorProto.UINT8
        low, high = (0, 255) if unsigned else (-128, 127)
        step, offset = float(scale.astype(np.float64).max()), float(zero.astype(np.float64).mean())
        return (low - offset) * step, (high - offset) * step
    return None


def _prove(
    original: onnx.ModelProto,
    mended: onnx.ModelProto,
    feeds: Sequence[Mapping[str, np.ndarray]],
    rounds: bool,
    lowered: bool,
) -> str:
    run = [_session(original), _session(mended)]
    plain = run
    if rounds or lowered:
        plain = [_session(without_activation_quantizers(m)) for m in (original, mended)]
    apart: dict[str, RunningDifference] = {}
    noise_before: dict[str, RunningDifference] = {}
    noise_after: dict[str, RunningDifference] = {}
    unrounded: dict[str, RunningDifference] = {}
    for feed in feeds:
        before, after = (session.run(None, dict(feed)) for session in run)
        names = [o.name for o in run[0].get_outputs()]
        exact, mended_exact = before, after
        if plain is not run:
            exact, mended_exact = (session.run(names, dict(feed)) for session in plain)
        for name, a, b, e, m in zip(names, before, after, exact, mended_exact, strict=True):
            unrounded.setdefault(name, RunningDifference(name)).add(e, m)
            apart.setdefault(name, RunningDifference(name)).add(a, b)
            noise_before.setdefault(name, RunningDifference(name)).add(e, a)
            noise_after.setdefault(name, RunningDifference(name)).add(e, b)
    lines = []
    for name, sums in apart.items():
        found = sums.difference()
        if found.problem:
            raise ParityError(f"the mended graph is wrong: output {name}: {found.problem}")
        if found.max_rel <= EXACT or found.max_abs == 0:
            lines.append(f"{name} equal to {found.max_rel:.0e}")
            continue
        # Between Q and DQ the seventh digit decides on which side of a rounding border a value falls: operators
        # written as older ones (LayerNormalization) move a few by a step. Where Q/DQ do not round they move none.
        same = unrounded[name].difference()
        if not rounds and (same.problem or same.max_rel > EXACT):
            raise ParityError(
                f"the mended graph is wrong: output {name} differs by {same.max_rel:.1e} of its "
                f"largest value, allowed {EXACT:.0e}"
            )
        old, new = noise_before[name], noise_after[name]
        if new.noise > NOISE_FACTOR * old.noise:
            raise ParityError(
                f"the mended graph is worse: output {name} is {new.difference().sqnr_db:.1f} dB above "
                f"its rounding noise, before {old.difference().sqnr_db:.1f} dB"
            )
        told = "" if rounds else f"equal to {same.max_rel:.0e} where Q/DQ do not round, with them "
        lines.append(
            f"{name} {told}{new.difference().sqnr_db:.1f} dB above its rounding noise, before "
            f"{old.difference().sqnr_db:.1f} dB"
        )
    return f"ONNX Runtime, {len(feeds)} inputs: {'; '.join(lines)}"


def _session(model: onnx.ModelProto) -> object:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime as ort
    except ImportError as e:
        raise MissingPart(
            f"onnxruntime, which proves the mends, is not installed ({one_line(e)}): "
            "pip install 'edgeml-toolchain[onnxruntime]'"
        ) from e
    options = ort.SessionOptions()
    # BASIC folds constants only: the Q/DQ that were written are the ones that run.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=DISABLED_OPTIMIZERS,
        )
    except Exception as e:  # its own exception types, for a graph it does not take
        raise ParityError(
            f"ONNX Runtime does not run the graph, so nothing is proven: {one_line(e)}"
        ) from e


def without_activation_quantizers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the graph with what Q/DQ round on the way taken out; weights stay as they are."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = LintGraph(copy, Path())
    renamed: dict[str, str] = {}
    dropped = []
    for node in graph.nodes:
        maker = graph.producers.get(node.input[0]) if node.input else None
        if (
            node.op_type == "DequantizeLinear"
            and maker is not None
            and maker.op_type == "QuantizeLinear"
            and not graph.is_constant(maker.input[0])
        ):
            renamed[node.output[0]] = renamed.get(maker.input[0], maker.input[0])
            dropped.append(node)
    for node in graph.nodes:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    for node in dropped:
        if node.output[0] in graph.outputs:  # keeps its name: an output cannot be renamed
            node.op_type = "Identity"
            source = renamed[node.output[0]]
            del node.input[:], node.attribute[:]
            node.input.append(source)
        else:
            copy.graph.node.remove(node)
    return copy


def _try_build(path: Path, graph: LintGraph) -> str:
    missing = [name for name in ("tensorrt_rtx", "polygraphy") if find_spec(name) is None]
    if missing:
        return f"not built: {missing[0]} is not installed (edgeml-toolchain[tensorrt-rtx])"
    profiles = {}
    for value in graph.inputs:
        shape = graph.dims(value.name) or ()
        if None in shape:
            closed = tuple(n or (1 if i == 0 else 32) for i, n in enumerate(shape))
            profiles[value.name] = Profile(closed, closed, closed)
    try:
        built = build_engine(path, None, "tensorrt_rtx", profiles)
    except BuildError as e:
        return f"refused: {e}"
    return f"legal: TensorRT-RTX {built.version} parses and builds it ({built.layers} layers)"
