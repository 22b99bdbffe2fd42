"""The shape of a bench that runs elsewhere: what is timed, what comes back, who does it.

`compress` measures through it without knowing where; `deploy.meter` is one that does it over SSH.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .latency import BenchResult


@dataclass(frozen=True)
class ModelFile:
    """An engine to be built where it is timed.

    Attributes:
        files: the ONNX first, then the external data beside it.
        runtime: tensorrt or onnxruntime.
    """

    files: tuple[Path, ...]
    runtime: str
    precision: str
    execution: str = "fp32"


@dataclass(frozen=True)
class RemoteBench(BenchResult):
    """Timings of the engines that ran.

    Attributes:
        failed: by engine, why it has none.
        conditions: temperatures, throttling, fan, clocks, power mode.
        sizes: by engine, bytes of what was built there.
    """

    failed: dict[str, str] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RemoteProfile:
    """Times of layers, from the runtime's own profile there.

    Attributes:
        layers: by engine, its layers' names and milliseconds.
        warnings: what disturbed them.
    """

    layers: dict[str, list[tuple[str, float]]]
    warnings: list[str] = field(default_factory=list)


class RemoteMeter(Protocol):
    """Times models on another machine, all of a call in interleaved blocks of one process there."""

    def bench(
        self,
        models: Mapping[str, ModelFile],
        inputs: Mapping[str, np.ndarray],
        *,
        duration_s: float = 2.0,
        reference: str | None = None,
        seed: int = 0,
        build: int = 0,
    ) -> RemoteBench:
        """As `runtime.latency.bench`; one engine's failure is in `failed`.

        Args:
            build: engines are built once for each number, without what earlier builds had timed.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What it is, for a table's `machine`."""
        ...

    def state(self) -> dict[str, Any]:
        """All that a time there depends on beside the engine's file: device, power mode, clocks' limits,
        versions. Times are taken again from a cache only where this is the same."""
        ...

    def layer_times(
        self,
        models: Mapping[str, ModelFile],
        inputs: Mapping[str, np.ndarray],
        *,
        iterations: int = 50,
    ) -> RemoteProfile:
        """Each engine's layers, from the runtime's own profile there."""
        ...
