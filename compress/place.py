"""Where a run searches and steers: this machine, or a device (`device_place`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from .budget import Budget
from .build_engines import Trial
from .candidates import Candidate
from .job import Job
from .search import search
from .stages import Stages
from .steer_engine import EngineMeter, Meter

if TYPE_CHECKING:
    from .steer_table import OpenTable


class Place(Protocol):
    """Makes, scores and times engines."""

    def search(
        self, job: Job, stages: Stages, budget: Budget, others: Sequence[Trial] = ()
    ) -> list[Trial]:
        """Every candidate of the recipe with its accuracy and its time; see `search.search`."""
        ...

    def engine_meter(
        self, job: Job, baseline: Trial, candidate: Candidate, stages: Stages
    ) -> Meter:
        """What times a pruned network's engines against the original's plain INT8 one."""
        ...

    @property
    def open_table(self) -> OpenTable:
        """What gives the latency table of a network there; see `steer_table.open_table`."""
        ...


class Here:
    """This machine."""

    def search(
        self, job: Job, stages: Stages, budget: Budget, others: Sequence[Trial] = ()
    ) -> list[Trial]:
        return search(job, stages, budget, others)

    def engine_meter(
        self, job: Job, baseline: Trial, candidate: Candidate, stages: Stages
    ) -> Meter:
        return EngineMeter(job, baseline, candidate, stages)

    @property
    def open_table(self) -> OpenTable:
        from .steer_table import open_table  # it needs torch, as only a run that prunes does

        return open_table
