"""The step `qat` for TensorRT: ModelOpt's post-training quantization of the module, trained from there.

Its ranges stay those of the calibration and gradients pass the rounding straight through, inside the range
(ModelOpt's documentation, "Quantization-aware training"; Jacob et al. 2018, arXiv:1712.05877). What is trained
is exported as every ModelOpt route is (`modelopt_export`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifact.recipe import QatStep
from ..export.model_files import model_bytes
from .calibration import Calibration
from .candidates import MODELOPT_QAT_ROUTE
from .job import Job
from .node_names import match_nodes
from .quantize_modelopt import (
    QuantizeModelopt,
    examples,
    export_like,
    modules_of_nodes,
    quantize_module,
)
from .quantize_qat import qat_settings, train_quantized
from .stages import Stages
from .step import StepResult


@dataclass(frozen=True, eq=False)
class QuantizeModeloptQat:
    """A quantization route like the others, whose call trains.

    Attributes:
        job: whose torch module is quantized; its teacher, or the module itself, is the teacher.
        stages: of the run: the checkpoint lies in its folder, and a killed training goes on from it.

    Raises:
        MissingPart: modelopt is not installed (from the constructor, too).
    """

    job: Job
    step: QatStep
    stages: Stages

    route = MODELOPT_QAT_ROUTE
    precision = "int8"
    runtimes = QuantizeModelopt.runtimes
    calibrates = True

    def __post_init__(self) -> None:
        self._plain()

    def _plain(self) -> QuantizeModelopt:
        settings = self.job.settings
        excluded = settings.nodes_to_exclude if settings else ()
        return QuantizeModelopt(self.job.module, "max", excluded)

    def settings(self) -> dict[str, Any]:
        return qat_settings(self, self._plain().settings())

    def __call__(self, model: Path, calibration: Calibration, directory: Path) -> StepResult:
        """Writes ``model.int8.onnx`` with the outputs' names of `model`."""
        excluded = modules_of_nodes(model, match_nodes(model, self._plain().nodes_to_exclude))
        ready, notes = quantize_module(self.job.module, calibration, "max", excluded)
        trained = train_quantized(self, ready, calibration)
        path = directory / "model.int8.onnx"
        done = export_like(model, ready, examples(calibration), path)
        notes = [*notes, *done.notes, f"trained for {trained} epochs"]
        return StepResult(path, done.quantizers, model_bytes(path), notes)
