"""The steps a recipe may hold, in the order they may stand: prune, finetune, quantize, qat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..errors import nearest

ROUTES = ("nncf", "onnxruntime", "onnxruntime dynamic", "tensorrt-form", "modelopt")
CALIBRATION_METHODS = ("auto", "minmax", "percentile", "entropy")
KINDS = ("channels", "heads", "hidden", "rnn_hidden", "block")
IMPORTANCES = ("taylor", "magnitude", "bn_scale")


def known_word(word: str, known: Sequence[str], what: str) -> str:
    """`word`, where it is known.

    Raises:
        ValueError: it is not; the nearest is named.
    """
    if word not in known:
        raise ValueError(f"unknown {what} {word!r}, {nearest(word, known)}")
    return word


class PruneStep(BaseModel):
    """Structured pruning to the recipe's budget, by a latency table measured on the target.

    Attributes:
        importance: how a channel's worth is judged; blocks by the loss change when one is skipped.
        kinds: what may be removed.
        rounds: prune a part, fine-tune a little, measure the engine, correct the table, go on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Literal["prune"] = "prune"
    importance: Literal["taylor", "magnitude", "bn_scale"] = "taylor"
    kinds: tuple[str, ...] = KINDS
    rounds: int = Field(default=3, ge=1, le=20)

    @field_validator("kinds")
    @classmethod
    def _kinds(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if not kinds:
            raise ValueError(f"no kind may be removed; known: {', '.join(KINDS)}")
        return tuple(known_word(kind, KINDS, "kind") for kind in kinds)


class FinetuneStep(BaseModel):
    """Fine-tuning with distillation: the original network is the teacher.

    Attributes:
        epochs: bound of all fine-tuning of the run, that between pruning rounds included.
        batch, optimizer, lr, augment: None takes what the model was trained with (its bundle says
            so), the rate at half; else Adam at 5e-4, batch 128, no augmentation.
        temperature: of the logits' softmax (Hinton et al. 2015, section 2).
        alpha: share of the teacher's part in the loss; 1 needs no labels.
        features: match the blocks' outputs too.
        sparse_2to4: two of every four weights are zero and stay so while it is trained; refused where
            the target gains nothing, unless it is ``forced``.
        hook: ``file.py:fn``, ``fn(model, teacher, out, deadline_s) -> model``, in place of our loop.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Literal["finetune"] = "finetune"
    epochs: int = Field(default=10, ge=0)
    batch: int | None = Field(default=None, ge=1)
    optimizer: Literal["sgd", "adam", "adamw"] | None = None
    lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    augment: tuple[Literal["flip", "crop"], ...] | None = None
    temperature: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    alpha: float = Field(default=0.9, ge=0, le=1)
    features: bool = False
    sparse_2to4: bool | Literal["forced"] = False
    hook: str | None = None


class QuantizeStep(BaseModel):
    """Post-training quantization to INT8.

    Attributes:
        routes: libraries to quantize with; None tries each installed one. ``onnxruntime`` holds the
            dynamic route where the network has an LSTM, ``onnxruntime dynamic`` is that one alone.
        calibration_samples: how many samples the activations' ranges are read from.
        calibration_method: minmax, percentile, entropy; auto takes minmax and goes on to the
            others only where it misses the budget.
        nodes_to_exclude: regular expressions over ONNX node names; matches stay in float.
        reduce_range: 7-bit weights, for ONNX Runtime's u8s8 kernels on x86 without VNNI.
        random_calibration: calibrate on noise when there is no data; marks the result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Literal["quantize"] = "quantize"
    precision: Literal["int8"] = "int8"
    routes: tuple[str, ...] | None = None
    calibration_samples: int = Field(default=300, ge=1)
    calibration_method: str = "auto"
    nodes_to_exclude: tuple[str, ...] = ()
    reduce_range: bool = False
    random_calibration: bool = False

    @field_validator("routes")
    @classmethod
    def _routes(cls, routes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if routes is None else tuple(known_word(r, ROUTES, "route") for r in routes)

    @field_validator("calibration_method")
    @classmethod
    def _method(cls, method: str) -> str:
        return known_word(method, CALIBRATION_METHODS, "calibration method")


class QatStep(BaseModel):
    """Quantization-aware training from the quantized network, with the original as the teacher.

    Attributes:
        when: ``auto`` trains only where quantization alone misses the budget.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Literal["qat"] = "qat"
    when: Literal["auto", "always"] = "auto"
    epochs: int = Field(default=2, ge=1)
    lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    temperature: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    alpha: float = Field(default=0.9, ge=0, le=1)


Step = Annotated[PruneStep | FinetuneStep | QuantizeStep | QatStep, Field(discriminator="step")]
STEPS = {"prune": PruneStep, "finetune": FinetuneStep, "quantize": QuantizeStep, "qat": QatStep}
_ORDER = tuple(STEPS)


def step_fault(steps: Any) -> tuple[tuple[str | int, ...], str] | None:
    """What is wrong with a list of steps as a whole.

    Returns:
        The place of the first fault (keys and indices) and the line that says it; None: nothing.

    >>> step_fault([{"step": "quantize"}, {"step": "prune"}])[1]
    'prune after quantize is impossible; the order is prune, finetune, quantize, qat'
    """
    if not isinstance(steps, (list, tuple)):
        return ("steps",), "steps: give a list of mappings, as in [{step: quantize}]"
    before: list[str] = []
    for index, step in enumerate(steps):
        place = ("steps", index)
        if not isinstance(step, dict):
            return place, f"steps.{index}: give a mapping, as in {{step: quantize}}, got {step!r}"
        name = step.get("step", "quantize")
        if not isinstance(name, str) or name not in STEPS:
            return (*place, "step"), f"unknown step {name!r}, {nearest(str(name), STEPS)}"
        if name in before:
            return place, f"step {name} stands twice; once is enough"
        late = [other for other in before if _ORDER.index(other) > _ORDER.index(name)]
        if late:
            order = ", ".join(_ORDER)
            return place, f"{name} after {late[0]} is impossible; the order is {order}"
        if name == "qat" and "quantize" not in before:
            return place, "qat needs a quantize step before it: it starts from that one's ranges"
        if name == "qat" and any(isinstance(s, dict) and s.get("sparse_2to4") for s in steps):
            return place, "qat does not keep the zeros of sparse_2to4; leave out one of them"
        before.append(name)
    return None
