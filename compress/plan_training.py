"""`--plan` for steps that train: what they do, and how long it takes where that is known."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..artifact.bundle import MANIFEST
from ..artifact.recipe import FinetuneStep, Recipe
from ..artifact.target import find_target
from .sparsity_gain import why_no_gain

# Of an epoch of plain training: a teacher's forward pass is a third of a training step's work, and
# a pruned network has less of its own.
DISTILLED = 1.33
# Estimates. Seen on a network of eight layers, the machine loaded: 9 to 22 s a table, 2 to 12 s an engine.
TABLE_S, ENGINE_S, ENGINES = (10, 90), (3, 20), 6


def trains(recipe: Recipe) -> bool:
    """Whether a step of the recipe trains weights."""
    return any(recipe.step(name) for name in ("prune", "finetune", "qat"))


def onnx_alone(model: str) -> bool:
    """Whether a model has no weights that could be trained: an ONNX file, or a bundle that is no training's."""
    if model.endswith(".onnx"):
        return True
    try:
        manifest = json.loads((Path(model) / MANIFEST).read_text(encoding="utf-8"))
        return "trained" not in manifest["model"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # no bundle, or a damaged one, which opening it tells


def lacking_parts(recipe: Recipe) -> list[str]:
    """Libraries that a step needs and that are not installed, a line each."""
    tune, needed = recipe.step("finetune"), []
    if recipe.step("prune") is not None:
        needed += [("prune", name, "prune") for name in ("torch_pruning", "scipy", "torch")]
    if tune is not None and tune.sparse_2to4:
        needed.append(("finetune: sparse_2to4", "modelopt", "modelopt"))
    if recipe.step("qat") is not None and find_target(recipe.target).by_tensorrt:
        needed.append(("qat", "modelopt", "modelopt"))
    return [
        f"{step}: {name} is not installed: pip install 'edgeml-toolchain[{extra}]'"
        for step, name, extra in needed
        if not find_spec(name)
    ]


def training_lines(recipe: Recipe, here: bool = True) -> list[str]:
    """A line a step, in the recipe's order.

    Args:
        here: it is steered by times of this machine, whose usual ones are told.
    """
    lines = []
    if prune := recipe.step("prune"):
        each = f"up to {ENGINES} engines, built and timed there"
        if here:
            each = (
                f"a latency table ({TABLE_S[0]}–{TABLE_S[1]} s) and up to {ENGINES} engines "
                f"({ENGINE_S[0]}–{ENGINE_S[1]} s each)"
            )
        lines.append(
            f"prune       {prune.rounds} rounds of {', '.join(prune.kinds)} by {prune.importance}: each "
            f"{each}; none where plain INT8 meets the budget"
        )
    if tune := recipe.step("finetune"):
        if tune.hook:
            how = f"by {tune.hook}"
        else:
            how = f"at most {tune.epochs} epochs, temperature {tune.temperature:g}, alpha {tune.alpha:g}"
            how += f"; {_teachers_part(recipe, tune)}"
            how += "; 2:4 masks" if tune.sparse_2to4 else ""
        lines.append(f"finetune    the original is the teacher; {how}{_time(recipe, tune.epochs)}")
    if qat := recipe.step("qat"):
        when = "always" if qat.when == "always" else "where quantization alone misses the budget"
        lines.append(f"qat         {qat.epochs} epochs, {when}{_time(recipe, qat.epochs)}")
    return lines


def sparsity_refused(recipe: Recipe) -> str | None:
    """Why 2:4 is not done for the recipe's target; None where it is, or is not asked for."""
    tune = recipe.step("finetune")
    if tune is None or not tune.sparse_2to4 or tune.sparse_2to4 == "forced":
        return None
    reason = why_no_gain(find_target(recipe.target))
    return reason and (
        f"sparse_2to4 gains nothing there: {reason}; leave it out, or say sparse_2to4: forced"
    )


def trained_like(model: str) -> dict[str, Any]:
    """The request that `edgeml train` kept in the model's bundle, or {}."""
    file = Path(model) / MANIFEST
    if not file.is_file():
        return {}
    manifest = json.loads(file.read_text(encoding="utf-8"))
    recipe = manifest.get("recipe")
    return recipe if isinstance(recipe, dict) and "settings" in recipe else {}


def _teachers_part(recipe: Recipe, tune: FinetuneStep) -> str:
    """What is learnt from the teacher, and how often it is computed."""
    if tune.features:
        return "the teacher's outputs and blocks, computed in every epoch"
    augment = trained_like(recipe.model).get("augment") if tune.augment is None else tune.augment
    if augment:
        return "the teacher's outputs, computed once for each epoch's augmented samples and stored"
    return "the teacher's outputs, computed once and stored in float32"


def _time(recipe: Recipe, epochs: int) -> str:
    """By the epochs of the training that the model's bundle keeps; nothing where there are none."""
    bound = "" if recipe.time_s is None else f", within --time {recipe.time_s:g} s"
    try:
        text = (Path(recipe.model) / "curves.json").read_text(encoding="utf-8")
        seconds = sorted(epoch["seconds"] for epoch in json.loads(text))
        each = DISTILLED * seconds[len(seconds) // 2]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return f"; an epoch's time is known after its first steps{bound}"
    return f"; about {each * epochs / 60:.1f} min ({each:.0f} s an epoch){bound}"
