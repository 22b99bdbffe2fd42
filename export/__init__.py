"""From a model to a file on disk, verified at every hop.

``to_onnx`` (torch to ONNX) and ``to_openvino`` (ONNX to OpenVINO IR) are looked up when first used:
importing this package imports no heavy library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .onnx_graph import to_onnx
    from .openvino_ir import to_openvino

__all__ = ["to_onnx", "to_openvino"]


def __getattr__(name: str) -> Any:
    if name == "to_onnx":
        from .onnx_graph import to_onnx

        return to_onnx
    if name == "to_openvino":
        from .openvino_ir import to_openvino

        return to_openvino
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
