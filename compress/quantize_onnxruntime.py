"""INT8 by ONNX Runtime's static quantization: Q/DQ, u8 activations, s8 per-channel weights.

Documentation: ONNX Runtime "Quantize ONNX Models". The result runs in ONNX Runtime and OpenVINO.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ..artifact.onnx_file import external_files
from ..errors import BuildError, MissingPart
from ..export.model_files import model_bytes
from .calibration import Calibration
from .node_names import match_nodes
from .step import StepResult

# Samples whose activations are held at once: the calibrators keep every intermediate tensor until
# their ranges are merged, so this bounds memory whatever the number of samples.
_CHUNK = 10
# The first opset whose DequantizeLinear has an `axis`, which per-channel weights need (ONNX,
# Operators.md); networks of older ones are converted.
_OPSET = 13
# The first release that quantizes from stored ranges (`calibration_cache_path`), which is what keeps
# memory flat; running engines takes an older one too.
_OLDEST = (1, 27)
# Of a tensor's histogram: what ONNX Runtime begins with, and what its entropy search is left to do: about
# 15 s a tensor, four times that for twice as many.
FIRST_BINS, MOST_BINS = 128, 8192


class QuantizeOnnxRuntime:
    """ONNX Runtime static quantization.

    Args:
        method: how activation ranges are found: minmax, percentile (99.999 %) or entropy.
        nodes_to_exclude: regular expressions over ONNX node names that stay in float.
        reduce_range: 7-bit weights, against saturation of u8s8 on x86 without VNNI.

    Raises:
        MissingPart: onnxruntime is not installed or too old.
    """

    runtimes: tuple[str, ...] = ("onnxruntime", "openvino")
    calibrates = True
    _name = "onnxruntime"

    def __init__(
        self,
        method: Literal["minmax", "percentile", "entropy"] = "minmax",
        nodes_to_exclude: tuple[str, ...] = (),
        reduce_range: bool = False,
    ) -> None:
        try:
            self._versions = {name: version(name) for name in ("onnxruntime", "onnx")}
        except PackageNotFoundError as e:
            raise MissingPart(
                f"{e.name} is not installed: pip install 'edgeml-toolchain[compress]'"
            ) from e
        if tuple(map(int, self._versions["onnxruntime"].split(".")[:2])) < _OLDEST:
            raise MissingPart(
                f"onnxruntime {self._versions['onnxruntime']} is installed, quantizing by it needs "
                f"{'.'.join(map(str, _OLDEST))} (from Python 3.11 on): pip install -U onnxruntime"
            )
        self.method = method
        self.nodes_to_exclude = nodes_to_exclude
        self.reduce_range = reduce_range
        self.route = f"{self._name} {method}"

    def settings(self) -> dict[str, Any]:
        return {
            "route": self.route,
            "nodes_to_exclude": list(self.nodes_to_exclude),
            "reduce_range": self.reduce_range,
            "versions": self._versions,
        }

    def __call__(self, model: Path, calibration: Calibration, directory: Path) -> StepResult:
        """Writes ``model.int8.onnx`` into `directory`; the batch axis stays dynamic."""
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        path = directory / "model.int8.onnx"
        with tempfile.TemporaryDirectory(dir=directory) as scratch, quiet():
            # Fuses Conv + BatchNormalization first, so that scales are those of the fused weights.
            prepared = Path(scratch, "prepared.onnx")
            large = model_bytes(model) > 2**31 - 2**20
            quant_pre_process(
                str(readable(model, Path(scratch, "readable.onnx"), large)),
                str(prepared),
                skip_symbolic_shape=True,
                save_as_external_data=large,
            )
            ranges = Path(scratch, "ranges.json")
            method = self._calibrate(prepared, calibration, ranges, scratch, large)
            quantize_static(
                str(prepared),
                str(path),
                calibration_cache_path=ranges,
                calibrate_method=method,
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                weight_type=QuantType.QInt8,
                **self._form(),
                # After the fusions of quant_pre_process some names are gone; those left still count.
                nodes_to_exclude=match_nodes(model, self.nodes_to_exclude) or None,
                use_external_data_format=large,
            )
        graph = onnx.load(str(path), load_external_data=False).graph
        quantizers = sum(node.op_type == "QuantizeLinear" for node in graph.node)
        return StepResult(path, quantizers, model_bytes(path))

    def _operators(self) -> list[str]:
        """The operators whose tensors are calibrated."""
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

        return sorted(set(QLinearOpsRegistry) | set(QDQRegistry))

    def _form(self) -> dict[str, Any]:
        """What `quantize_static` is told besides."""
        from onnxruntime.quantization import QuantType

        return {"reduce_range": self.reduce_range, "activation_type": QuantType.QUInt8}

    def _calibrate(
        self, model: Path, calibration: Calibration, ranges: Path, scratch: str, large: bool
    ) -> Any:
        """Find the activations' ranges chunk by chunk and store them where `quantize_static` looks.

        Returns:
            The library's own word for the method.
        """
        from onnxruntime.quantization.calibrate import (
            CalibrationMethod,
            create_calibrator,
            save_tensors_data,
        )

        method = {
            "minmax": CalibrationMethod.MinMax,
            "percentile": CalibrationMethod.Percentile,
            "entropy": CalibrationMethod.Entropy,
        }[self.method]
        calibrator = create_calibrator(
            model,
            self._operators(),
            augmented_model_path=str(Path(scratch, "augmented.onnx")),
            calibrate_method=method,
            use_external_data_format=large,
        )
        samples = iter(calibration)
        while chunk := list(islice(samples, _CHUNK)):
            calibrator.collect_data(_Reader(chunk))
        if self.method == "entropy":
            _refuse_endless(calibrator.collector.histogram_dict)
        save_tensors_data(calibrator.compute_data(), ranges)
        return method


def _refuse_endless(histograms: Mapping[str, Any]) -> None:
    """ONNX Runtime widens a histogram by bins of the first samples' size, and its search takes the square
    of their number in plain Python.

    Raises:
        BuildError: a tensor's later samples are so much larger than its first ones that it would not end.
    """
    name, bins = max(((n, len(h[0])) for n, h in histograms.items()), key=lambda found: found[1])
    if bins > MOST_BINS:
        raise BuildError(
            f"entropy calibration: {name} has outliers (its range grew {bins // FIRST_BINS} × after the first "
            "samples), for which ONNX Runtime's search does not end; percentile cuts them"
        )


def readable(model: Path, copy: Path, large: bool) -> Path:
    """`model` itself or, where its opset is below `_OPSET` or its weights lie in files of their own,
    which `quant_pre_process` looks for in its own folder, a copy of it in the one file `copy`."""
    import onnx
    import onnx.version_converter

    bare = onnx.load(str(model), load_external_data=False)
    newer = all(o.version >= _OPSET for o in bare.opset_import if o.domain in ("", "ai.onnx"))
    if newer and (large or not external_files(bare, model)):
        return model
    whole = onnx.load(str(model))
    onnx.save(whole if newer else onnx.version_converter.convert_version(whole, _OPSET), str(copy))
    return copy


class _Reader:
    """The calibrators' own interface: `get_next` gives samples until None."""

    def __init__(self, samples: list[dict[str, Any]]) -> None:
        self._samples = iter(samples)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._samples, None)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's prints and root-logger hints out of our table; its errors still raise."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
