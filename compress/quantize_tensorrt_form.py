"""INT8 as TensorRT reads it, without an NVIDIA package: symmetric Q/DQ by ONNX Runtime's quantizer.

Only the *inputs* of convolutions and products are quantized. With Q/DQ on their outputs, before the
activation, TensorRT fuses neither, and EfficientNet-Lite0 lost 6.2 points instead of 0.2 (measured on 1,300
images, minmax). Biases stay in float, zero points are zero. The quantizer hands a quantized tensor to all its
readers, so that a residual Add reads the dequantized shortcut, as TensorRT fuses it (NVIDIA TensorRT guide,
Working with quantized types).
"""

from __future__ import annotations

from typing import Any

from .quantize_onnxruntime import QuantizeOnnxRuntime

# What INT8 kernels of TensorRT multiply; everything else runs in the graph's float type.
OPERATORS = ["Conv", "Gemm", "MatMul"]


class QuantizeTensorrtForm(QuantizeOnnxRuntime):
    """Symmetric int8, weights per channel, activations per tensor.

    Args:
        method: how activation ranges are found: minmax, percentile (99.999 %) or entropy.
        nodes_to_exclude: regular expressions over ONNX node names that stay in float.
        reduce_range: has no effect here: TensorRT's int8 kernels do not saturate.

    Raises:
        MissingPart: onnxruntime is not installed or too old.
    """

    runtimes = ("tensorrt", "tensorrt-rtx")
    _name = "tensorrt-form"

    def _operators(self) -> list[str]:
        return OPERATORS

    def _form(self) -> dict[str, Any]:
        from onnxruntime.quantization import QuantType

        return {
            "activation_type": QuantType.QInt8,
            "op_types_to_quantize": OPERATORS,
            "extra_options": {
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": OPERATORS,
            },
        }
