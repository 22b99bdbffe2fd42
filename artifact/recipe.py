"""The ordered list of compression steps with their settings, and everything else a run depends on.

YAML on disk, one frozen model in memory. `edgeml compress` builds one from its flags and saves it
with the result, so that ``edgeml compress --recipe recipe.yaml -o out`` repeats the run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..errors import InputError, nearest, one_line
from .content_hash import hash_json

RECIPE_VERSION = 1
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
RUNTIMES = ("openvino", "onnxruntime", "torch")
ROUTES = ("nncf", "onnxruntime", "onnxruntime dynamic")
CALIBRATION_METHODS = ("auto", "minmax", "percentile", "entropy")
TARGETS = ("cpu",)


def _known(word: str, known: tuple[str, ...], what: str) -> str:
    if word not in known:
        raise InputError(f"unknown {what} {word!r}, {nearest(word, known)}")
    return word


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
        return None if routes is None else tuple(_known(r, ROUTES, "route") for r in routes)

    @field_validator("calibration_method")
    @classmethod
    def _method(cls, method: str) -> str:
        return _known(method, CALIBRATION_METHODS, "calibration method")


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
        max_drop_points: the accuracy budget; None sets none.
        batch, threads, objective: how engines are compiled and timed.
        time_s: bound of the search; candidates not reached by then are rows that say so.
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
    steps: tuple[QuantizeStep, ...] = ()
    precisions: tuple[str, ...] | None = None
    runtimes: tuple[str, ...] | None = None
    target: str = "cpu"
    max_drop_points: float | None = 1.0
    strict: bool = False
    batch: int = Field(default=1, ge=1)
    threads: int | None = Field(default=None, ge=1)
    objective: Literal["latency", "throughput"] = "latency"
    time_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0)

    @field_validator("precisions")
    @classmethod
    def _precisions(cls, words: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if words is None else tuple(_known(w, PRECISIONS, "precision") for w in words)

    @field_validator("runtimes")
    @classmethod
    def _runtimes(cls, words: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if words is None else tuple(_known(w, RUNTIMES, "runtime") for w in words)

    @field_validator("target")
    @classmethod
    def _target(cls, word: str) -> str:
        return _known(word, TARGETS, "target")

    @field_validator("max_drop_points")
    @classmethod
    def _max_drop(cls, points: float | None) -> float | None:
        if points is not None and not 0 <= points < float("inf"):
            raise InputError(
                f"--max-drop {points} is no budget; give points ≥ 0, as in --max-drop 0.5"
            )
        return points

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON; the identity of a run's settings."""
        return hash_json(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def build_recipe(values: dict[str, Any], where: str = "options") -> Recipe:
    """A `Recipe` from plain values, with one clear line for the first wrong one.

    Raises:
        InputError: an unknown key (the nearest is named), a wrong type or range.
    """
    _check_keys(values, where)
    try:
        return Recipe(**values)
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            key = str(first["loc"][-1])
            raise InputError(
                f"{where}: unknown key {place!r}, {nearest(key, QuantizeStep.model_fields)}"
            ) from e
        reason = first["msg"].replace("a valid tuple", "a list")
        raise InputError(f"{where}: {place}: {reason}, got {first['input']!r}") from e


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
