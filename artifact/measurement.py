"""One measured quantity: value, unit, sample size, spread, and how it was got."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

How = Literal["measured", "estimated", "emulated", "not measured"]


class Measurement(BaseModel):
    """A number that can be trusted, or says why there is none.

    Attributes:
        value: the point value in `unit`; None when `how` is ``not measured``.
        unit: ``ms``, ``bytes``, ``points``, ``fraction``, ``1/s`` …
        n: how many samples stand behind it.
        low, high: the ends of its two-sided interval, at `confidence`.
        how: measured, estimated, emulated or not measured; never mixed in one column.
        method: how the interval was got, as in ``newcombe`` or ``block bootstrap``.
        note: the reason, where there is no value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float | None
    unit: str
    n: int = 0
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    how: How = "measured"
    method: str | None = None
    note: str | None = None


def not_measured(unit: str, why: str) -> Measurement:
    """The honest absence of a number."""
    return Measurement(value=None, unit=unit, how="not measured", note=why)
