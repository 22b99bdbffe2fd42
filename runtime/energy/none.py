"""No meter: says why."""

from __future__ import annotations

from .meter import UNAVAILABLE, Meter, MeterError, Window


class NoMeter(Meter):
    """The absence of a meter.

    Args:
        reason: what was looked for and what is missing.
        name: of the meter that is not there.
    """

    how = UNAVAILABLE
    scope = ""
    rails = ()
    total_rails = ()

    def __init__(self, reason: str, name: str = "none") -> None:
        self.name = name
        self.reason = reason

    def start(self) -> None:
        raise MeterError(f"no energy meter: {self.reason}")

    def stop(self) -> Window:
        raise MeterError(f"no energy meter: {self.reason}")
