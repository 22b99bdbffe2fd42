"""How much of a network really runs in INT8, by its engine's own profile."""

from __future__ import annotations

from collections.abc import Sequence

from .engine import LayerProfile


def int8_share(profile: Sequence[LayerProfile]) -> float:
    """The share of multiply-accumulates that were executed in INT8; 0 when there are none."""
    total = sum(layer.macs for layer in profile)
    return (
        sum(layer.macs for layer in profile if layer.precision == "int8") / total if total else 0.0
    )


def float_layers(profile: Sequence[LayerProfile]) -> list[str]:
    """Names of layers with multiply-accumulates that did not run in INT8, the largest first."""
    left = [layer for layer in profile if layer.macs and layer.precision != "int8"]
    return [layer.name for layer in sorted(left, key=lambda layer: -layer.macs)]
