"""The ordered list of compression steps with their settings, and everything else a run depends on.

YAML on disk, one frozen model in memory. `edgeml compress` builds one from its flags and saves it
with the result, so that ``edgeml compress --recipe recipe.yaml -o out`` repeats the run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..errors import InputError, nearest, one_line
from .budget_limit import PARTS, Limit, parse_limit
from .content_hash import hash_json
from .recipe_steps import (
    CALIBRATION_METHODS,
    ROUTES,
    STEPS,
    FinetuneStep,
    PruneStep,
    QatStep,
    QuantizeStep,
    Step,
    known_word,
    step_fault,
)
from .target import find_target

__all__ = [
    "CALIBRATION_METHODS",
    "ROUTES",
    "FinetuneStep",
    "PruneStep",
    "QatStep",
    "QuantizeStep",
    "Recipe",
    "build_recipe",
    "read_recipe",
]

RECIPE_VERSION = 1
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8")
RUNTIMES = ("openvino", "onnxruntime", "torch")


class Recipe(BaseModel):
    """Everything a `compress` run depends on, besides the content of the files it names.

    Attributes:
        model, weights: what is compressed: ``net.py:build``, ``model.onnx``, a bundle …
        data, calibration_data, task: where samples come from; `classes` a file of class names in
            the order of the network's outputs.
        preprocess: how an image becomes the network's input; None: taken from the model's bundle,
            else assumed and told.
        precisions: what may ship; None lets any.
        runtimes: which runtimes are tried; None tries each installed one.
        engine: the id of the one candidate that may ship, as rows name it; None lets any. A sweep's
            recipes have it; the others are still measured where limits are percentages of one.
        target: where engines will run: a built-in name of `artifact.target`, or a YAML file.
        tensorrt: the version that graphs are written for; None takes the target's usual one.
        max_drop_points: the accuracy budget; None sets none.
        latency, latency_p99, max_size, max_energy: limits as `artifact.budget_limit` reads them:
            ``60%`` of what plain INT8 needs, or ``5ms``, ``400KB``, ``12mJ``; None sets none.
        batch, threads, objective: how engines are compiled and timed.
        groups: ``FILE.csv:COLUMN`` whose groups are judged on test; None: the classes are the groups.
        max_drop_worst_points: what the worst group may lose; None sets no limit.
        samples: flipped samples themselves are held by the result (they may be private).
        drift: test samples whose explanations are compared with the reference's; None: none.
        time_s: bound of the search; candidates not reached by then are rows that say so.
        table_time_s: bound of measuring a device's latency table; None takes the usual one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    version: int = RECIPE_VERSION
    model: str
    weights: str | None = None
    data: str | None = None
    calibration_data: str | None = None
    task: str | None = None
    classes: str | None = None
    preprocess: dict[str, Any] | None = None
    fold_preprocess: bool = False
    on_bad_sample: Literal["error", "skip"] = "error"
    steps: tuple[Step, ...] = ()
    precisions: tuple[str, ...] | None = None
    runtimes: tuple[str, ...] | None = None
    engine: str | None = None
    target: str = "cpu"
    tensorrt: str | None = None
    max_drop_points: float | None = 1.0
    latency: str | None = None
    latency_p99: str | None = None
    max_size: str | None = None
    max_energy: str | None = None
    strict: bool = False
    groups: str | None = None
    max_drop_worst_points: float | None = None
    samples: bool = False
    drift: int | None = Field(default=None, ge=1, le=64)
    batch: int = Field(default=1, ge=1)
    threads: int | None = Field(default=None, ge=1)
    objective: Literal["latency", "throughput"] = "latency"
    time_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    table_time_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0)

    @field_validator("precisions")
    @classmethod
    def _precisions(cls, words: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return (
            None if words is None else tuple(known_word(w, PRECISIONS, "precision") for w in words)
        )

    @field_validator("runtimes")
    @classmethod
    def _runtimes(cls, words: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if words is None else tuple(known_word(w, RUNTIMES, "runtime") for w in words)

    @field_validator("target")
    @classmethod
    def _target(cls, word: str) -> str:
        find_target(word)
        return word

    @model_validator(mode="after")
    def _fits_target(self) -> Recipe:
        target = find_target(self.target)
        wanted = target.by_tensorrt or self.tensorrt is not None
        version = target.tensorrt_version(self.tensorrt) if wanted else None
        for precision in self.precisions or ():
            target.require(precision, version)
        return self

    @field_validator("max_drop_points", "max_drop_worst_points")
    @classmethod
    def _max_drop(cls, points: float | None, info: ValidationInfo) -> float | None:
        if points is not None and not 0 <= points < float("inf"):
            flag = "--max-drop" if info.field_name == "max_drop_points" else "--max-drop-worst"
            raise ValueError(f"{flag} {points} is no budget; give points ≥ 0, as in {flag} 0.5")
        return points

    @field_validator(*PARTS, mode="before")
    @classmethod
    def _limit(cls, text: Any, info: ValidationInfo) -> str | None:
        return None if text is None else parse_limit(str(info.field_name), text).text

    def limit(self, part: str) -> Limit | None:
        """The limit of one of `artifact.budget_limit.PARTS`."""
        text = getattr(self, part)
        return None if text is None else parse_limit(part, text)

    def step(self, name: str) -> Any:
        """The settings of a step of that name, or None."""
        return next((step for step in self.steps if step.step == name), None)

    @property
    def quantize_step(self) -> QuantizeStep | None:
        return self.step("quantize")

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON; the identity of a run's settings."""
        return hash_json(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def build_recipe(
    values: dict[str, Any], where: str = "options", file: Path | None = None
) -> Recipe:
    """A `Recipe` from plain values, with one clear line for the first wrong one.

    Args:
        file: the recipe file that `values` came from; the line at fault is named.

    Raises:
        InputError: an unknown key (the nearest is named), a wrong type or range, an unknown step,
            two steps in an impossible order.
    """
    _check_keys(values, where)
    if fault := step_fault(values.get("steps", ())):
        raise InputError(f"{where}{_line(file, fault[0], values)}: {fault[1]}")
    # A mapping without the word is a quantize step, as it was when there was no other.
    steps = [{"step": "quantize", **step} for step in values.get("steps", ())]
    try:
        return Recipe(**{**values, "steps": steps})
    except ValidationError as e:
        first = e.errors()[0]
        # Of a step's fields pydantic names the kind of step too: steps.0.prune.rounds.
        loc = tuple(part for i, part in enumerate(first["loc"]) if not (i == 2 and part in STEPS))
        at = f"{where}{_line(file, loc, values)}"
        place = ".".join(str(part) for part in loc)
        if first["type"] == "extra_forbidden":
            kind = STEPS[steps[loc[1]]["step"]] if loc[0] == "steps" else QuantizeStep
            raise InputError(
                f"{at}: unknown key {place!r}, {nearest(str(loc[-1]), kind.model_fields)}"
            ) from e
        if first["type"] == "value_error":
            raise InputError(f"{at}: {first['ctx']['error']}") from e
        reason = first["msg"].replace("a valid tuple", "a list")
        raise InputError(f"{at}: {place}: {reason}, got {first['input']!r}") from e


def _line(file: Path | None, loc: tuple[str | int, ...], values: dict[str, Any]) -> str:
    """`` line 7``: where `loc` stands in the file; empty where a flag gave the value."""
    if file is None or file.suffix == ".json":
        return ""
    try:
        text = file.read_text(encoding="utf-8")
        node, there, used = yaml.compose(text), yaml.safe_load(text), values
        line = node.start_mark.line
        for part in loc:
            if isinstance(part, str):
                pairs = {key.value: (key, value) for key, value in node.value}
                if part not in pairs:
                    break  # a key that is missing: the line of what lacks it
                line, node = pairs[part][0].start_mark.line, pairs[part][1]
            else:
                node = node.value[part]
                line = node.start_mark.line
            there, used = there[part], used[part]
        return f" line {line + 1}" if there == used else ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        return ""


def read_recipe(path: Path) -> dict[str, Any]:
    """The values of a recipe file, not yet checked (flags may replace some of them).

    Raises:
        InputError: the file is missing, is no YAML, holds no mapping, or an unknown key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(
            f"recipe {path} cannot be read: {getattr(e, 'strerror', None) or e}"
        ) from e
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # ValueError: 2026-99-99 is no date
        form = "JSON" if path.suffix == ".json" else "YAML"
        mark = getattr(e, "problem_mark", None)
        at = f" at line {mark.line + 1}" if mark else ""
        reason = one_line(Exception(getattr(e, "problem", None) or e))
        raise InputError(f"recipe {path} is no valid {form}{at}: {reason}") from e
    if not isinstance(values, dict):
        raise InputError(f"recipe {path} holds no mapping; see the recipe.yaml of any bundle")
    _check_keys(values, f"recipe {path}")
    return values


def _check_keys(values: dict[str, Any], where: str) -> None:
    unknown = sorted(str(key) for key in values if key not in Recipe.model_fields)
    if unknown:
        raise InputError(
            f"{where}: unknown key {unknown[0]!r}, {nearest(unknown[0], Recipe.model_fields)}"
        )
    if values.get("version", RECIPE_VERSION) != RECIPE_VERSION:
        raise InputError(
            f"{where}: recipe version {values['version']!r} is not {RECIPE_VERSION}; upgrade edgeml"
        )
