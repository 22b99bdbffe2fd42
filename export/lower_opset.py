"""Rewrites that bring a graph to opset 17 for TensorRT 8.x: the same function, older operators.

``onnx.version_converter`` has no way down for most of them. Each operator whose meaning changed between
17 and the graph's opset is rewritten, or named.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BuildError, one_line
from .lint_graph import QUANTIZERS, attribute, label

if TYPE_CHECKING:
    import onnx

OPSET = 17

# Changed after 17 in the types they take (float8, int4, bfloat16), or by attributes and inputs that the
# checker finds where they are used. ONNX Changelog.md, versions 18 to 24.
SAME = {
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "CastLike",
    "Clip",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvTranspose",
    "Cos",
    "CumSum",
    "DequantizeLinear",
    "Dropout",
    "Elu",
    "Equal",
    "Flatten",
    "GRU",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LSTM",
    "MaxPool",
    "Pad",
    "Pow",
    "QuantizeLinear",
    "RNN",
    "Reshape",
    "Resize",
    "Round",
    "ScatterElements",
    "ScatterND",
    "Selu",
    "Shape",
    "Sin",
    "Size",
    "Softplus",
    "Softsign",
    "Split",
    "Squeeze",
    "TopK",
    "Transpose",
    "Unsqueeze",
}
# Attributes that came later, and the value at which they mean what their absence meant.
DEFAULTS = {
    "saturate": 1,
    "block_size": 0,
    "output_dtype": 0,
    "precision": 0,
    "antialias": 0,
    "keep_aspect_ratio_policy": b"stretch",
    "round_mode": b"up",
}


def lower_opset(model: onnx.ModelProto, layer_normalization: bool = True) -> int:
    """Rewrite `model` in place to opset 17.

    Args:
        layer_normalization: the target has that operator (TensorRT 8.6); False decomposes it.

    Returns:
        How many nodes were rewritten.

    Raises:
        BuildError: an operator that has no form at 17; nothing should be done with the model then.
    """
    import onnx

    standard = [o for o in model.opset_import if o.domain in ("", "ai.onnx")]
    opset = standard[0].version
    constants = _constants(model)
    rewritten, kept = 0, []
    for node in model.graph.node:
        scale = constants.get(node.input[1]) if node.op_type in QUANTIZERS else None
        if scale is not None and scale.dtype == np.float16:
            raise BuildError(
                f"{label(node)}: its scale is FP16, which opset {OPSET} has not; TensorRT 8.x takes the fp32 graph "
                "with Q/DQ and chooses FP16 itself: lower that one"
            )
        if opset > OPSET:
            _drop_later_attributes(node)
        if node.op_type == "Gelu":
            kept += _gelu(node)
        elif node.op_type == "LayerNormalization" and not layer_normalization:
            kept += _layer_normalization(node)
        elif (
            node.op_type.startswith("Reduce")
            and node.op_type != "ReduceSum"
            and (opset > OPSET or len(node.input) > 1)
        ):
            kept.append(_reduce(node, constants))
        else:
            if opset > OPSET:
                _check(node, opset)
            kept.append(node)
            continue
        rewritten += 1
    del model.graph.node[:]
    model.graph.node.extend(kept)
    del model.graph.value_info[:]
    if opset > OPSET:
        standard[0].version = OPSET
        model.ir_version = min(model.ir_version, 8)  # the first that ONNX 1.12 (opset 17) wrote
    try:
        onnx.checker.check_model(model)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise BuildError(f"the graph has no form at opset {OPSET}: {one_line(e)}") from e
    return rewritten


def _constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    found = {t.name: t for t in model.graph.initializer if math.prod(t.dims) <= 64}
    for node in model.graph.node:
        if node.op_type == "Constant" and (value := attribute(node, "value")) is not None:
            found[node.output[0]] = value
    return {name: numpy_helper.to_array(tensor) for name, tensor in found.items()}


def _check(node: onnx.NodeProto, opset: int) -> None:
    import onnx

    if node.domain not in ("", "ai.onnx"):
        return
    try:
        since = onnx.defs.get_schema(node.op_type, opset).since_version
    except onnx.defs.SchemaError as e:
        raise BuildError(f"{label(node)}: unknown operator {node.op_type}") from e
    if since <= OPSET or node.op_type in SAME:
        return
    raise BuildError(
        f"{label(node)}: {node.op_type} of opset {since} has no form at opset {OPSET}; export the "
        f"network at opset {OPSET}"
    )


def _drop_later_attributes(node: onnx.NodeProto) -> None:
    kept = []
    for entry in node.attribute:
        if entry.name in DEFAULTS and attribute(node, entry.name) == DEFAULTS[entry.name]:
            continue
        # Split into equal parts is what its absence meant too, where the parts are equal.
        if node.op_type == "Split" and entry.name == "num_outputs":
            continue
        kept.append(entry)
    del node.attribute[:]
    node.attribute.extend(kept)


def _reduce(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> onnx.NodeProto:
    from onnx import helper

    given = node.input[1] if len(node.input) > 1 else ""
    axes = constants.get(given)
    if given and axes is None:
        raise BuildError(f"{label(node)}: its axes are computed; they must be constant")
    attributes = {"keepdims": int(attribute(node, "keepdims", 1))}
    if axes is not None and axes.size:
        attributes["axes"] = [int(a) for a in axes.ravel()]
    elif attribute(node, "noop_with_empty_axes", 0):
        return helper.make_node("Identity", node.input[:1], node.output, name=node.name)
    made = helper.make_node(node.op_type, node.input[:1], node.output, name=node.name, **attributes)
    made.metadata_props.extend(node.metadata_props)
    return made


class _Writer:
    """New nodes with names derived from the one they replace."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self.base, self.nodes = f"{label(node)}__", []

    def add(
        self, op: str, inputs: list[str], output: str | None = None, **attributes: object
    ) -> str:
        from onnx import helper

        name = f"{self.base}{len(self.nodes)}"
        output = output or name
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def constant(self, value: float) -> str:
        """An fp32 scalar: form (a) carries no other float type."""
        from onnx import TensorProto, helper

        tensor = helper.make_tensor("value", TensorProto.FLOAT, [], [value])
        return self.add("Constant", [], value=tensor)


def _gelu(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """0.5 x (1 + erf(x / √2)), or the tanh approximation (ONNX Operators.md, Gelu)."""
    x, write = node.input[0], _Writer(node)
    if attribute(node, "approximate", b"none") == b"tanh":
        cube = write.add("Mul", [write.add("Mul", [x, x]), x])
        inner = write.add("Add", [x, write.add("Mul", [cube, write.constant(0.044715)])])
        bent = write.add(
            "Tanh", [write.add("Mul", [inner, write.constant(math.sqrt(2 / math.pi))])]
        )
    else:
        bent = write.add("Erf", [write.add("Mul", [x, write.constant(math.sqrt(0.5))])])
    half = write.add("Mul", [x, write.constant(0.5)])
    write.add("Mul", [half, write.add("Add", [bent, write.constant(1.0)])], node.output[0])
    return write.nodes


def _layer_normalization(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """(x − mean) / √(var + ε) · gain + bias over the last axis."""
    if int(attribute(node, "axis", -1)) != -1 or len([o for o in node.output if o]) != 1:
        raise BuildError(f"{label(node)}: only LayerNormalization over the last axis is decomposed")
    x, write = node.input[0], _Writer(node)
    centred = write.add("Sub", [x, write.add("ReduceMean", [x], axes=[-1], keepdims=1)])
    square = write.add("Mul", [centred, centred])
    variance = write.add("ReduceMean", [square], axes=[-1], keepdims=1)
    epsilon = write.constant(float(attribute(node, "epsilon", 1e-5)))
    root = write.add("Sqrt", [write.add("Add", [variance, epsilon])])
    scaled = write.add("Div", [centred, root])
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    gained = write.add("Mul", [scaled, node.input[1]], None if bias else node.output[0])
    if bias:
        write.add("Add", [gained, bias], node.output[0])
    return write.nodes
