"""A read-only view of an ONNX graph for the linter: who makes a tensor, who reads it, what is constant."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..artifact.onnx_file import external_files, load_shape_tensors, nodes, read_onnx

if TYPE_CHECKING:
    import onnx

# Operators that multiply and accumulate: what INT8 and FP16 are for.
HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


class LintGraph:
    """The main graph of a model that lies at `path`.

    Attributes:
        nodes: of the main graph, in its (topological) order.
        all_nodes: those of subgraphs and functions too.
        inputs: the graph inputs a caller gives.
        producers: tensor → the node that makes it.
        opset: of the standard operators.
    """

    def __init__(self, model: onnx.ModelProto, path: Path) -> None:
        self.model, self.path = model, Path(path)
        self.nodes = list(model.graph.node)
        self.all_nodes = list(nodes(model))
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and (value := attribute(node, "value")) is not None:
                self._stored.setdefault(node.output[0], value)
        self.inputs = [v for v in model.graph.input if v.name not in self._stored]
        self.outputs = {v.name for v in model.graph.output}
        self.producers = {out: node for node in self.nodes for out in node.output}
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)

    @classmethod
    def read(cls, path: Path) -> LintGraph:
        """Read a file; external data is checked, not loaded.

        Raises:
            ModelError: it cannot be read, or its external data lies where it must not.
        """
        model = read_onnx(path)
        external_files(model, path)
        load_shape_tensors(model, path)
        return cls(model, path)

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        return self._consumers.get(tensor, [])

    def is_constant(self, tensor: str) -> bool:
        return tensor in self._stored

    def constant(self, tensor: str) -> np.ndarray | None:
        """The value of a stored tensor; None for one that is computed. Read when asked for."""
        import onnx

        stored = self._stored.get(tensor)
        if stored is None:
            return None
        return onnx.numpy_helper.to_array(stored, base_dir=str(self.path.parent))

    def stored_type(self, tensor: str) -> int | None:
        """The element type (``onnx.TensorProto.…``) of a stored tensor, None for a computed one."""
        stored = self._stored.get(tensor)
        return None if stored is None else stored.data_type

    def elem_type(self, tensor: str) -> int:
        """The element type of any tensor; 0 where shape inference cannot tell."""
        stored = self._stored.get(tensor)
        if stored is not None:
            return stored.data_type
        value = self._values.get(tensor)
        return 0 if value is None else value.type.tensor_type.elem_type

    def dims(self, tensor: str) -> tuple[int | None, ...] | None:
        """The shape, None for an open axis; None altogether where it is not known."""
        stored = self._stored.get(tensor)
        if stored is not None:
            return tuple(stored.dims)
        value = self._values.get(tensor)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        return tuple(
            axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else None
            for axis in value.type.tensor_type.shape.dim
        )

    @cached_property
    def _values(self) -> dict[str, onnx.ValueInfoProto]:
        import onnx

        try:
            inferred = onnx.shape_inference.infer_shapes(self.model, data_prop=True)
        except Exception:  # a graph that contradicts itself is still linted by what it says
            inferred = self.model
        graph = inferred.graph
        return {v.name: v for v in (*graph.input, *graph.value_info, *graph.output)}

    def macs(self, node: onnx.NodeProto) -> int:
        """Multiply-accumulates of a heavy node at one sample (open axes count as 1); 0 for others."""
        if node.op_type not in HEAVY or len(node.input) < 2:
            return 0
        out, weights = self.dims(node.output[0]), self.dims(node.input[1])
        if weights is None or (out is None and node.op_type != "ConvTranspose"):
            return 0
        if node.op_type == "Conv":
            return math.prod(n or 1 for n in out) * math.prod(n or 1 for n in weights[1:])
        if node.op_type == "ConvTranspose":
            source = self.dims(node.input[0]) or ()
            return math.prod(n or 1 for n in source) * math.prod(n or 1 for n in weights[1:])
        transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
        inner = weights[-1] if transposed else weights[-2] if len(weights) > 1 else weights[0]
        return math.prod(n or 1 for n in out) * (inner or 1)

    def dequantizer(self, tensor: str) -> onnx.NodeProto | None:
        """The DequantizeLinear a tensor comes from, looking through what TensorRT moves Q/DQ
        across without a cost (Transpose, Reshape, Flatten, Squeeze, Unsqueeze, Identity, MaxPool)."""
        while node := self.producers.get(tensor):
            if node.op_type == "DequantizeLinear":
                return node
            if node.op_type not in PASSED_THROUGH:
                return None
            tensor = node.input[0]
        return None


# "Explicit quantization" in NVIDIA's guide: layers that commute with Q/DQ.
PASSED_THROUGH = (
    "Flatten",
    "Identity",
    "MaxPool",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """The value of a node's attribute, or `default`."""
    import onnx

    for entry in node.attribute:
        if entry.name == name:
            return onnx.helper.get_attribute_value(entry)
    return default


def label(node: onnx.NodeProto) -> str:
    """A node's name, or its first output's where it has none."""
    return node.name or (node.output[0] if node.output else node.op_type)
