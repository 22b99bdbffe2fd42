"""`edgeml.compress.quantize`: one route, one file in, one file out, for a user's own script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..artifact.content_hash import hash_file
from ..artifact.preprocess import ImagePreprocess
from ..errors import InputError, nearest
from ..export.model_files import model_files
from ..export.onnx_check import inspect_onnx
from ..train.open_task import open_data, open_user_task
from .calibration import Calibration
from .candidates import ROUTES
from .step import QuantizationStep, apply


def quantize(
    model: str | Path,
    directory: str | Path,
    *,
    data: str | None = None,
    task: str | None = None,
    preprocess: dict[str, Any] | None = None,
    route: str = "nncf performance",
    samples: int = 300,
    nodes_to_exclude: tuple[str, ...] = (),
) -> dict[str, str]:
    """Quantize an ONNX file to INT8 by one route.

    Args:
        model: the float ONNX file.
        directory: made if need be; gets ``model.xml`` and ``.bin``, or ``model.int8.onnx``.
        data: calibration source, all of which may be read: ``imagefolder:DIR``, ``images:DIR`` …;
            ``onnxruntime dynamic`` needs none.
        task: ``file.py:Name`` instead; its train split calibrates.
        preprocess: fields of `artifact.preprocess.ImagePreprocess`.
        route: see `candidates.ROUTES`.
        samples: how many calibration samples are read at most.

    Returns:
        File name → sha256 of what was written; the file to load comes first.

    Raises:
        InputError: model, data or route cannot be used.
        BuildError: the library failed, or quantized nothing.
    """
    # A family's name alone is its usual method.
    word = next((w for w in ROUTES if route == w or w.startswith(f"{route} ")), None)
    if word is None:
        raise InputError(f"unknown route {route!r}, {nearest(route, ROUTES)}")
    model, directory = Path(model), Path(directory)
    info = inspect_onnx(model)
    step: QuantizationStep = ROUTES[word](nodes_to_exclude)
    if not step.calibrates:
        calibration = Calibration(lambda: iter(()), 0)
    elif task is not None:
        opened = open_user_task(task, info.inputs)
        calibration = Calibration(opened.calibration, samples)
    elif data is not None:
        declared = ImagePreprocess.from_values(preprocess) if preprocess is not None else None
        # The data only calibrates here, so that all of it is calibration data.
        opened = open_data(data, info.inputs, calibration_data=data, preprocess=declared)
        calibration = Calibration(opened.calibration, samples)
    else:
        raise InputError("no calibration data: give data or task")
    directory.mkdir(parents=True, exist_ok=True)
    result = apply(step, model, calibration, directory)
    return {file.name: hash_file(file) for file in model_files(result.path)}
