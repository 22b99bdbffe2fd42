"""The process that runs ModelOpt's ONNX quantizer: ``python -m edgeml.compress.modelopt_onnx_child``.

Reads one JSON object from stdin (see `quantize_modelopt_onnx`), writes one as the last line of stdout. A process of
its own, because ModelOpt 0.47 rewrites ONNX Runtime's quantizer where it stands (operators leave its registries,
methods of its calibrators are replaced), which would change the route ``onnxruntime`` of the same run.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any


def main() -> None:
    order = json.load(sys.stdin)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    result: dict[str, Any] = {"ok": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _quantize(order)
        result["ok"] = True
    except Exception as e:  # whatever the library raises: the reason goes to the parent
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        result["reason"] = f"{type(e).__name__}: {lines[0]}" if lines else type(e).__name__
    print(json.dumps(result))


def _quantize(order: dict[str, Any]) -> None:
    import numpy as np
    from modelopt.onnx.quantization import quantize
    from onnxruntime.quantization import CalibrationDataReader

    class Samples(CalibrationDataReader):
        """One file a sample, read when it is asked for."""

        def __init__(self, folder: Path) -> None:
            self._files = sorted(folder.glob("*.npz"))
            self.rewind()

        def get_next(self) -> dict[str, Any] | None:
            file = next(self._left, None)
            return None if file is None else self._read(file)

        def get_first(self) -> dict[str, Any]:
            return self._read(self._files[0])

        def rewind(self) -> None:
            self._left = iter(self._files)

        @staticmethod
        def _read(file: Path) -> dict[str, Any]:
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}

    quantize(
        order["model"],
        quantize_mode=order["mode"],
        calibration_data_reader=Samples(Path(order["samples"])),
        calibration_method=order["method"],
        calibration_eps=["cpu"],
        calibration_shapes=order["shapes"],
        nodes_to_exclude=order["exclude"],
        high_precision_dtype="fp32",
        use_external_data_format=order["external"],
        output_path=order["out"],
        log_level="ERROR",
        opset=order["opset"],
    )


if __name__ == "__main__":
    main()
