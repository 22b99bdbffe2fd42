"""ONNX to OpenVINO IR: an ``.xml`` and its ``.bin``."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..artifact.atomic_file import PREFIX, disk_errors, sync_directory, sync_tree
from ..errors import BuildError, one_line
from ..runtime.openvino_engine import import_openvino
from .onnx_check import inspect_onnx


def to_openvino(
    onnx_path: Path, out_dir: Path, name: str = "model", compress_to_fp16: bool = False
) -> Path:
    """Convert an ONNX file by ``openvino.convert_model`` and save it as ``<out_dir>/<name>.xml``.

    ``convert_model`` and not ``Core.read_model``: of the latter's graphs NNCF leaves depthwise
    layers in float, which made EfficientNet-Lite0 in INT8 1.5 times slower (measured).

    Args:
        onnx_path: a checked ONNX file (`inspect_onnx`).
        out_dir: made when missing.
        name: stem of the two files.
        compress_to_fp16: store weights in 16 bits; execution stays what the engine's options say.

    Returns:
        The path of the ``.xml``. The ``.bin`` is moved into place before it.

    Raises:
        ModelError: the ONNX file cannot be used.
        MissingPart: OpenVINO is not installed.
        BuildError: OpenVINO has no form for one of its operators.
    """
    ov = import_openvino()
    onnx_path, out_dir = Path(onnx_path), Path(out_dir)
    try:
        model = ov.convert_model(str(onnx_path), verbose=False)
    except Exception as e:
        inspect_onnx(onnx_path)  # a broken file is the user's to mend, and our line says how
        raise BuildError(f"OpenVINO cannot convert {onnx_path.name}: {one_line(e)}") from e
    with disk_errors(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out_dir, prefix=PREFIX) as folder:
            part = Path(folder) / f"{name}.xml"
            ov.save_model(model, str(part), compress_to_fp16=compress_to_fp16)
            sync_tree(Path(folder))
            part.with_suffix(".bin").replace(out_dir / f"{name}.bin")
            part.replace(out_dir / f"{name}.xml")
        sync_directory(out_dir)
    return out_dir / f"{name}.xml"
