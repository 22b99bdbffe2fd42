"""From the command line's flat flags to a recipe's values; a flag that was given wins."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from ..train.trained_bundle import run_defaults

# Flags that belong to the quantize step rather than to the recipe itself.
_STEP_FLAGS = {
    "routes": "routes",
    "calibration_samples": "calibration_samples",
    "calibration_method": "calibration_method",
    "nodes_to_exclude": "nodes_to_exclude",
    "reduce_range": "reduce_range",
    "allow_random_calibration": "random_calibration",
}
_RENAMED = {"max_drop": "max_drop_points"}


def recipe_values(base: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Values for `artifact.recipe.build_recipe`.

    Args:
        base: values of a recipe file, or {}.
        flags: as the command line gives them; None or () where not given.

    Raises:
        InputError: no model, or nothing to score on and no permission to calibrate on noise.
    """
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    values = dict(base)
    step: dict[str, Any] = dict((base.get("steps") or [{}])[0])
    for name, value in given.items():
        if name in _STEP_FLAGS:
            step[_STEP_FLAGS[name]] = value
        else:
            values[_RENAMED.get(name, name)] = value
    if "model" not in values:
        raise InputError("no model: give model.onnx, FILE.py:FACTORY, a bundle, or --recipe FILE")
    if not values.get("data") and not values.get("task"):
        # A training's directory knows its data, how an image was prepared, and its classes.
        values = {**run_defaults(values["model"]), **values}
    wants_int8 = "int8" in (values.get("precisions") or ("int8",))
    values["steps"] = [{"step": "quantize", **step}] if wants_int8 else []
    if not values.get("data") and not values.get("task"):
        if not step.get("random_calibration"):
            raise InputError(
                "no data: --data SOURCE or --task FILE.py:NAME gives the samples to calibrate and score on "
                "(--allow-random-calibration calibrates on noise and scores nothing)"
            )
    elif step.get("random_calibration"):
        raise InputError(
            "--allow-random-calibration is for runs without data; leave it out or leave out --data"
        )
    if values.get("data") and values.get("task"):
        raise InputError("--data and --task both give samples; give one of them")
    return values
