"""`--plan` of a device that answers: how long its latency table takes, by builds that are timed there."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..artifact.recipe import Recipe
from ..artifact.stage_cache import StageCache
from ..artifact.target import find_target
from ..artifact.work_directory import WorkDirectory
from ..errors import DeviceError
from ..runtime.remote_bench import RemoteMeter
from .device_layer_times import PER_NETWORK, measure_on_device, own_shapes, refuse_recurrent
from .device_place import TABLE_SECONDS, OnDevice
from .job import batched, open_job
from .latency_table import LatencyTable
from .stages import Stages

# The run itself takes them from the cache.
TIMED_BUILDS = 3


def device_table_line(
    recipe: Recipe,
    meter: RemoteMeter,
    trust_code: bool = False,
    log: Callable[[str], None] = lambda line: None,
    cache: StageCache | None = None,
) -> str:
    """The line of the latency table. The model is opened (a factory's file is run) and exported, and up to
    `TIMED_BUILDS` networks of its layers are built and timed on the device.

    Raises:
        InputError: model or data cannot be used, nothing can be pruned, or a layer has no place in the table.
    """
    told = meter.describe()
    if told.get("emulated"):
        return f"table       not measured: {told['device']} is emulated"
    with (
        tempfile.TemporaryDirectory(prefix="edgeml-plan-") as folder,
        WorkDirectory(Path(folder) / "plan", recipe.hash) as work,
    ):
        stages = Stages(cache or StageCache(), work, log, None)
        job = open_job(recipe, stages, trust_code)
        import torch

        from .prune_groups import find_groups
        from .steer_table import layers_and_groups

        inputs = {n: torch.as_tensor(a) for n, a in batched(job.sample, 2).items()}
        # Which units go is of no interest yet: magnitudes cost nothing.
        kinds = recipe.step("prune").kinds
        groups = find_groups(job.module, inputs, importance="magnitude", kinds=kinds)
        layers, prunable = layers_and_groups(job, job.module, groups)
        refuse_recurrent(layers)
        place = OnDevice(find_target(recipe.target), meter)
        try:
            found = measure_on_device(
                own_shapes(layers),
                LatencyTable(layers, prunable, sparse=True).wanted(),
                meter,
                place.runtime,
                stages,
                most_networks=TIMED_BUILDS,
            )
        except DeviceError as e:
            return f"table       not measured: {e}"
    networks = math.ceil(found.asked / PER_NETWORK)
    each = sum(found.seconds) / len(found.seconds)
    bound = recipe.table_time_s or TABLE_SECONDS
    line = (
        f"table       {found.asked} shapes of layers in {networks} networks on {told['device']}: about "
        f"{networks * each / 60:.1f} min by {len(found.seconds)} that were built and timed"
    )
    if networks * each > bound:
        line += (
            f"; --table-time {bound / 60:g}m leaves the finer ones out, which are estimated then"
        )
    return line
