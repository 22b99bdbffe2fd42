"""The latency table of a network that is pruned: its layers and groups, with times of this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .job import Job, batched
from .latency_table import LatencyTable, Prunable, trace_layers
from .layer_times import LayerShape, call_ms
from .stage_keys import machine_key
from .stages import Stages
from .steer_structure import prunables

if TYPE_CHECKING:
    from .prune_groups import Group

# (job, module, groups, what earlier rounds measured, stages) -> the table.
OpenTable = Callable[[Job, Any, "list[Group]", Mapping[str, float], Stages], LatencyTable]


def layers_and_groups(
    job: Job, module: Any, groups: list[Group]
) -> tuple[dict[str, LayerShape], dict[str, Prunable]]:
    """What a table is made of.

    Raises:
        InputError: the network has no layer that is timed.
    """
    # Every kind of layer at batch 1, as convolutions are timed: a larger batch is in the correction.
    layers = trace_layers(module, batched(job.sample, 1))
    if not layers:
        raise InputError(
            f"{type(module).__name__} has no convolution, dense or recurrent layer (torch.nn) whose time "
            "a latency table could hold; leave out the limits"
        )
    return layers, prunables(groups, layers)


def open_table(
    job: Job,
    module: Any,
    groups: list[Group],
    times: Mapping[str, float],
    stages: Stages,
) -> LatencyTable:
    """The latency table of a network on this machine: from the cache, or measured.

    Args:
        times: what earlier rounds measured.

    Raises:
        InputError: it has no layer that is timed.
    """
    table = LatencyTable(*layers_and_groups(job, module, groups), job.options.threads)
    table.remember(times)

    def make() -> dict[str, Any]:
        table.fixed_ms = call_ms(job.options.threads)
        table.costs({})  # every shape that one group alone can make
        return {"times": table.times, "fixed_ms": table.fixed_ms}

    key = {
        "machine": machine_key(),
        "threads": job.options.threads,
        "openvino": version("openvino"),
        "layers": {name: shape.key for name, shape in table.layers.items()},
        "groups": {g.name: [g.kind, g.size, g.members] for g in table.groups.values()},
    }
    found = stages.values("latency-table", key, "measuring the latency table", make)
    table.remember(found["times"])
    table.fixed_ms = found["fixed_ms"]
    return table
