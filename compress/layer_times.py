"""The time of one layer of a given shape, from a small INT8 engine of several such layers.

OpenVINO's own profile is given in whole microseconds, and a layer of a small network takes two to
ten: so a layer is timed from outside. An engine
holds `BRANCHES` equal layers beside each other; from its p50 that of the same engine without them
is taken, and the rest is divided.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..artifact.machine_lock import machine_lock
from ..runtime.openvino_engine import import_openvino

BRANCHES = 6
CALLS, WARMUP = 40, 6
# Weight matrices of a recurrent cell, each for the input and for the state.
GATES = {"lstm": 4, "gru": 3}
# However fast its arithmetic, a layer is a call of a kernel.
FLOOR_MS = 2e-4


@dataclass(frozen=True)
class LayerShape:
    """What a layer's time depends on.

    Attributes:
        kind: ``conv`` (1-D ones have height 1), ``linear``, ``lstm`` or ``gru``.
        inputs, outputs: channels or features.
        kernel, stride, size: (height, width); `size` of the input. Of a linear layer `size` is
            (1, rows), the rest (1, 1); of a recurrent one (layers · directions, steps), `outputs`
            its hidden units.
        depthwise: one filter a channel; then `outputs` = `inputs`.
        groups: of a grouped convolution that is not depthwise.
    """

    kind: str
    inputs: int
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    depthwise: bool = False
    groups: int = 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        if self.kind in GATES:
            cells, steps = self.size
            weights = GATES[self.kind] * self.outputs * (self.inputs + self.outputs)
            return cells * steps * weights
        each = 1 if self.depthwise else self.inputs // self.groups
        height, width = (-(-s // t) for s, t in zip(self.size, self.stride, strict=True))
        return height * width * self.outputs * each * self.kernel[0] * self.kernel[1]

    @property
    def family(self) -> str:
        """All but the channels, in one word."""
        numbers = (*self.size, *self.kernel, *self.stride)
        word = "dw" if self.depthwise else f"g{self.groups}"
        return "-".join(map(str, (self.kind, *numbers, word)))

    @property
    def key(self) -> str:
        """The shape in one word, for a table on disk."""
        return f"{self.inputs}-{self.outputs}-{self.family}"


def time_layer(shape: LayerShape, threads: int | None, empty: dict[str, float]) -> float:
    """Milliseconds of one such layer in INT8, its activations in and out in INT8.

    Args:
        empty: times of engines without layers, by what they read; filled as needed.
    """
    if shape.kind in GATES:  # long enough to be timed alone, and in float, as OpenVINO leaves it
        return shape.size[0] * _p50_ms(_recurrent(shape), threads)
    reads = f"{shape.kind}-{shape.inputs}-{shape.size}"
    if reads not in empty:
        empty[reads] = _p50_ms(_network(shape, with_layers=False), threads)
    whole = _p50_ms(_network(shape, with_layers=True), threads)
    return max(FLOOR_MS, (whole - empty[reads]) / BRANCHES)


def call_ms(threads: int | None) -> float:
    """Milliseconds of a call that computes next to nothing."""
    ov = import_openvino()
    from openvino import opset13 as op

    x = op.parameter([1, 8], np.float32, name="x")
    return _p50_ms(ov.Model([op.relu(x)], [x], "nothing"), threads)


def _p50_ms(model: Any, threads: int | None) -> float:
    ov = import_openvino()
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    shape = tuple(request.get_input_tensor().shape)
    request.get_input_tensor().data[...] = np.random.default_rng(0).random(shape, np.float32)
    found = []
    # An engine at a time: the solver asks for further shapes long after the table was opened.
    with machine_lock("the latency table"):
        for call in range(WARMUP + CALLS):
            begin = time.perf_counter_ns()
            request.infer(share_outputs=True)
            if call >= WARMUP:
                found.append(time.perf_counter_ns() - begin)
    return float(np.median(found)) / 1e6


def _recurrent(shape: LayerShape) -> Any:
    """One recurrent layer over its steps."""
    ov = import_openvino()
    from openvino import opset13 as op

    rng, hidden, gates = np.random.default_rng(0), shape.outputs, GATES[shape.kind]

    def weights(*dims: int) -> Any:
        return op.constant(rng.uniform(-0.1, 0.1, dims).astype(np.float32))

    x = op.parameter([1, shape.size[1], shape.inputs], np.float32, name="x")
    state = op.constant(np.zeros((1, 1, hidden), np.float32))
    steps = op.constant(np.array([shape.size[1]], np.int32))
    given, kept = weights(1, gates * hidden, shape.inputs), weights(1, gates * hidden, hidden)
    bias = weights(1, gates * hidden)
    if shape.kind == "lstm":
        node = op.lstm_sequence(x, state, state, steps, given, kept, bias, hidden, "forward")
    else:
        node = op.gru_sequence(x, state, steps, given, kept, bias, hidden, "forward")
    return ov.Model([node.output(1)], [x], "recurrent")


def _network(shape: LayerShape, with_layers: bool) -> Any:
    """``x -> FakeQuantize -> [layer, ReLU, FakeQuantize, a pixel of it] * BRANCHES -> one output``."""
    ov = import_openvino()
    from openvino import opset13 as op

    rng = np.random.default_rng(0)
    if shape.kind == "linear":
        x = op.parameter([1, shape.size[1], shape.inputs], np.float32, name="x")
    else:
        x = op.parameter([1, shape.inputs, *shape.size], np.float32, name="x")
    quantized = _quantize(x, 0.0, 1.0, 256)
    ends = []
    for _ in range(BRANCHES):
        node = quantized
        if with_layers:
            node = (
                _linear(op, node, shape, rng)
                if shape.kind == "linear"
                else _conv(op, node, shape, rng)
            )
        ends.append(_look(op, node, shape, rng))
    return ov.Model([op.concat(ends, 1)], [x], "layers")


def _look(op: Any, node: Any, shape: LayerShape, rng: Any) -> Any:
    """Read one pixel (one row): a consumer that costs next to nothing, so that nothing is
    converted back to float for an output of the engine."""
    if shape.kind == "linear":
        one = op.slice(node, [0, 0, 0], [1, 1, 1], [1, 1, 1], [0, 1, 2])
        return op.reshape(one, [1, 1], False)
    channels = node.get_output_shape(0)[1]
    weights = rng.uniform(-1, 1, (8, channels, 1, 1)).astype(np.float32)
    height, width = node.get_output_shape(0)[2:]
    return op.convolution(
        node,
        _quantize(op.constant(weights), -1.0, 1.0, 255),
        [height, width],
        [0, 0],
        [0, 0],
        [1, 1],
    )


def _linear(op: Any, node: Any, shape: LayerShape, rng: Any) -> Any:
    weights = rng.uniform(-1, 1, (shape.outputs, shape.inputs)).astype(np.float32)
    quantized = _quantize(op.constant(weights), -1.0, 1.0, 255)
    return op.matmul(node, quantized, False, True)


def _conv(op: Any, node: Any, shape: LayerShape, rng: Any) -> Any:
    pads = [k // 2 for k in shape.kernel]
    stride, ones = list(shape.stride), [1, 1]
    groups = shape.inputs if shape.depthwise else shape.groups
    if groups > 1:
        dims = (groups, shape.outputs // groups, shape.inputs // groups, *shape.kernel)
    else:
        dims = (shape.outputs, shape.inputs, *shape.kernel)
    weights = rng.uniform(-1, 1, dims).astype(np.float32)
    quantized = _quantize(op.constant(weights), -1.0, 1.0, 255)
    convolve = op.group_convolution if groups > 1 else op.convolution
    bias = op.constant(rng.uniform(-1, 1, (1, shape.outputs, 1, 1)).astype(np.float32))
    out = op.relu(op.add(convolve(node, quantized, stride, pads, pads, ones), bias))
    return _quantize(out, 0.0, 64.0, 256)


def _quantize(node: Any, low: float, high: float, levels: int) -> Any:
    from openvino import opset13 as op

    ends = [op.constant(np.array(v, np.float32)) for v in (low, high)]
    return op.fake_quantize(node, *ends, *ends, levels)
