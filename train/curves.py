"""The curves of a training: as data and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..artifact.atomic_file import replacing, write_json
from .checkpoint import Epoch


def write_curves(epochs: Sequence[Epoch], folder: Path) -> None:
    """``curves.json`` (an object an epoch) and ``curves.png`` (loss, accuracy, learning rate)."""
    write_json(folder / "curves.json", [asdict(epoch) for epoch in epochs])
    # The object interface: pyplot would choose a window system and keep global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    numbers = [epoch.number for epoch in epochs]
    names = sorted({name for epoch in epochs for name in epoch.validation} - {"loss"})
    figure = Figure(figsize=(4 * (2 + bool(names)), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 + bool(names))
    axes[0].plot(numbers, [epoch.loss for epoch in epochs], label="train")
    if any("loss" in epoch.validation for epoch in epochs):
        axes[0].plot(numbers, [e.validation.get("loss") for e in epochs], label="validation")
    axes[0].set(title="loss", xlabel="epoch")
    axes[0].legend()
    if names:
        for name in names:
            axes[1].plot(numbers, [e.validation.get(name) for e in epochs], label=name)
        axes[1].set(title="validation", xlabel="epoch")
        axes[1].legend()
    axes[-1].plot(numbers, [epoch.lr for epoch in epochs])
    axes[-1].set(title="learning rate", xlabel="epoch")
    with replacing(folder / "curves.png") as part:
        figure.savefig(part, dpi=120)
