"""INT8 by ONNX Runtime's dynamic quantization: activations get their ranges anew at every inference.

Documentation: ONNX Runtime "Quantize ONNX Models", which recommends it for recurrent networks and
transformers. Nothing else quantizes an LSTM: NNCF and static quantization leave it in float. It
needs no calibration data. The result runs in ONNX Runtime only, whose own operators it holds.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ..export.model_files import model_bytes
from .calibration import Calibration
from .node_names import match_nodes
from .quantize_onnxruntime import QuantizeOnnxRuntime, quiet, readable
from .step import StepResult

# What gains by it. A convolution does not: as ConvInteger it is slower than in float.
_OPERATORS = ["LSTM", "MatMul", "Gather", "Attention", "EmbedLayerNormalization"]
# The operators it writes that compute with ranges of the moment.
_QUANTIZERS = {"DynamicQuantizeLSTM", "DynamicQuantizeLinear", "QAttention"}


class QuantizeDynamic:
    """ONNX Runtime dynamic quantization: 8-bit weights, activations quantized as they come.

    Args:
        nodes_to_exclude: regular expressions over ONNX node names that stay in float.
        reduce_range: 7-bit weights, against saturation of u8s8 on x86 without VNNI.

    Raises:
        MissingPart: onnxruntime is not installed or too old.
    """

    route = "onnxruntime dynamic"
    runtimes = ("onnxruntime",)
    calibrates = False

    def __init__(self, nodes_to_exclude: tuple[str, ...] = (), reduce_range: bool = False) -> None:
        # The same libraries: it refuses a release that is too old.
        self._versions = QuantizeOnnxRuntime().settings()["versions"]
        self.nodes_to_exclude = nodes_to_exclude
        self.reduce_range = reduce_range

    def settings(self) -> dict[str, Any]:
        return {
            "route": self.route,
            "nodes_to_exclude": list(self.nodes_to_exclude),
            "reduce_range": self.reduce_range,
            "versions": self._versions,
        }

    def __call__(self, model: Path, calibration: Calibration, directory: Path) -> StepResult:
        """Writes ``model.int8.onnx`` into `directory`; `calibration` is not read."""
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process

        path = directory / "model.int8.onnx"
        with tempfile.TemporaryDirectory(dir=directory) as scratch, quiet():
            # It folds the constants that the exporter puts before an LSTM's weights: without it the
            # LSTM is passed over (FACTS §8).
            prepared = Path(scratch, "prepared.onnx")
            large = model_bytes(model) > 2**31 - 2**20
            quant_pre_process(
                str(readable(model, Path(scratch, "readable.onnx"), large)),
                str(prepared),
                skip_symbolic_shape=True,
                save_as_external_data=large,
            )
            quantize_dynamic(
                str(prepared),
                str(path),
                op_types_to_quantize=_OPERATORS,
                weight_type=QuantType.QInt8,
                reduce_range=self.reduce_range,
                nodes_to_exclude=match_nodes(model, self.nodes_to_exclude) or None,
                use_external_data_format=large,
            )
        graph = onnx.load(str(path), load_external_data=False).graph
        quantizers = sum(node.op_type in _QUANTIZERS for node in graph.node)
        return StepResult(path, quantizers, model_bytes(path))
