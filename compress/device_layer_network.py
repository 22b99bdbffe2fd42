"""A network of many layer shapes beside each other, and their times from a runtime's profile of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from ..errors import DeviceError
from .layer_times import FLOOR_MS, LayerShape

# Of Q/DQ graphs for TensorRT; ONNX Runtime takes unsigned activations into one quantized kernel.
OPSET, IR_VERSION = 17, 8
# Of these networks: times of another form are no longer of these layers.
FORM = 2
ACTIVATIONS = {"tensorrt": np.int8, "onnxruntime": np.uint8}


def write_layers(shapes: Sequence[LayerShape], runtime: str, path: Path) -> dict[str, np.ndarray]:
    """A network of these layers in INT8 beside each other, layer k named ``layer_000k_``.

    Every layer reads and writes INT8; of what it writes one pixel (one row) goes on, so that nothing large is
    converted or copied. Scales differ by layer, so that no builder merges two. TensorRT's products write float:
    from 10 on it calls a product by its node (``o_proj/MatMul_myl0_51``) only where nothing that follows was folded
    into it (``__myl_FcMulAdd_myl0_25``), as profiles that others published show; not run by us.

    Returns:
        The network's inputs, random, by name.
    """
    import onnx
    from onnx import helper, numpy_helper

    rng, whole = np.random.default_rng(0), ACTIVATIONS[runtime]
    widest: dict[tuple[str, tuple[int, int]], int] = {}
    for shape in shapes:
        place = ("linear" if shape.kind == "linear" else "conv", shape.size)
        widest[place] = max(widest.get(place, 0), shape.inputs)
    names = {place: f"x{i}" for i, place in enumerate(widest)}
    feeds = {}
    for (kind, size), width in widest.items():
        dims = (1, size[1], width) if kind == "linear" else (1, width, *size)
        feeds[names[kind, size]] = rng.random(dims, np.float32)
    nodes, constants, ends = [], [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def quantized(name: str, x: str, scale: float) -> str:
        pair = [constant(f"{name}_scale", np.array(scale, np.float32))]
        pair.append(constant(f"{name}_zero", np.array(0, whole)))
        nodes.append(helper.make_node("QuantizeLinear", [x, *pair], [f"{name}_q"], f"{name}_q"))
        nodes.append(
            helper.make_node("DequantizeLinear", [f"{name}_q", *pair], [f"{name}_d"], f"{name}_d")
        )
        return f"{name}_d"

    def one_row(name: str, x: str, axes: Sequence[int], ends_at: Sequence[int]) -> str:
        n = len(axes)
        words = [
            constant(f"{name}_begin", np.zeros(n, np.int64)),
            constant(f"{name}_end", np.array(ends_at, np.int64)),
            constant(f"{name}_axes", np.array(axes, np.int64)),
        ]
        nodes.append(helper.make_node("Slice", [x, *words], [f"{name}_cut"], f"{name}_cut"))
        return f"{name}_cut"

    for k, shape in enumerate(shapes):
        linear = shape.kind == "linear"
        scale = (1 + k / 1024) / 127
        x = one_row(
            f"in{k}",
            names["linear" if linear else "conv", shape.size],
            [2 if linear else 1],
            [shape.inputs],
        )
        x = quantized(f"in{k}", x, scale)
        groups = shape.inputs if shape.depthwise else shape.groups
        dims = (
            (shape.inputs, shape.outputs)
            if linear
            else (shape.outputs, shape.inputs // groups, *shape.kernel)
        )
        axis = 1 if linear else 0
        words = [
            constant(f"w{k}", rng.integers(-127, 128, dims, np.int8)),
            constant(f"w{k}_scale", np.full(shape.outputs, 1 / 127, np.float32)),
            constant(f"w{k}_zero", np.zeros(shape.outputs, np.int8)),
        ]
        nodes.append(helper.make_node("DequantizeLinear", words, [f"w{k}_d"], f"w{k}_d", axis=axis))
        name = f"layer_{k:04}_"
        if linear:
            nodes.append(helper.make_node("MatMul", [x, f"w{k}_d"], [name], name))
        else:
            bias = constant(f"b{k}", rng.uniform(-1, 1, shape.outputs).astype(np.float32))
            pads = [side // 2 for side in shape.kernel] * 2
            nodes.append(
                helper.make_node(
                    "Conv",
                    [x, f"w{k}_d", bias],
                    [name],
                    name,
                    group=groups,
                    kernel_shape=list(shape.kernel),
                    strides=list(shape.stride),
                    pads=pads,
                )
            )
            nodes.append(helper.make_node("Relu", [name], [f"{name}relu"], f"{name}relu"))
            name = f"{name}relu"
        named_by_node = linear and runtime == "tensorrt"
        out = name if named_by_node else quantized(f"out{k}", name, scale * 8)
        out = one_row(f"out{k}", out, [1] if linear else [2, 3], [1] if linear else [1, 1])
        nodes.append(helper.make_node("Flatten", [out], [f"end{k}"], f"end{k}"))
        ends.append(f"end{k}")
    nodes.append(helper.make_node("Concat", ends, ["y"], "y", axis=1))
    make = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "layers",
        [make(n, onnx.TensorProto.FLOAT, a.shape) for n, a in feeds.items()],
        [make("y", onnx.TensorProto.FLOAT, [1, sum(shape.outputs for shape in shapes)])],
        constants,
    )
    opset = [helper.make_opsetid("", OPSET)]
    onnx.save_model(helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION), path)
    return feeds


def read_layers(
    shapes: Sequence[LayerShape],
    profile: Sequence[tuple[str, float]],
    known: Collection[str] = (),
) -> dict[str, float]:
    """Milliseconds by `LayerShape.key` from the profile of `write_layers`' network; without those that it does not
    name, which are estimated from others of their family.

    Args:
        known: families of which a layer was measured before.

    Raises:
        DeviceError: it names no layer of a family, or it has two in one.
    """
    times = {}
    tokens = {f"layer_{k:04}_": shape for k, shape in enumerate(shapes)}
    for name, _ in profile:
        if sum(token in name for token in tokens) > 1:
            raise DeviceError(f"the builder there made one layer of several: {name[:120]}")
    for token, shape in tokens.items():
        own = [ms for name, ms in profile if token in name]
        if own:
            times[shape.key] = max(FLOOR_MS, sum(own))
    told = {*known, *(shape.family for shape in shapes if shape.key in times)}
    for token, shape in tokens.items():
        if shape.family not in told:
            raise DeviceError(
                f"the profile there has no {token.strip('_')} ({shape.key}) among {len(profile)} layers"
            )
    return times
