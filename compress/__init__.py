"""Make a network small and fast, and prove what it lost. `import edgeml.compress` is light."""

from __future__ import annotations

from typing import Any

__all__ = ["compress", "distillation_loss", "feature_student", "prune", "qat", "quantize"]


def __getattr__(name: str) -> Any:
    if name == "quantize":
        from .quantize_file import quantize

        return quantize
    if name == "prune":
        from .prune_model import prune

        return prune
    if name == "qat":
        from .fake_quantize import qat

        return qat
    if name == "distillation_loss":
        from .distil import distillation_loss

        return distillation_loss
    if name == "feature_student":
        from .feature_distil import feature_student

        return feature_student
    if name == "compress":
        from .run_recipe import run_recipe

        return run_recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
