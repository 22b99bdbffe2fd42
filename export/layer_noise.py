"""Which layers quantization hurts: signal to noise by layer, float graph against INT8 graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact.onnx_file import read_onnx
from ..runtime.engine import EngineOptions
from .openvino_ir import import_openvino
from .parity import RunningDifference
from .probe import batch_of, chunks, float_probes, probed_engine

if TYPE_CHECKING:
    import onnx

Feeds = Sequence[Mapping[str, np.ndarray]]

WEIGHTED = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU",  # ONNX
    "Convolution", "GroupConvolution", "ConvolutionBackpropData",  # OpenVINO
    "GroupConvolutionBackpropData", "LSTMSequence", "GRUSequence",
}  # fmt: skip
# What a runtime fuses into the layer before it; quantizers put Q/DQ behind them, not between.
FUSED = {
    "BatchNormalization", "Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "HardSwish",
    "HardSigmoid", "Gelu", "Elu", "Clamp", "HSwish", "Swish", "Add", "Multiply", "Mul",
}  # fmt: skip


@dataclass(frozen=True)
class _Layer:
    """One node of a float graph: its inputs are those that depend on the graph's inputs."""

    name: str
    op: str
    inputs: tuple[str, ...]
    output: str


def worst_layers_onnx(
    float_onnx: Path, quantized_onnx: Path, inputs: Feeds, k: int = 5
) -> list[tuple[str, float]]:
    """The layers that a Q/DQ graph of ONNX Runtime's quantizer hurts most.

    Args:
        float_onnx: the graph it was made of.
        quantized_onnx: the Q/DQ graph; tensor names were kept (``t`` and, where it is quantized,
            ``t_DequantizeLinear_Output``).
        inputs: real inputs, each ``{name: [batch, …]}``.
        k: how many at most; layers that add no noise are not listed.

    Returns:
        ``(node name, signal to noise in dB)``, the worst first: the noise that the layer itself
        adds, see `_own_noise`.
    """
    probes = float_probes(Path(float_onnx), batch_of(inputs))
    computed = {out for node in read_onnx(quantized_onnx).graph.node for out in node.output}
    twins = {}
    for probe in probes:
        for name in (f"{probe.tensor}_DequantizeLinear_Output", probe.tensor):
            if name in computed:
                twins[probe.tensor] = name
                break
    sums = {tensor: RunningDifference(tensor) for tensor in twins}
    plain = EngineOptions(batch=None)
    for chunk in chunks([probe for probe in probes if probe.tensor in twins]):
        renamed = [_named(probe.value, twins[probe.tensor]) for probe in chunk]
        with (
            probed_engine(
                Path(float_onnx), [p.value for p in chunk], "onnxruntime", plain
            ) as exact,
            probed_engine(Path(quantized_onnx), renamed, "onnxruntime", plain) as quantized,
        ):
            for feed in inputs:
                expected, got = exact.run(feed), quantized.run(feed)
                for probe in chunk:
                    t = probe.tensor
                    sums[t].add(expected[t], got[twins[t]])
    noise = {}
    for tensor, running in sums.items():
        found = running.difference()
        noise[tensor] = math.inf if found.problem else 10 ** (-found.sqnr_db / 10)
    return _own_noise(_onnx_layers(Path(float_onnx)), noise, k)


def _named(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    copy = type(value)()
    copy.CopyFrom(value)
    copy.name = name
    return copy


def _onnx_layers(path: Path) -> list[_Layer]:
    graph = read_onnx(path).graph
    live = {value.name for value in graph.input} - {t.name for t in graph.initializer}
    layers = []
    for node in graph.node:
        inputs = tuple(name for name in node.input if name in live)
        if inputs:
            live |= set(node.output)
            layers.append(_Layer(node.name or node.output[0], node.op_type, inputs, node.output[0]))
    return layers


def worst_layers_openvino(
    float_onnx: Path, quantized_xml: Path, inputs: Feeds, k: int = 5
) -> list[tuple[str, float]]:
    """The layers that an OpenVINO INT8 graph made by NNCF hurts most.

    Layers are matched by OpenVINO's friendly names, which ``convert_model`` takes from the ONNX
    nodes and NNCF keeps (a quantized output is ``<name>/fq_output_0``). NNCF moves scales and means
    from one convolution to the next (its channel alignment), which changes tensors but not the
    function: what a scale and a shift of each channel explain is no noise here.

    Args, returns: as `worst_layers_onnx`; float layers run in fp32.

    Raises:
        MissingPart: OpenVINO is not installed.
    """
    ov = import_openvino()
    exact = ov.convert_model(str(float_onnx), verbose=False)
    quantized = ov.Core().read_model(str(quantized_xml))
    layers = _openvino_layers(exact)
    known = {op.get_friendly_name(): op for op in quantized.get_ordered_ops()}
    twins = {}
    fused = _before_fused(layers)
    for layer in layers:
        twin = known.get(f"{layer.output}/fq_output_0") or known.get(layer.output)
        if twin is not None and layer.output not in fused:
            twins[layer.output] = twin
    ops = {op.get_friendly_name(): op for op in exact.get_ordered_ops()}
    sums = {name: _AffineNoise() for name in twins}
    names = list(twins)
    right = _openvino_run(ov, exact, [ops[name] for name in names])
    doubtful = _openvino_run(ov, quantized, [twins[name] for name in names])
    for feed in inputs:
        for name, expected, got in zip(names, right(feed), doubtful(feed), strict=True):
            sums[name].add(expected, got)
    onnx_name = _onnx_names(Path(float_onnx))
    noise = {name: running.ratio() for name, running in sums.items()}
    return [(onnx_name(name), snr) for name, snr in _own_noise(layers, noise, k)]


class _AffineNoise:
    """Noise over signal of a tensor, up to a scale and a shift a channel: the variance of the exact
    values that no line through the doubtful ones explains. Fed pair by pair, as moments."""

    def __init__(self) -> None:
        self._n = 0
        self._moments: np.ndarray | None = None  # [5, channels]: Σx, Σy, Σx², Σy², Σxy

    def add(self, exact: np.ndarray, doubtful: np.ndarray) -> None:
        """One pair ``[batch, channels, …]`` of the same shape."""
        if exact.ndim > 2:
            axes = (0, *range(2, exact.ndim))
        else:  # a vector's entries have too few values each: one line for all
            exact, doubtful, axes = exact.reshape(1, 1, -1), doubtful.reshape(1, 1, -1), (0, 2)
        x, y = exact.astype(np.float64), doubtful.astype(np.float64)
        found = np.stack([part.sum(axes) for part in (x, y, x * x, y * y, x * y)])
        self._n += x.size // x.shape[1]
        self._moments = found if self._moments is None else self._moments + found

    def ratio(self) -> float:
        """0 (explained in full) to 1 (nothing of it is left); inf where it is not finite."""
        x, y, xx, yy, xy = self._moments / self._n
        variance, spread, shared = xx - x * x, yy - y * y, xy - x * y
        if not np.isfinite(self._moments).all():
            return math.inf
        explained = np.divide(shared**2, spread, out=np.zeros_like(shared), where=spread > 0)
        total = float(xx.sum())
        return max(0.0, float((variance - explained).sum())) / total if total > 0 else 0.0


def _onnx_names(path: Path) -> Callable[[str], str]:
    """From OpenVINO's friendly names to ONNX node names: a convolution with a bias becomes two
    operators, and the one that computes a graph output is named like that output."""
    graph = read_onnx(path).graph
    known = {node.name for node in graph.node}
    by_output = {out: node.name or out for node in graph.node for out in node.output}

    def name_of(friendly: str) -> str:
        name = friendly.removesuffix("/WithoutBiases")
        return name if name in known else by_output.get(name, name)

    return name_of


def _openvino_run(
    ov: ModuleType, model: Any, ops: Sequence[Any]
) -> Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]:
    """A function from a feed to the values of `ops`, an output of each added to `model`."""
    model.add_outputs([op.output(0) for op in ops])
    # An operator that gives a model output already gets no second one: look each up by its source.
    at = {
        output.get_node().input_value(0).get_node().get_friendly_name(): i
        for i, output in enumerate(model.outputs)
    }
    wanted = [at[op.get_friendly_name()] for op in ops]
    request = ov.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        result = request(dict(feed))
        return [np.array(result[i]) for i in wanted]

    return run


def _openvino_layers(model: Any) -> list[_Layer]:
    layers, live = [], set()
    for op in model.get_ordered_ops():
        name, kind = op.get_friendly_name(), op.get_type_name()
        if kind == "Parameter":
            live.add(name)
            continue
        sources = (value.get_source_output().get_node() for value in op.inputs())
        inputs = tuple(n for n in (s.get_friendly_name() for s in sources) if n in live)
        if not inputs or kind == "Result":
            continue
        live.add(name)
        if op.get_output_size() == 1 and op.get_output_element_type(0).is_real():
            layers.append(_Layer(name, kind, inputs, name))
    return layers


def _own_noise(
    layers: Sequence[_Layer], noise: Mapping[str, float], k: int
) -> list[tuple[str, float]]:
    """Rank layers with weights by the noise they add themselves.

    Noise over signal at a layer's end (behind the activation that is fused with it), minus the
    largest noise over signal among its inputs: what came in does not count against it. That holds
    to first order, as long as noise passes through a layer like the signal does.
    """
    producers = {layer.output: layer for layer in layers}
    consumers: dict[str, list[_Layer]] = {}
    for layer in layers:
        for name in layer.inputs:
            consumers.setdefault(name, []).append(layer)
    own = []
    for layer in layers:
        if layer.op not in WEIGHTED:
            continue
        end = _chain_end(layer, consumers, noise)
        if end is None:
            continue
        came_in = max((n for name in layer.inputs for n in _noise_at(name, producers, noise)),
                      default=0.0)  # fmt: skip
        added = max(noise[end] - came_in, 0.0) if math.isfinite(came_in) else 0.0
        if added > 0.0:
            own.append((layer.name, -10 * math.log10(added)))
    return sorted(own, key=lambda pair: pair[1])[:k]


def _before_fused(layers: Sequence[_Layer]) -> set[str]:
    """Tensors that a runtime computes only inside a fused layer. Asked for one of them, OpenVINO's
    CPU plugin gave zeros from there on (2026.4.1, a convolution before its ReLU in an INT8 graph).
    """
    uses: dict[str, list[_Layer]] = {}
    for layer in layers:
        for name in layer.inputs:
            uses.setdefault(name, []).append(layer)
    return {
        name
        for name, after in uses.items()
        if len(after) == 1 and after[0].op in FUSED and len(after[0].inputs) == 1
    }


def _chain_end(
    layer: _Layer, consumers: Mapping[str, list[_Layer]], noise: Mapping[str, float]
) -> str | None:
    """The last measured tensor of a layer and of what is fused into it."""
    end = layer.output if layer.output in noise else None
    at = layer
    while len(after := consumers.get(at.output, [])) == 1:
        at = after[0]
        if at.op not in FUSED or len(at.inputs) != 1:
            break
        end = at.output if at.output in noise else end
    return end


def _noise_at(
    tensor: str, producers: Mapping[str, _Layer], noise: Mapping[str, float]
) -> list[float]:
    """The noise of the nearest measured tensors at or before `tensor`."""
    found, seen, waiting = [], set(), [tensor]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in noise:
            found.append(noise[name])
        elif name in producers:
            waiting.extend(producers[name].inputs)
    return found
