"""From a model to a file on disk, verified at every hop.

``to_onnx`` (torch to ONNX), ``to_openvino`` (ONNX to OpenVINO IR) and ``to_tensorrt`` (ONNX to a TensorRT or
TensorRT-RTX engine) are looked up when first used: importing this package imports no heavy library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .onnx_graph import to_onnx
    from .openvino_ir import to_openvino
    from .tensorrt_export import to_tensorrt

__all__ = ["to_onnx", "to_openvino", "to_tensorrt"]


def __getattr__(name: str) -> Any:
    if name == "to_onnx":
        from .onnx_graph import to_onnx

        return to_onnx
    if name == "to_openvino":
        from .openvino_ir import to_openvino

        return to_openvino
    if name == "to_tensorrt":
        from .tensorrt_export import to_tensorrt

        return to_tensorrt
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
