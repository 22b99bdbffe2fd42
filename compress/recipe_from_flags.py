"""From the command line's flat flags to a recipe's values; a flag that was given wins."""

from __future__ import annotations

from typing import Any

from ..artifact.budget_limit import PARTS
from ..artifact.recipe_steps import STEPS, step_fault
from ..artifact.target import find_target
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
_RENAMED = {"max_drop": "max_drop_points", "max_drop_worst": "max_drop_worst_points"}
# Flags of the finetune step.
_FINETUNE_FLAGS = {"epochs": "epochs", "finetune": "hook"}
# Steps that a budget beyond accuracy brings along: what they do is found, not asked for.
_BUDGET_STEPS = ({"step": "prune"}, {"step": "finetune"})


# How `--data` is read; a task makes its inputs itself.
_DATA_ONLY = ("calibration_data", "classes", "preprocess", "fold_preprocess")


def recipe_values(
    base: dict[str, Any],
    flags: dict[str, Any],
    where: str = "options",
    trust_code: bool = False,
    timed: bool = False,
) -> dict[str, Any]:
    """Values for `artifact.recipe.build_recipe`.

    Args:
        base: values of a recipe file, or {}.
        flags: as the command line gives them; None or () where not given.
        where: what `base` is, for messages.
        trust_code: the code that a training's bundle names for its data may run.
        timed: the target's engines are timed on a device.

    Raises:
        InputError: no model, or nothing to score on and no permission to calibrate on noise.
    """
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    values = dict(base)
    if step_fault(base.get("steps") or []):
        return values  # `build_recipe` says so, with the line
    steps = {s.get("step", "quantize"): dict(s) for s in base.get("steps") or [{}]}
    step = steps.get("quantize", {"step": "quantize"})
    finetune = {_FINETUNE_FLAGS[n]: v for n, v in given.items() if n in _FINETUNE_FLAGS}
    for name, value in given.items():
        if name in _STEP_FLAGS:
            step[_STEP_FLAGS[name]] = value
        elif name == "qat":
            steps.setdefault("qat", {"step": "qat"})["when"] = "always"
        elif name not in _FINETUNE_FLAGS:
            values[_RENAMED.get(name, name)] = value
    if "model" not in values:
        raise InputError("no model: give model.onnx, FILE.py:FACTORY, a bundle, or --recipe FILE")
    if not values.get("task"):
        # A training's directory knows its data, how an image was prepared, and its classes.
        own = run_defaults(str(values["model"]), trust_code, values.get("data"))
        if "data" in own:
            values.pop("data", None)  # the same samples, cut as they were for the training
        values = {**own, **values}
    # Of any other kind: `build_recipe` says so.
    precisions = values.get("precisions")
    quantizes = (
        not {"int8", "fp8"}.isdisjoint(map(str, precisions))
        if isinstance(precisions, (list, tuple)) and precisions
        else True
    )
    # A recipe that lists its steps gets no further ones.
    budget = any(values.get(part) for part in PARTS if part in given or not base.get("steps"))
    is_onnx = str(values["model"]).endswith(".onnx")
    timed = timed or _times_here(values.get("target"))
    if (finetune or (budget and timed)) and not is_onnx:
        for added in _BUDGET_STEPS if budget else _BUDGET_STEPS[1:]:
            steps.setdefault(added["step"], dict(added))
    if finetune:
        if "finetune" not in steps:
            raise InputError(
                f"--{next(iter(n for n in given if n in _FINETUNE_FLAGS))} trains, and "
                f"{values['model']} is an ONNX file without weights to train; give the torch module"
            )
        steps["finetune"] |= finetune
    limits = timed and any(values.get(part) for part in PARTS)
    # Limits, and what training gave, are measured against the plain INT8 engine, whatever may ship.
    if quantizes or limits or "finetune" in steps:
        steps["quantize"] = {"step": "quantize", **step}
    else:
        if given.get("qat"):
            raise InputError(
                "--qat trains an INT8 engine, which --precision leaves out; add --int8, or leave out --qat"
            )
        for name in ("quantize", "qat"):
            steps.pop(name, None)
    values["steps"] = sorted(steps.values(), key=_order)
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
    # A run's own words have the source behind them: cut:60-20-20:SOURCE.
    again = f":{values.get('calibration_data')}"
    if values.get("data") and f":{values['data']}".endswith(again):
        raise InputError(
            f"--calibration-data {values['data']} is --data itself, whose scored samples must not "
            "calibrate; leave it out (then its train split calibrates, or a part kept apart)"
        )
    if values.get("data") and values.get("task"):
        raise InputError("--data and --task both give samples; give one of them")
    unused = [key for key in _DATA_ONLY if values.get(key)] if values.get("task") else []
    if unused:
        flag = "how an image becomes an input" if unused[0] == "preprocess" else f"--{unused[0]}"
        raise InputError(
            f"{flag.replace('_', '-')} is for --data; the inputs of --task {values['task']} are made by its samples()"
        )
    return values


def _times_here(target: Any) -> bool:
    """Whether engines for that target run on this machine, whose times pruning goes by."""
    try:
        return target is None or find_target(str(target)).this_machine
    except InputError:
        return False  # `build_recipe` says so


def _order(step: dict[str, Any]) -> int:
    return list(STEPS).index(step["step"])
