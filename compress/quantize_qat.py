"""The step `qat` of a recipe: NNCF's post-training quantization of the module, trained from there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifact.content_hash import hash_json
from ..artifact.recipe import FinetuneStep, QatStep
from ..errors import BuildError
from ..export.model_files import model_bytes
from .calibration import Calibration
from .candidates import QAT_ROUTE
from .job import Job
from .node_names import match_nodes
from .quantize_nncf import QuantizeNncf
from .stages import Stages
from .step import StepResult

# Of the rate of fine-tuning, which is half of the training's own: a tenth of the training's, for weights
# that are near their goal already. A choice; other shares were not measured.
SHARE_OF_RATE = 0.2


@dataclass(frozen=True, eq=False)
class QuantizeQat:
    """A quantization route like the others, whose call trains.

    Attributes:
        job: whose torch module is quantized; its teacher, or the module itself, is the teacher.
        stages: of the run: the checkpoint lies in its folder, and a killed training goes on from it.
    """

    job: Job
    step: QatStep
    stages: Stages

    route = QAT_ROUTE
    runtimes = ("openvino",)
    calibrates = True

    def settings(self) -> dict[str, Any]:
        settings = self.job.settings
        return {
            **QuantizeNncf("performance", settings.nodes_to_exclude if settings else ()).settings(),
            "route": self.route,
            "step": self.step.model_dump(mode="json"),
            "model": self.job.onnx_key,
            "recipe": self.job.recipe.hash,
            "run": self.stages.run_id,  # how many epochs its --time left, and the data's own state
        }

    def __call__(self, model: Path, calibration: Calibration, directory: Path) -> StepResult:
        """Writes ``model.xml`` and ``model.bin`` into `directory`."""
        from .fake_quantize import qat, quantizers_of, to_openvino
        from .quantize_modelopt import modules_of_nodes
        from .steer_data import finetune_settings, open_finetune_data
        from .steer_train import finetune

        job, step = self.job, self.step
        excluded = job.settings.nodes_to_exclude if job.settings else ()
        module = qat(
            job.module,
            calibration,
            calibration.samples,
            modules_of_nodes(model, match_nodes(model, excluded)),
        )
        count = quantizers_of(module)
        like = job.recipe.step("finetune") or FinetuneStep()
        own = step.model_dump(include={"epochs", "lr", "temperature", "alpha"})
        tune = like.model_copy(update={**own, "features": False, "hook": None})
        settings, augment = finetune_settings(job, tune)
        rate = step.lr or settings.lr * SHARE_OF_RATE
        # bfloat16 has fewer steps than INT8: the quantizers would round what autocast rounded.
        settings = settings.model_copy(update={"lr": rate, "precision": "fp32"})
        data = open_finetune_data(job, settings, augment)
        identity = {"qat": self.settings(), "samples": calibration.fingerprint}
        trained = finetune(
            module,
            job.teacher or job.module,
            data,
            tune,
            settings,
            step.epochs,
            self.stages.part / f"qat-{hash_json(identity)[:16]}.safetensors",
            identity,
            self.stages,
        )
        if not trained:
            raise BuildError(f"{self.route}: --time left no time to train")
        sample = next(iter(calibration))
        path = directory / "model.xml"
        to_openvino(module, sample, path, [spec.name for spec in job.info.outputs])
        return StepResult(path, count, model_bytes(path), [f"trained for {trained} epochs"])
