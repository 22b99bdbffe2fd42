"""How a rounding grows through a quantized network: each layer alone, and in the chain of all.

For the tensor that each activation's quantizer reads, and for the output: the relative L2 difference between the
graph and ModelOpt's module, `alone` where the graph is given the module's own tensors before that layer, `chain` in the
whole graph, and the share of quantized values that differ in the chain.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from edgeml.compress.modelopt_parity import (
    cut_graph,
    layer_differences,
    module_tensors,
    quantized_tensors,
    relative_l2,
    run_basic,
)


def layers(path: Path, parameter: str, module: Any, x: np.ndarray) -> list[dict[str, Any]]:
    """Compare a file that `export_quantized` wrote of `module`; x: inputs [N, …], a few."""
    model = onnx.load(str(path))
    feed = {parameter: torch.from_numpy(x)}
    alone = layer_differences(model, module, feed, {parameter: x})
    names = quantized_tensors(model)
    seen, [want] = module_tensors(module, feed, names.values())
    chain = run_basic(cut_graph(model, [n for n in names if n != parameter], False), {parameter: x})
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    quantizers = {n.input[0]: n for n in model.graph.node if n.op_type == "QuantizeLinear"}
    rows = []
    for tensor, where in names.items():
        if tensor == parameter:
            continue
        scale, zero = (stored[name] for name in quantizers[tensor].input[1:])
        steps = [stored_values(t, scale, zero.dtype) for t in (chain[tensor], seen[where][0])]
        rows.append(
            {
                "layer": where.removesuffix(".input_quantizer"),
                "alone": alone[where],
                "chain": relative_l2(chain[tensor], seen[where][0]),
                "steps": float((steps[0] != steps[1]).mean()),
            }
        )
    output = model.graph.output[0].name
    rows.append(
        {"layer": "output", "alone": alone[output], "chain": relative_l2(chain[output], want)}
    )
    return rows


def stored_values(values: np.ndarray, scale: np.ndarray, kind: np.dtype) -> np.ndarray:
    """The numbers that QuantizeLinear stores, for comparing."""
    scaled = values / scale
    if kind == np.int8:
        return np.clip(np.rint(scaled), -128, 127)
    return np.clip(scaled, -448, 448).astype(kind).astype(np.float32)
