"""Run and measure engines. Imports no training stack, so a device installs without one."""

from .engine import load

__all__ = ["bench", "load"]


def __getattr__(name: str):
    if name == "bench":
        from .latency import bench

        return bench
    raise AttributeError(name)
