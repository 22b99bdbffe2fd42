"""Small Q/DQ graphs, right ones and ones with a planted fault."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

node = helper.make_node
RNG = np.random.default_rng(0)
W = (RNG.standard_normal((8, 3, 3, 3)) * 0.1).astype(np.float32)
W8 = (RNG.standard_normal((8, 8, 3, 3)) * 0.1).astype(np.float32)
ROWS = np.abs(W).reshape(8, -1).max(1) / 127
WQ = np.clip(np.rint(W / ROWS[:, None, None, None]), -127, 127).astype(np.int8)
SCALE, ZERO = np.float32(0.02), np.int8(0)


def graph(
    nodes, stored=None, x=(1, 3, 8, 8), y=None, opset=20, xt=TensorProto.FLOAT, yt=1, domain=None
):
    """A model of one input ``x`` and one output ``y``; `stored` may hold arrays and TensorProtos."""
    tensors = [
        t if isinstance(t, onnx.TensorProto) else numpy_helper.from_array(np.asarray(t), name)
        for name, t in (stored or {}).items()
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", xt, x)],
        [helper.make_tensor_value_info("y", yt, y)],
        tensors,
    )
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(made, opset_imports=opsets, ir_version=9)
    if y is None:  # what shape inference knows of the output
        output = onnx.shape_inference.infer_shapes(model).graph.output[0]
        if output.type.tensor_type.HasField("shape"):
            model.graph.output[0].CopyFrom(output)
    return model


def pair(source, name, stored, scale=SCALE, zero=ZERO, **attributes):
    """Q and DQ behind `source`; their nodes are ``q_name`` and ``dq_name``, the result ``name``."""
    inputs = [f"{name}_s"] + ([] if zero is None else [f"{name}_z"])
    stored[f"{name}_s"] = scale
    if zero is not None:
        stored[f"{name}_z"] = zero
    q = node("QuantizeLinear", [source, *inputs], [f"{name}_q"], name=f"q_{name}", **attributes)
    dq = node("DequantizeLinear", [f"{name}_q", *inputs], [name], name=f"dq_{name}", **attributes)
    return [q, dq]


def weight(name, stored, values=WQ, scale=ROWS, zero=None, axis=0):
    """A stored weight and its DQ, node ``dq_name``."""
    stored[f"{name}_v"], stored[f"{name}_s"] = values, np.asarray(scale, np.float32)
    stored[f"{name}_z"] = np.zeros(np.shape(scale), values.dtype) if zero is None else zero
    inputs = [f"{name}_v", f"{name}_s", f"{name}_z"]
    return [node("DequantizeLinear", inputs, [name], name=f"dq_{name}", axis=axis)]


def conv(scale=SCALE, zero=ZERO, bias=None, opset=20, behind=(), y="y", activation=True, **weights):
    """x → Q → DQ → Conv with DQ weights → y; `behind` are further nodes that make ``y``."""
    stored: dict = {}
    nodes = pair("x", "a", stored, scale, zero) if activation else []
    nodes += weight("w", stored, **weights)
    inputs = ["a" if activation else "x", "w"]
    if bias is not None:
        stored |= {"b_v": bias, "b_s": np.full(8, 1e-3, np.float32), "b_z": np.zeros(8, bias.dtype)}
        nodes.append(node("DequantizeLinear", ["b_v", "b_s", "b_z"], ["b"], name="dq_b", axis=0))
        inputs.append("b")
    nodes.append(node("Conv", inputs, [y], name="conv", pads=[1, 1, 1, 1]))
    more = behind(stored) if callable(behind) else list(behind)
    return graph([*nodes, *more], stored, opset=opset)


@pytest.fixture(scope="session")
def draw():
    """The functions above, and their constants."""
    return SimpleNamespace(**{k: v for k, v in globals().items() if not k.startswith("_")})


@pytest.fixture(scope="module")
def parser():
    """A function: model → the parser's errors; empty where it accepts."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")

    class Quiet(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, message):
            pass

    quiet = Quiet()

    def errors(model) -> list[str]:
        builder = trt.Builder(quiet)
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flags)  # a name: the parser does not keep it alive
        parse = trt.OnnxParser(network, quiet)
        if parse.parse(model.SerializeToString()):
            return []
        return [parse.get_error(i).desc() for i in range(parse.num_errors)] or ["refused"]

    return errors
