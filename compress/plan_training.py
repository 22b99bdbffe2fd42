"""`--plan` for steps that train: what they do, and how long it takes where that is known."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from ..artifact.recipe import Recipe

# Of an epoch of plain training: a teacher's forward pass is a third of a training step's work, and
# a pruned network has less of its own.
DISTILLED = 1.33
# Estimates. Seen on a network of eight layers, the machine loaded: 9 to 22 s a table, 2 to 12 s an engine.
TABLE_S, ENGINE_S, ENGINES = (10, 90), (3, 20), 6


def trains(recipe: Recipe) -> bool:
    """Whether a step of the recipe trains weights."""
    return any(recipe.step(name) for name in ("prune", "finetune", "qat"))


def lacking_parts(recipe: Recipe) -> list[str]:
    """Libraries that a step needs and that are not installed, a line each."""
    if recipe.step("prune") is None:
        return []
    return [
        f"prune: {name} is not installed: pip install 'edgeml-toolchain[prune]'"
        for name in ("torch_pruning", "scipy", "torch")
        if not find_spec(name)
    ]


def training_lines(recipe: Recipe) -> list[str]:
    """A line a step, in the recipe's order."""
    lines = []
    if prune := recipe.step("prune"):
        each = f"a latency table ({TABLE_S[0]}–{TABLE_S[1]} s) and up to {ENGINES} engines"
        lines.append(
            f"prune       {prune.rounds} rounds of {', '.join(prune.kinds)} by {prune.importance}: each "
            f"{each} ({ENGINE_S[0]}–{ENGINE_S[1]} s each); none where plain INT8 meets the budget"
        )
    if tune := recipe.step("finetune"):
        if tune.hook:
            how = f"by {tune.hook}"
        else:
            how = f"at most {tune.epochs} epochs, temperature {tune.temperature:g}, alpha {tune.alpha:g}"
        lines.append(f"finetune    the original is the teacher; {how}{_time(recipe, tune.epochs)}")
    if qat := recipe.step("qat"):
        when = "always" if qat.when == "always" else "where quantization alone misses the budget"
        lines.append(f"qat         {qat.epochs} epochs, {when}{_time(recipe, qat.epochs)}")
    return lines


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
