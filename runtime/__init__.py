"""Run and measure engines. Imports no training stack, so a device installs without one."""

from __future__ import annotations

__all__ = ["bench", "load"]


def __getattr__(name: str):
    # Late: on a device this package holds `device` and `energy` only.
    if name == "bench":
        from .latency import bench

        return bench
    if name == "load":
        from .engine import load

        return load
    raise AttributeError(name)
