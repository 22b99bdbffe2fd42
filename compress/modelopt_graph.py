"""A traced graph with Q/DQ put into TensorRT's form: stored int8 or float8 weights, padding in its convolution.

All rewrites are exact.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..export.lint_graph import LintGraph, attribute

if TYPE_CHECKING:
    import onnx


def tensorrt_form(path: Path) -> tuple[onnx.ModelProto, int]:
    """Read the graph at `path` and rewrite it.

    Returns:
        The model, and how many tensors (activations and weights) lie between Q/DQ.
    """
    import onnx

    model = onnx.load(str(path))
    store_weights(model, path)
    transpose_weights(model, path)
    fold_pads(model, path)
    drop_unused(model)
    pairs = {n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    return model, len(pairs)


def store_weights(model: onnx.ModelProto, path: Path) -> int:
    """QuantizeLinear of a stored float, or of one that stored tensors alone make (a weight under a 2:4 mask),
    becomes the stored int8 or float8. How many there were."""
    from onnx import numpy_helper

    graph = LintGraph(model, path)
    stored = []
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear":
            continue
        scale, zero = (graph.constant(name) for name in node.input[1:3])
        if scale is None or zero is None:
            continue
        weight = graph.constant(node.input[0])
        weight = computed_constant(graph, node.input[0]) if weight is None else weight
        if weight is None:
            continue
        shape = [1] * weight.ndim
        if scale.ndim:
            shape[int(attribute(node, "axis", 1)) % weight.ndim] = scale.size
        # Multiplied, as ModelOpt does: divided, one weight in 100,000 falls the other way.
        steps = weight * (np.float32(1) / scale).reshape(shape)
        if zero.dtype == np.int8:
            value = np.clip(np.rint(steps), -128, 127).astype(np.int8)
        else:
            value = np.clip(steps, -448, 448).astype(zero.dtype)
        model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        stored.append(node)
    for node in stored:
        model.graph.node.remove(node)
    return len(stored)


def computed_constant(graph: LintGraph, tensor: str) -> np.ndarray | None:
    """The value of a tensor that depends on stored ones only; None for any other.

    The exporter folds small products itself and leaves larger ones (onnxscript 0.7: beyond 8,192 elements).
    """
    from onnx import TensorProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    makers: dict[str, onnx.NodeProto] = {}
    stored: set[str] = set()
    names = [tensor]
    while names:
        name = names.pop()
        if not name or name in makers or name in stored:
            continue
        if graph.is_constant(name):
            stored.add(name)
            continue
        maker = graph.producers.get(name)
        if maker is None or any(a.HasField("g") for a in maker.attribute):
            return None
        makers |= dict.fromkeys(maker.output, maker)
        names += maker.input
    model = helper.make_model(
        helper.make_graph(
            [n for n in graph.nodes if n.output and n.output[0] in makers],
            "weight",
            [],
            [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(graph.constant(name), name) for name in sorted(stored)],
        ),
        opset_imports=graph.model.opset_import,
        functions=graph.model.functions,
    )
    return ReferenceEvaluator(model).run(None, {})[0]


def transpose_weights(model: onnx.ModelProto, path: Path) -> int:
    """Transpose of a dequantized stored matrix becomes the stored, transposed one: torch's Linear holds [out, in],
    MatMul reads [in, out]. How many there were."""
    from onnx import helper, numpy_helper

    graph = LintGraph(model, path)
    done, made = 0, set[str]()
    for node in graph.nodes:
        dq = graph.producers.get(node.input[0]) if node.op_type == "Transpose" else None
        if dq is None or dq.op_type != "DequantizeLinear":
            continue
        matrix = graph.constant(dq.input[0])
        if matrix is None or matrix.ndim != 2 or attribute(node, "perm") not in ([1, 0], None):
            continue
        name = f"{dq.input[0]}_transposed"
        if name not in made:  # a matrix may be used twice
            made.add(name)
            value = np.ascontiguousarray(matrix.T)
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        scale = graph.constant(dq.input[1])
        axis = (
            {} if scale is None or not scale.ndim else {"axis": 1 - int(attribute(dq, "axis", 1))}
        )
        new = helper.make_node(
            "DequantizeLinear", [name, *dq.input[1:]], list(node.output), name=node.name, **axis
        )
        new.metadata_props.extend(dq.metadata_props)
        at = list(model.graph.node).index(node)
        model.graph.node.remove(node)
        model.graph.node.insert(at, new)
        done += 1
    return done


def fold_pads(model: onnx.ModelProto, path: Path) -> int:
    """Zeros padded around what one convolution reads go into its own ``pads``: between DequantizeLinear and Conv
    a Pad keeps TensorRT from running the convolution in INT8. How many there were."""
    from onnx import helper

    graph = LintGraph(model, path)
    done = []
    for pad in graph.nodes:
        readers = graph.consumers(pad.output[0]) if pad.op_type == "Pad" else []
        if len(readers) != 1 or readers[0].op_type != "Conv" or pad.output[0] in graph.outputs:
            continue
        conv, amounts = readers[0], graph.constant(pad.input[1])
        value = graph.constant(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(1)
        axes = pad.input[3] if len(pad.input) > 3 else ""
        if (
            conv.input[0] != pad.output[0]
            or amounts is None
            or axes
            or value is None
            or np.any(value != 0)
            or attribute(pad, "mode", b"constant") != b"constant"
            or attribute(conv, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
        ):
            continue
        begin, end = np.split(amounts.astype(int), 2)
        if begin[:2].any() or end[:2].any() or min(begin.min(), end.min()) < 0:
            continue
        sides = np.concatenate([begin[2:], end[2:]])
        pads = np.asarray(attribute(conv, "pads", [0] * len(sides))) + sides
        kept = [a for a in conv.attribute if a.name not in ("pads", "auto_pad")]
        del conv.attribute[:]
        conv.attribute.extend([*kept, helper.make_attribute("pads", [int(n) for n in pads])])
        conv.input[0] = pad.input[0]
        done.append(pad)
    for pad in done:
        model.graph.node.remove(pad)
    return len(done)


def _read(node: onnx.NodeProto) -> set[str]:
    """What a node reads, in its subgraphs, too."""
    inside = [a.g for a in node.attribute if a.HasField("g")]
    found = set(node.input) | {value.name for graph in inside for value in graph.output}
    return found.union(*(_read(n) for graph in inside for n in graph.node))


def drop_unused(model: onnx.ModelProto) -> None:
    """Nodes and stored tensors that nothing reads any more."""
    used = {value.name for value in model.graph.output}
    for node in reversed(list(model.graph.node)):
        if not used & set(node.output):
            model.graph.node.remove(node)
        else:
            used |= _read(node)
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)
