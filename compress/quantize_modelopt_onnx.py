"""INT8 by NVIDIA ModelOpt on the ONNX graph: the route for a network that is there as a file only.

ModelOpt places Q/DQ as TensorRT fuses them (inputs of convolutions and products, residual additions) and finds
activation ranges by entropy (Migacz 2017, "8-bit Inference with TensorRT") or by the largest magnitude.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import BuildError, MissingPart
from ..export.lint_graph import HEAVY, PASSED_THROUGH, LintGraph, label
from ..export.model_files import model_bytes
from ..export.onnx_graph import write_onnx
from .calibration import Calibration
from .modelopt_graph import drop_unused, tensorrt_form
from .node_names import match_nodes
from .quantize_onnxruntime import readable
from .step import StepResult

if TYPE_CHECKING:
    import onnx

# FP16 scales in Q/DQ are of this opset; graphs of older ones are converted by ModelOpt.
OPSET = 19
# What reads int8 in TensorRT besides quantized layers: residual additions, pooling, and what copies.
INT8_BESIDES = ("Add", "AveragePool", "GlobalAveragePool", "MaxPool", "Concat", "Resize")
RECURRENT = ("LSTM", "GRU", "RNN")


class QuantizeModeloptOnnx:
    """ModelOpt's ONNX quantizer on the CPU, symmetric int8, weights per channel.

    Args:
        method: how activation ranges are found: entropy or max.
        nodes_to_exclude: regular expressions over ONNX node names that stay in float.

    Raises:
        MissingPart: modelopt, or what its ONNX part needs, is not installed.
    """

    runtimes: tuple[str, ...] = ("tensorrt", "tensorrt-rtx")
    calibrates = True
    precision = "int8"

    def __init__(
        self,
        method: Literal["entropy", "max"] = "entropy",
        nodes_to_exclude: tuple[str, ...] = (),
    ) -> None:
        packages = ("nvidia-modelopt", "onnx", "onnxruntime")
        try:
            self._versions = {name: version(name) for name in packages}
        except PackageNotFoundError as e:
            raise MissingPart(
                f"{e.name} is not installed: pip install 'edgeml-toolchain[modelopt]', or take the route "
                "tensorrt-form, which needs no NVIDIA package"
            ) from e
        # The extra of ModelOpt's own that brings these wants CUDA builds of two of them.
        needs = ("onnx_graphsurgeon", "onnxslim", "polygraphy", "onnxconverter_common", "lief")
        missing = [name for name in needs if find_spec(name) is None]
        if missing:
            raise MissingPart(
                f"ModelOpt's ONNX part needs {', '.join(missing)}: pip install --no-deps "
                f"{' '.join(name.replace('_', '-') for name in missing)}"
            )
        self.method, self.nodes_to_exclude = method, nodes_to_exclude
        self.route = f"modelopt-onnx {method}"

    def settings(self) -> dict[str, Any]:
        return {
            "route": self.route,
            "nodes_to_exclude": list(self.nodes_to_exclude),
            "versions": self._versions,
        }

    def __call__(self, model: Path, calibration: Calibration, directory: Path) -> StepResult:
        """Writes ``model.int8.onnx`` into `directory`; the batch axis stays dynamic."""
        import onnx

        from ..artifact.onnx_file import nodes, read_onnx

        path = directory / "model.int8.onnx"
        bare = read_onnx(model)
        recurrent = sorted({n.name for n in nodes(bare) if n.op_type in RECURRENT})
        opset = next(o.version for o in bare.opset_import if o.domain in ("", "ai.onnx"))
        excluded = match_nodes(model, self.nodes_to_exclude) + attention_products(model)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            large = model_bytes(model) > 2**31 - 2**20
            # ModelOpt writes beside its input; a copy keeps the user's folder as it is.
            copy = Path(scratch, "float.onnx")
            if large:
                readable(model, copy, large)
                copy = model
            else:
                onnx.save(onnx.load(str(model)), str(copy))
            samples = Path(scratch, "samples")
            samples.mkdir()
            shapes = {}
            for i, sample in enumerate(calibration):
                np.savez(samples / f"{i:06}.npz", **sample)
                shapes = {name: array.shape for name, array in sample.items()}
            order = {
                "model": str(copy),
                "mode": self.precision,
                "method": self.method,
                "samples": str(samples),
                "shapes": ",".join(f"{n}:{'x'.join(map(str, s))}" for n, s in shapes.items()),
                "exclude": [f"^{re.escape(name)}$" for name in excluded],
                "external": large,
                "opset": max(opset, OPSET),
                "out": str(Path(scratch, "quantized.onnx")),
            }
            _run(order)
            proto, quantizers = tensorrt_form(Path(order["out"]))
            quantizers -= drop_idle_pairs(proto, path)
            write_onnx(proto, path)
        notes = [f"{name} stays in float: ModelOpt quantizes no recurrence" for name in recurrent]
        return StepResult(path, quantizers, model_bytes(path), notes)


def attention_products(model: Path) -> list[str]:
    """Names of the products of two computed tensors: TensorRT has one fused kernel for attention, in float, and
    ModelOpt's INT8 there lost 80 points of a ViT-B (onnxsim's table, FACTS §10)."""
    graph = LintGraph.read(model)

    def stored(tensor: str) -> bool:
        while (maker := graph.producers.get(tensor)) and maker.op_type in ("Transpose", "Identity"):
            tensor = maker.input[0]
        return graph.is_constant(tensor)

    return [
        label(node)
        for node in graph.nodes
        if node.op_type == "MatMul" and not any(stored(name) for name in node.input)
    ]


def drop_idle_pairs(model: onnx.ModelProto, path: Path) -> int:
    """Take Q/DQ off activations that only float layers read, in place; how many there were.

    ModelOpt quantizes a pooling's output although the product behind it stays in float (fewer than 16 outputs),
    and what a gate multiplies (SiLU in Llama): rounding, and a conversion, for nothing.
    """
    graph = LintGraph(model, path)

    def idle(tensor: str) -> bool:
        readers = graph.consumers(tensor)
        if not readers or tensor in graph.outputs:
            return False
        return all(
            all(idle(out) for out in reader.output)
            if reader.op_type in PASSED_THROUGH
            else reader.op_type not in INT8_BESIDES
            and not (reader.op_type in HEAVY and graph.dequantizer(reader.input[1]) is not None)
            for reader in readers
        )

    dropped = 0
    for dq in graph.nodes:
        quantizer = graph.producers.get(dq.input[0]) if dq.op_type == "DequantizeLinear" else None
        if quantizer is None or not idle(dq.output[0]):
            continue
        for reader in graph.consumers(dq.output[0]):
            for i, name in enumerate(reader.input):
                if name == dq.output[0]:
                    reader.input[i] = quantizer.input[0]
        model.graph.node.remove(dq)
        if len(graph.consumers(dq.input[0])) == 1:
            model.graph.node.remove(quantizer)
        dropped += 1
    drop_unused(model)
    return dropped


def _run(order: dict[str, Any]) -> None:
    """Run the child; its reason becomes ours.

    Raises:
        BuildError: ModelOpt failed, or its process ended without an answer.
    """
    done = subprocess.run(
        [sys.executable, "-m", "edgeml.compress.modelopt_onnx_child"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise BuildError(
            f"ModelOpt's process ended with {done.returncode}: {last[0] if last else 'no word'}"
        )
    answer = json.loads(lines[-1])
    if not answer["ok"]:
        raise BuildError(f"ModelOpt's ONNX quantizer: {answer['reason']}")
