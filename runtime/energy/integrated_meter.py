"""A meter whose watts are sampled and integrated here; INA3221 and tegrastats are two."""

from __future__ import annotations

from typing import Any

from .conditions import board_conditions
from .meter import INTEGRATED, Meter, MeterError, Window
from .rails import RailPlan
from .sampler import Sampler, SamplerDied, integrate, rate


class IntegratedMeter(Meter):
    """Starts its sampling process with the first window and keeps it until `close`.

    Args:
        name: of the meter.
        plan: what is read and what is told.
        job: the keywords of `Sampler`.
        root: where ``sys`` lies.
    """

    how = INTEGRATED

    def __init__(self, name: str, plan: RailPlan, job: dict[str, Any], root: str = "/") -> None:
        self.name = name
        self.rails, self.total_rails, self.scope = plan.rails, plan.total, plan.scope
        self._job, self._root = job, root
        self._sampler: Sampler | None = None

    def start(self) -> None:
        try:
            if self._sampler is None:
                self._sampler = Sampler(**self._job)
            self._sampler.start()
        except SamplerDied as e:
            raise MeterError(f"{self.name}: {e}") from e

    def stop(self) -> Window:
        if self._sampler is None:
            raise MeterError(f"{self.name}: stop without start")
        try:
            begin, end, found = self._sampler.stop()
        except SamplerDied as e:
            raise MeterError(f"{self.name}: {e}") from e
        samples = self.samples(found)
        silent = [rail for rail in self.total_rails if not samples.get(rail)]
        if silent:
            raise MeterError(f"{self.name}: rail {silent[0]} gave no sample")
        seconds = end - begin
        energy_mj = {
            rail: integrate(samples[rail], begin, end) * 1e3
            for rail in self.rails
            if samples.get(rail)
        }
        return Window(
            seconds=seconds,
            total_mj=sum(energy_mj[rail] for rail in self.total_rails),
            rail_mj=energy_mj,
            achieved_hz={rail: rate(samples[rail], begin, end) for rail in energy_mj},
            sampler_cpu_share=found["cpu_s"] / seconds if seconds > 0 else None,
        )

    def samples(self, found: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
        """By rail ``[s, W]`` pairs, from what the sampling process says."""
        return found["samples"]

    def conditions(self) -> dict[str, Any]:
        return board_conditions(self._root)

    def close(self) -> None:
        super().close()
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
