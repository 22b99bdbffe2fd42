"""The step `qat` of a recipe for OpenVINO: NNCF's post-training quantization of the module, trained from there.

For TensorRT see `quantize_modelopt_qat.py`, which trains in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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

if TYPE_CHECKING:
    from torch import nn

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
        plain = QuantizeNncf("performance", settings.nodes_to_exclude if settings else ())
        return qat_settings(self, plain.settings())

    def __call__(self, model: Path, calibration: Calibration, directory: Path) -> StepResult:
        """Writes ``model.xml`` and ``model.bin`` into `directory`."""
        from .fake_quantize import qat, quantizers_of, to_openvino
        from .quantize_modelopt import modules_of_nodes

        job = self.job
        excluded = job.settings.nodes_to_exclude if job.settings else ()
        module = qat(
            job.module,
            calibration,
            calibration.samples,
            modules_of_nodes(model, match_nodes(model, excluded)),
        )
        count = quantizers_of(module)
        trained = train_quantized(self, module, calibration)
        sample = next(iter(calibration))
        path = directory / "model.xml"
        to_openvino(module, sample, path, [spec.name for spec in job.info.outputs])
        return StepResult(path, count, model_bytes(path), [f"trained for {trained} epochs"])


class QatRoute(Protocol):
    """A quantization route that trains: what `train_quantized` and `qat_settings` read of it."""

    route: str
    job: Job
    step: QatStep
    stages: Stages

    def settings(self) -> dict[str, Any]: ...


def qat_settings(route: QatRoute, plain: dict[str, Any]) -> dict[str, Any]:
    """All that the result depends on: `plain` is that of the post-training route it begins with."""
    return {
        **plain,
        "route": route.route,
        "step": route.step.model_dump(mode="json"),
        "model": route.job.onnx_key,
        "recipe": route.job.recipe.hash,
        "run": route.stages.run_id,  # how many epochs its --time left, and the data's own state
    }


def train_quantized(route: QatRoute, module: nn.Module, calibration: Calibration) -> int:
    """Train a module with fake quantizers in place, as the run's fine-tuning does, at a fifth of its rate.

    Returns:
        The epochs.

    Raises:
        BuildError: ``--time`` left none.
    """
    from .steer_data import finetune_settings, open_finetune_data
    from .steer_train import finetune

    job, step = route.job, route.step
    like = job.recipe.step("finetune") or FinetuneStep()
    own = step.model_dump(include={"epochs", "lr", "temperature", "alpha"})
    tune = like.model_copy(update={**own, "features": False, "hook": None})
    settings, augment = finetune_settings(job, tune)
    rate = step.lr or settings.lr * SHARE_OF_RATE
    # bfloat16 has fewer steps than INT8: the quantizers would round what autocast rounded.
    settings = settings.model_copy(update={"lr": rate, "precision": "fp32"})
    data = open_finetune_data(job, settings, augment)
    identity = {"qat": route.settings(), "samples": calibration.fingerprint}
    trained = finetune(
        module,
        job.teacher or job.module,
        data,
        tune,
        settings,
        step.epochs,
        route.stages.part / f"qat-{hash_json(identity)[:16]}.safetensors",
        identity,
        route.stages,
    )
    if not trained:
        raise BuildError(f"{route.route}: --time left no time to train")
    return trained
