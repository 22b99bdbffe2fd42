"""Tasks, data, models and the training loop. `import edgeml.train` does not import torch."""

from __future__ import annotations

from typing import Any

__all__ = ["average_weights", "fit"]


def __getattr__(name: str) -> Any:
    if name == "fit":
        from .training_loop import fit

        return fit
    if name == "average_weights":
        from .mean_of_weights import average_weights

        return average_weights
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
