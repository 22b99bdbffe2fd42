"""Names for why INT8 loses accuracy, each from what was measured to mend it."""

from __future__ import annotations

from collections.abc import Sequence

from ..artifact.row_text import points
from .build_engines import Trial
from .candidates import SLOW
from .sensitivity import LayerLoss
from .stages import Stages

# Operators that are known to need float, as they are told; layers with weights have no such name.
KNOWN = {
    "Pow": "LayerNorm's squares (Pow)",
    "ReduceMean": "LayerNorm's means (ReduceMean)",
    "LayerNormalization": "LayerNorm",
    "Softmax": "Softmax",
    "Add": "residual sums (Add)",
}
PLACES = ("first layer", "last layer")
PLAIN = ("minmax", "max")


def tell_gain(cause: str, cure: str, base: Trial, cured: Trial, stages: Stages) -> bool:
    """Name the cause where its cure gained more than chance: the intervals of the loss are apart.

    Args:
        cure: one word, as in "equalised".
        base: the engine without it; `cured`: the one with it, whose row keeps the line.
    """
    before, after = base.row.drop_points, cured.row.drop_points
    if not all(t.row.status == "measured" and t.row.drop_points for t in (base, cured)):
        return False
    if cured.engine is None or after.value is None or before.low is None or before.n != after.n:
        return False
    if (after.value if after.high is None else after.high) >= before.low:
        return False
    line = (
        f"cause: {cause}; {cure}, {base.row.id} loses {points(after.value)} points "
        f"instead of {points(before.value)}"
    )
    cured.row.warnings.append(line)
    stages.log(line)
    return True


def tell_outliers(trials: Sequence[Trial], slow: Sequence[Trial], stages: Stages) -> None:
    """Of the engines calibrated by percentile or entropy the one that gained over its minmax twin."""
    twins = {_twin(t): t for t in trials if _method(t) in PLAIN}
    pairs = [(twins[_twin(t)], t) for t in slow if _method(t) in SLOW and _twin(t) in twins]
    scored = [
        (base, t) for base, t in pairs if t.row.drop_points and t.row.drop_points.value is not None
    ]
    for base, cured in sorted(scored, key=lambda pair: pair[1].row.drop_points.value):
        if tell_gain("outliers in activations", f"by {_method(cured)}", base, cured, stages):
            return


def cause_of_layers(layers: Sequence[LayerLoss]) -> str | None:
    """The name of what had to go back into float; None where ordinary layers are among it.

    >>> cause_of_layers([LayerLoss("n", "Conv, first layer", 9.0, 1.0, False)])
    'the first layer'
    """
    names = []
    for layer in layers:
        operator, _, place = layer.what.partition(", ")
        name = f"the {place}" if place in PLACES else KNOWN.get(operator)
        if name is None:
            return None
        names.append(name)
    return ", ".join(dict.fromkeys(names)) or None


def _method(trial: Trial) -> str | None:
    route = trial.row.route or ""
    return route.split()[1] if len(route.split()) == 2 else None


def _twin(trial: Trial) -> tuple[str, str, str]:
    """What engines that differ in their calibration method alone have in common."""
    execution = trial.candidate.execution if trial.candidate else ""
    return (trial.row.route or "").split(" ")[0], trial.row.runtime, execution
