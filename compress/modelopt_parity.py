"""Whether each quantized layer of an exported graph computes what it does in the fake-quantized module.

A quantizer turns a difference in the seventh digit into a whole step where a value lies beside a rounding border,
and every layer behind multiplies that: two ways to sum a convolution's products leave EfficientNet-Lite0 5 % apart in
torch alone (``benchmarks/nvidia_numerics.py``). So the whole graph tells little. Here every layer is given the module's
own tensors, all layers in one run: what is left is the error of that layer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..export.blame import torch_scope

if TYPE_CHECKING:
    import onnx
    import torch


def layer_differences(
    model: onnx.ModelProto,
    module: torch.nn.Module,
    feed: Mapping[str, torch.Tensor],
    inputs: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """Compare the graph with the module, layer by layer, in ONNX Runtime at BASIC.

    Args:
        model: the exported graph; its QuantizeLinear nodes say which quantizer they stand for.
        module: quantized by ModelOpt; on the CPU.
        feed: its inputs by forward's parameters.
        inputs: the same by the graph's names.

    Returns:
        The relative L2 difference of what each activation's quantizer reads (``layer1.0.conv1.input_quantizer``)
        and of each float output, computed from the module's own tensors before it.
    """
    names = quantized_tensors(model)
    seen, results = module_tensors(module, feed, set(names.values()))
    wanted: dict[str, tuple[str, np.ndarray]] = {}
    calls: dict[str, int] = {}
    for tensor, path in names.items():
        call = calls[path] = calls.get(path, -1) + 1
        # Fewer in the graph than calls: equal ones were merged, and which is which is not known.
        if len(seen.get(path, [])) == sum(p == path for p in names.values()):
            wanted[tensor] = (path, seen[path][call])
    given = set(inputs)
    forced = {f"{t}{FORCED}": value for t, (_, value) in wanted.items() if t not in given}
    cut = cut_graph(model, [t for t in wanted if t not in given], forced=True)
    got = run_basic(cut, {**inputs, **forced})
    differences = {
        path: relative_l2(got[tensor], value)
        for tensor, (path, value) in wanted.items()
        if tensor not in given
    }
    for value, want in zip(model.graph.output, results, strict=True):
        if want.dtype.kind == "f":
            differences[value.name] = relative_l2(got[value.name], want)
    return differences


FORCED = "__of_the_module"


def quantized_tensors(model: onnx.ModelProto) -> dict[str, str]:
    """Tensor that a QuantizeLinear reads -> the path of the quantizer it stands for, in the graph's order."""
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and (path := torch_scope(node)):
            found.setdefault(node.input[0], path)
    return found


def module_tensors(
    module: torch.nn.Module, feed: Mapping[str, torch.Tensor], paths: Iterable[str]
) -> tuple[dict[str, list[np.ndarray]], list[np.ndarray]]:
    """What the quantizers of these paths read, a list of calls each, and the module's outputs."""
    import torch
    from torch.utils import _pytree

    seen: dict[str, list[np.ndarray]] = {}
    hooks = []

    def listen(path: str) -> Any:
        def before(quantizer: Any, args: tuple) -> None:
            scale = quantizer.pre_quant_scale
            value = args[0] if scale is None else args[0] * scale
            # Copied: what follows may work in place.
            seen.setdefault(path, []).append(value.detach().numpy().copy())

        return before

    for path in paths:
        hooks.append(module.get_submodule(path).register_forward_pre_hook(listen(path)))
    try:
        with torch.no_grad():
            results = module(**feed)
    finally:
        for hook in hooks:
            hook.remove()
    leaves = _pytree.tree_leaves(results)
    return seen, [leaf.numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def cut_graph(model: onnx.ModelProto, tensors: Iterable[str], forced: bool) -> onnx.ModelProto:
    """A copy with `tensors` (float32) as outputs; with `forced`, what reads one reads an input of its own,
    ``NAME`` + `FORCED`."""
    import onnx
    from onnx import TensorProto, helper

    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    outputs = {value.name for value in cut.graph.output}
    tensors = list(tensors)
    for name in tensors:
        if name not in outputs:
            cut.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        if forced:
            value = helper.make_tensor_value_info(f"{name}{FORCED}", TensorProto.FLOAT, None)
            cut.graph.input.append(value)
    chosen = set(tensors) if forced else set()
    for node in cut.graph.node:
        for i, name in enumerate(node.input):
            if name in chosen:
                node.input[i] = f"{name}{FORCED}"
    return cut


def run_basic(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs by ONNX Runtime at BASIC: what runs there are the Q/DQ that were written; above it FP8 is
    wrong (FACTS §8). The weights of `model` are moved to a file."""
    import onnx

    from ..runtime.onnxruntime_engine import DISABLED_OPTIMIZERS, import_onnxruntime

    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="edgeml-parity-") as scratch:
        path = Path(scratch, "model.onnx")
        # Beside the graph, which may not be larger than 2 GiB.
        onnx.save_model(model, path, save_as_external_data=True, location="weights")
        session = ort.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=DISABLED_OPTIMIZERS,
        )
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(feed)), strict=True))


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    """Norm of the difference over that of `want`; infinite where only one is zero."""
    difference = float(np.linalg.norm((got - want).astype(np.float64)))
    size = float(np.linalg.norm(want.astype(np.float64)))
    return difference / size if size else (0.0 if difference == 0 else float("inf"))
