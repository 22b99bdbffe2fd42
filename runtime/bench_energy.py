"""Energy of an engine on this machine's own meter: `bench --energy`, and the budget's ``--max-energy``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..artifact.measurement import Measurement, not_measured
from ..artifact.result_row import EngineRow
from ..errors import MissingPart
from .energy.meter import EMULATED, EnergyReading, Meter, find_meter
from .energy.method import measure_energy
from .engine import Engine
from .latency import batch_of


def require_meter(device: str = "cpu") -> Meter:
    """This machine's meter for a budget in joules; close it when done.

    Raises:
        MissingPart: there is none; why is told.
    """
    meter = find_meter(device)
    if meter.reason is not None:
        raise MissingPart(f"no energy meter here: {meter.reason}")
    return meter


def engine_energy(
    engine: Engine,
    inputs: Mapping[str, np.ndarray],
    meter: Meter | None = None,
    log: Callable[[str], None] = lambda line: None,
    **seconds: Any,
) -> EnergyReading:
    """Joules of one sample by the method of `energy.method`; a machine without a meter gives the reason.

    Args:
        meter: None finds this machine's for the engine's device, and closes it.
        seconds: the method's own, where they should differ: ``idle_s``, ``window_s``, ``repeats`` …

    Raises:
        MeterError: the meter was there and failed.
    """
    found = meter or find_meter(engine.device)
    try:
        return measure_energy(
            lambda: engine.run(inputs),
            found,
            samples_per_run=batch_of(inputs),
            log=log,
            **seconds,
        )
    finally:
        if meter is None:
            found.close()


def add_energy(row: EngineRow, reading: EnergyReading) -> None:
    """Put a reading into its row: gross, net, every label, its warnings."""
    row.energy_gross_mj, row.energy_net_mj = energy_measurements(reading)
    row.energy = reading.as_json()
    row.warnings += [f"energy: {line}" for line in reading.warnings]


def energy_measurements(reading: EnergyReading) -> tuple[Measurement, Measurement]:
    """Gross and net millijoules of one sample, the medians of the windows with their range."""
    if reading.gross_mj is None:
        absent = not_measured("mJ", reading.reason or "the meter gave nothing")
        return absent, absent

    def figure(value: float | None, low: float | None, high: float | None) -> Measurement:
        return Measurement(
            value=value,
            unit="mJ",
            n=reading.windows,
            low=low,
            high=high,
            how="emulated" if reading.where == EMULATED else "measured",
            method=f"median of {reading.windows} windows of {reading.window_s:g} s, their range",
            note=f"{reading.meter}, {reading.how}, {reading.scope}",
        )

    return (
        figure(reading.gross_mj, reading.gross_mj_low, reading.gross_mj_high),
        figure(reading.net_mj, reading.net_mj_low, reading.net_mj_high),
    )
