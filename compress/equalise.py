"""Cross-layer equalisation: the channels of one tensor brought to like ranges before quantization.

One scale quantizes a whole activation tensor, so that a channel of a small range is lost beside one
of a large range. Where convolution → positive homogeneous operators → convolution is a chain of its
own, channel i may be divided by any s_i > 0 behind the first and multiplied before the second without
a change of the function (Nagel et al. 2019, "Data-Free Quantization", section 4.1). Here the ranges
are those of calibration samples, and s is SmoothQuant's at α = 0.5 (Xiao et al. 2023, equation 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact.onnx_file import read_onnx
from ..errors import BuildError
from ..export.model_files import model_bytes
from ..export.probe import batch_of, chunks, float_probes, probed_engine
from ..runtime.engine import EngineOptions
from .calibration import Calibration
from .step import QuantizationStep, StepResult

if TYPE_CHECKING:
    import onnx

# f(s·x) = s·f(x) for s > 0, channel by channel.
HOMOGENEOUS = {"Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool"}
# The float network that was quantized, left beside the result: its layers are compared with that one.
EQUALISED = "equalised.onnx"
# Samples whose ranges are read: the planted and the natural spreads seen are powers of two apart.
SAMPLES = 32
# Samples on which the function must be the same, and to how much of the largest output.
PROOF_SAMPLES, PROOF = 4, 1e-3


@dataclass(frozen=True)
class Pair:
    """A tensor between two convolutions that nothing else reads.

    Attributes:
        tensor: what the second convolution reads, ``[batch, channels, …]``.
        before: initializers of the first one that are divided, its outputs on their first axis: weight
            and bias of a convolution, or scale and bias of the batch norm behind it.
        weight: of the second convolution, ``[out, channels / groups, …]``.
        groups: of the second convolution.
    """

    tensor: str
    before: tuple[str, ...]
    weight: str
    groups: int


def find_pairs(model: onnx.ModelProto) -> list[Pair]:
    """The pairs of a graph whose channels can be scaled."""
    graph = model.graph
    uses: dict[str, int] = dict.fromkeys((v.name for v in graph.output), 1)
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    makers = {out: node for node in graph.node for out in node.output}
    floats = {t.name for t in graph.initializer if t.data_type == 1}

    def own(names: Sequence[str]) -> bool:
        return all(name in floats and uses[name] == 1 for name in names)

    pairs = []
    for second in graph.node:
        if second.op_type != "Conv" or not own(second.input[1:2]):
            continue
        at = second.input[0]
        while uses[at] == 1 and at in makers and makers[at].op_type in HOMOGENEOUS:
            at = makers[at].input[0]
        first = makers.get(at)
        if uses[at] != 1 or first is None or at != first.output[0]:
            continue
        if first.op_type not in ("Conv", "BatchNormalization"):
            continue
        before = tuple(name for name in first.input[1:3] if name)
        if own(before):
            groups = next((a.i for a in second.attribute if a.name == "group"), 1)
            pairs.append(Pair(second.input[0], before, second.input[1], groups))
    return pairs


def equalise(
    model: Path, feeds: Sequence[Mapping[str, np.ndarray]], path: Path
) -> tuple[int, float]:
    """Write an equalised copy of an ONNX file.

    Args:
        feeds: real inputs, each ``{name: [batch, …]}``, whose ranges are read.
        path: gets the copy, in one file.

    Returns:
        How many tensors were equalised; by how many bits their channels' ranges lay below the
        tensor's own on average, in the worst of them, before.

    Raises:
        BuildError: nothing can be equalised, or the copy computes something else.
    """
    import onnx
    from onnx import numpy_helper

    if model_bytes(model) > 2**31 - 2**20:
        raise BuildError("equalisation: the network is larger than one ONNX file of 2 GB")
    graph = onnx.load(str(model))
    pairs = find_pairs(graph)
    if not pairs:
        raise BuildError("equalisation: no convolution is the only reader of another one")
    runtime = "onnxruntime" if find_spec("onnxruntime") else "openvino"
    ranges = _channel_ranges(model, {p.tensor for p in pairs}, feeds, runtime)
    stored = {t.name: t for t in graph.graph.initializer}
    arrays: dict[str, np.ndarray] = {}

    def array(name: str) -> np.ndarray:
        if name not in arrays:
            arrays[name] = numpy_helper.to_array(stored[name]).copy()
        return arrays[name]

    worst = 0.0
    for pair in pairs:
        scale, bits = _scales(ranges[pair.tensor], array(pair.weight), pair.groups)
        worst = max(worst, bits)
        for name in pair.before:
            old = array(name)
            arrays[name] = old / scale.reshape(-1, *[1] * (old.ndim - 1))
        grouped = _by_group(array(pair.weight), pair.groups)
        wide = scale.reshape(pair.groups, 1, -1, *[1] * (grouped.ndim - 3))
        arrays[pair.weight] = (grouped * wide).reshape(arrays[pair.weight].shape)
    for name, values in arrays.items():
        stored[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    onnx.save(graph, str(path))
    _prove(model, path, feeds[:PROOF_SAMPLES], runtime)
    return len(pairs), worst


def _by_group(weight: np.ndarray, groups: int) -> np.ndarray:
    """``[out, in / groups, …]`` as ``[groups, out / groups, in / groups, …]``."""
    return weight.reshape(groups, -1, *weight.shape[1:])


def _scales(ranges: np.ndarray, weight: np.ndarray, groups: int) -> tuple[np.ndarray, float]:
    """``s`` by channel, geometric mean 1, and the bits that the ranges lie apart on average.

    A filter's weights have a scale of their own, so that only their relative sizes count; where a
    filter reads one channel (depthwise) its scale takes up s whole.
    """
    weights = np.abs(_by_group(weight, groups))
    weights = weights.reshape(*weights.shape[:3], -1).max(3)  # [groups, out / groups, in / groups]
    top = weights.max(2, keepdims=True)
    relative = np.divide(weights, top, out=np.zeros_like(weights), where=top > 0).max(1).ravel()
    live = (ranges > 0) & (relative > 0)
    if not live.any():
        return np.ones_like(ranges), 0.0
    logs = np.zeros_like(ranges)
    logs[live] = (np.log2(ranges[live]) - np.log2(relative[live])) / (
        1 if weights.shape[2] == 1 else 2
    )
    logs[live] -= logs[live].mean()
    spread = np.log2(ranges[live])
    return np.exp2(logs), float(spread.max() - spread.mean())


def _channel_ranges(
    model: Path, tensors: set[str], feeds: Sequence[Mapping[str, np.ndarray]], runtime: str
) -> dict[str, np.ndarray]:
    """The largest magnitude of each channel, ``[channels]``, over all feeds."""
    probes = [p for p in float_probes(model, batch_of(feeds)) if p.tensor in tensors]
    if len({p.tensor for p in probes}) < len(tensors):
        raise BuildError("equalisation: the shapes of tensors between convolutions are not known")
    found: dict[str, np.ndarray] = {}
    for chunk in chunks(probes):
        values = [probe.value for probe in chunk]
        with probed_engine(model, values, runtime, EngineOptions(batch=None)) as engine:
            for feed in feeds:
                outputs = engine.run(feed)
                for probe in chunk:
                    seen = np.abs(np.moveaxis(outputs[probe.tensor], 1, 0))
                    seen = seen.reshape(len(seen), -1).max(1).astype(np.float64)
                    found[probe.tensor] = np.maximum(found.get(probe.tensor, seen), seen)
    return found


def _prove(
    model: Path, copy: Path, feeds: Sequence[Mapping[str, np.ndarray]], runtime: str
) -> None:
    plain = EngineOptions(batch=None)
    with (
        probed_engine(model, [], runtime, plain) as a,
        probed_engine(copy, [], runtime, plain) as b,
    ):
        for feed in feeds:
            right, got = a.run(feed), b.run(feed)
            for name, wanted in right.items():
                error = float(np.abs(wanted - got[name]).max()) if wanted.size else 0.0
                if not error <= PROOF * float(np.abs(wanted).max()):
                    raise BuildError(
                        f"equalisation changed the output {name} by {error:.3g}; it was left out"
                    )


def can_equalise(model: Path) -> bool:
    """Whether an ONNX file has anything to equalise."""
    return bool(find_pairs(read_onnx(model)))


class QuantizeEqualised:
    """A quantization step on the equalised network.

    Args:
        inner: the step that quantizes it.
    """

    calibrates = True

    def __init__(self, inner: QuantizationStep) -> None:
        self.inner = inner
        self.route = f"{inner.route} equalised"
        self.runtimes = inner.runtimes
        self.reduce_range = getattr(inner, "reduce_range", False)

    def settings(self) -> dict[str, Any]:
        return {**self.inner.settings(), "route": self.route, "samples": SAMPLES}

    def __call__(self, model: Path, calibration: Calibration, directory: Path) -> StepResult:
        """As the inner step's; its notes begin with what was equalised."""
        copy = directory / EQUALISED
        count, bits = equalise(model, list(islice(calibration, SAMPLES)), copy)
        result = self.inner(copy, calibration, directory)
        note = (
            f"channel ranges of {count} tensors were equalised; in the worst of them the average "
            f"channel lay {bits:.1f} bits below the tensor's range"
        )
        return StepResult(
            result.path, result.quantizers, result.weights_bytes, [note, *result.notes]
        )
