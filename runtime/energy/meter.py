"""The one interface of every energy meter, what a window and a reading hold, and `find_meter`.

A meter is either a *counter* (the hardware adds up joules: NVML, RAPL) or *integrated* (a process of its
own samples watts: INA3221, tegrastats). Where there is none, `NoMeter` says why. Standard library only,
Python 3.8: these files travel to the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import EdgemlError

# How a figure of energy was got.
COUNTER, INTEGRATED, MODELLED, UNAVAILABLE = "counter", "integrated", "modelled", "unavailable"
# What it covers; those of a board stand in artifact/boards.py.
GPU_BOARD, CPU_PACKAGE = "gpu-board", "cpu-package"
HARDWARE, EMULATED = "hardware", "emulated"


class MeterError(EdgemlError):
    """A meter that was there gave no usable window; the message says why."""


class CounterReset(MeterError):
    """A counter went backwards or may have wrapped more than once: this window is lost, the next may hold."""


@dataclass(frozen=True)
class Window:
    """Energy between `Meter.start` and `Meter.stop`.

    Attributes:
        seconds: between the two, by the monotonic clock.
        total_mj: of what the meter's `scope` names.
        rail_mj: by rail, those inside the total too.
        achieved_hz: samples a second by rail; empty for a counter.
        sampler_cpu_share: CPU time of the sampling process / seconds, of one core; None for a counter.
    """

    seconds: float
    total_mj: float
    rail_mj: dict[str, float]
    achieved_hz: dict[str, float] = field(default_factory=dict)
    sampler_cpu_share: float | None = None

    @property
    def mean_w(self) -> float:
        """Mean watts of the total."""
        return self.total_mj / 1e3 / self.seconds


class Meter(ABC):
    """Use as ``with find_meter() as meter: meter.start(); …; window = meter.stop()``.

    Attributes:
        name: ina3221, tegrastats, nvml, rapl or none.
        how: counter, integrated or unavailable.
        scope: module-input, carrier-input, sum-of-rails(partial), gpu-board or cpu-package.
        rails: every rail that is read.
        total_rails: those whose sum is the total.
        where: hardware or emulated.
        reason: why there is no meter; None where there is one.
        shortest_window_s: below it the meter's own steps would show.
        closed: `close` was called.
    """

    name: str
    how: str
    scope: str
    rails: tuple[str, ...]
    total_rails: tuple[str, ...]
    where: str = HARDWARE
    reason: str | None = None
    shortest_window_s: float = 0.0
    closed: bool = False

    @abstractmethod
    def start(self) -> None:
        """Begin a window."""

    @abstractmethod
    def stop(self) -> Window:
        """End the window.

        Raises:
            CounterReset: the window is lost, another may be tried.
            MeterError: the meter is gone.
        """

    def conditions(self) -> dict[str, Any]:
        """Clocks, temperatures, power mode or limit, as far as they can be read without root."""
        return {}

    def close(self) -> None:
        """End what the meter started; it cannot measure afterwards."""
        self.closed = True

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass
class EnergyReading:
    """Energy of one inference, with everything that a reader must know to judge it.

    Every figure is the median over the windows; its `low` and `high` are their range.

    Attributes:
        meter, how, scope, where, rails, total_rails: as of the `Meter`.
        reason: why there is no figure (`how` is ``unavailable`` then, and the figures None).
        gross_mj: millijoules an inference, all that was drawn while it ran.
        net_mj: gross − idle watts × time. Never to be told without the gross figure.
        mean_w: while inferring.
        idle_w: engine loaded, nothing running.
        rail_mj: gross, by rail.
        inferences: in all windows; `inferences_per_s` while measuring.
        windows: so many of at least `window_s` seconds.
        achieved_hz: samples a second by rail; empty for a counter.
        sampler_cpu_share: of one core.
        p50_shift: p50 with the sampler running / p50 without it − 1; None for a counter.
        conditions_before, conditions_after: power mode or limit, clocks_mhz, temperatures_c, throttling.
        warnings: what a reader should know.
    """

    meter: str
    how: str
    scope: str
    where: str
    rails: list[str]
    total_rails: list[str]
    reason: str | None = None
    gross_mj: float | None = None
    gross_mj_low: float | None = None
    gross_mj_high: float | None = None
    net_mj: float | None = None
    net_mj_low: float | None = None
    net_mj_high: float | None = None
    mean_w: float | None = None
    idle_w: float | None = None
    rail_mj: dict[str, float] = field(default_factory=dict)
    inferences: int = 0
    inferences_per_s: float | None = None
    windows: int = 0
    window_s: float | None = None
    achieved_hz: dict[str, float] = field(default_factory=dict)
    sampler_cpu_share: float | None = None
    p50_shift: float | None = None
    conditions_before: dict[str, Any] = field(default_factory=dict)
    conditions_after: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values, as they go home from a device and into a record."""
        return asdict(self)


def find_meter(
    device: str = "cpu", root: str = "/", where: str = HARDWARE, gpu: int | None = None
) -> Meter:
    """This machine's best meter for what runs on `device`; a `NoMeter` with the reasons where none is.

    A Jetson's rails come first (they hold CPU and GPU), then tegrastats; elsewhere the GPU's counter
    (NVML) for ``cuda`` and the CPU package's (RAPL) for ``cpu``.

    Args:
        device: ``cpu`` or ``cuda``.
        root: where ``sys`` and ``proc`` lie, for made trees.
        where: ``emulated`` marks every figure as such.
        gpu: NVML's index; None is CUDA's first, which engines run on.
    """
    from .ina3221 import ina3221_meter
    from .none import NoMeter
    from .nvml import nvml_meter
    from .rapl import rapl_meter
    from .tegrastats import tegrastats_meter

    board = [lambda: ina3221_meter(root), lambda: tegrastats_meter(root)]
    own = (lambda: nvml_meter(gpu)) if device == "cuda" else (lambda: rapl_meter(root))
    reasons = []
    for find in (*board, own):
        meter = find()
        meter.where = where
        if meter.reason is None:
            return meter
        reasons.append(f"{meter.name}: {meter.reason}")
    return NoMeter("; ".join(reasons))
