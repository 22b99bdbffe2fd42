"""One process or several: what the loop asks of Lightning Fabric, and the plain form of it.

Several processes are started by torchrun; each trains on its share of every global batch.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, InputError, MissingPart, one_line
from .batches import Batch

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


class OneProcess:
    """This process alone: nothing is shared, nothing is wrapped."""

    rank, world = 0, 1

    def setup(self, module: nn.Module, make: MakeOptimizer) -> tuple[Any, Any]:
        """The module to call in a step, and the optimizer of its parameters."""
        return module, make(module)

    def collect(self, trained: Any, module: nn.Module) -> None:
        """Bring `module`, which is whole in every process, to where `trained` is."""

    def share(self, batch: Batch) -> Batch:
        """This process's part of a global batch."""
        return batch

    def backward(self, loss: Tensor, share: int, whole: int) -> None:
        """Gradients of the mean over the global batch, of which this process has `share` samples."""
        loss.backward()

    def sums(self, *values: float) -> list[float]:
        """Each value added up over all processes."""
        return list(values)

    def first_says(self, value: Any) -> Any:
        """The first process's value, for decisions that must be one."""
        return value

    def clip(self, module: Any, optimizer: Any, norm: float) -> None:
        nn.utils.clip_grad_norm_(module.parameters(), norm)


class FabricProcesses:
    """The processes that torchrun started, data parallel by Lightning Fabric (gloo on CPU).

    Raises:
        MissingPart: lightning-fabric is not installed.
    """

    def _strategy(self) -> Any:
        return "ddp"

    def __init__(self) -> None:
        try:
            from lightning_fabric import Fabric
        except ImportError as e:
            raise MissingPart(
                f"several processes need lightning-fabric ({one_line(e)}): "
                "pip install -c constraints.txt 'edgeml-toolchain[train]'"
            ) from e
        _end_with_parent()
        self._fabric = Fabric(
            accelerator="cpu",
            devices=int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])),
            num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),
            strategy=self._strategy(),
        )
        self._fabric.launch()
        self.rank, self.world = self._fabric.global_rank, self._fabric.world_size

    def setup(self, module: nn.Module, make: MakeOptimizer) -> tuple[Any, Any]:
        return self._fabric.setup(module, make(module))

    def collect(self, trained: Any, module: nn.Module) -> None:
        """Nothing: a step changes `module` itself, in every process alike."""

    def share(self, batch: Batch) -> Batch:
        inputs, targets = batch
        mine = slice(self.rank, None, self.world)
        return {name: tensor[mine] for name, tensor in inputs.items()}, targets[mine]

    def backward(self, loss: Tensor, share: int, whole: int) -> None:
        # DDP averages over processes; shares of unequal size must count by their samples.
        self._fabric.backward(loss * (share * self.world / whole))

    def sums(self, *values: float) -> list[float]:
        total = self._fabric.all_reduce(torch.tensor(values, dtype=torch.float64), reduce_op="sum")
        return total.tolist()

    def first_says(self, value: Any) -> Any:
        return self._fabric.broadcast(value)

    def clip(self, module: Any, optimizer: Any, norm: float) -> None:
        self._fabric.clip_gradients(module, optimizer, max_norm=norm)


class ShardedProcesses(FabricProcesses):
    """As above, with weights, gradients and the optimizer's state split over the processes (FSDP2).

    The split network is a copy. The one that was given stays whole in every process: it is brought
    up to date after each epoch, for validation and checkpoints, which so hold whole weights. That
    costs each process the weights once more, and neither gradients nor optimizer state.
    """

    def _strategy(self) -> Any:
        from lightning_fabric.strategies import ModelParallelStrategy

        world = int(os.environ["WORLD_SIZE"])
        return ModelParallelStrategy(_shard, data_parallel_size=world, tensor_parallel_size=1)

    def setup(self, module: nn.Module, make: MakeOptimizer) -> tuple[Any, Any]:
        # Fabric wants the split module before the optimizer, whose parameters are then shards.
        split = copy.deepcopy(module)
        for parameter in split.parameters():  # FSDP splits no other memory format
            parameter.data = parameter.data.contiguous()
        trained = self._fabric.setup_module(split)
        return trained, self._fabric.setup_optimizers(make(trained))

    def collect(self, trained: Any, module: nn.Module) -> None:
        with torch.no_grad():
            split = trained.state_dict()
            for name, tensor in module.state_dict().items():
                if isinstance(tensor, Tensor):
                    tensor.copy_(whole_tensor(split[name]))
            # Each process has counted its own batches: the first one's statistics are everyone's,
            # as under DDP.
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)


def _shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Split every block of a list of blocks on its own, so that only one is whole at a time, then
    what is left (tied weights stay together in it)."""
    from torch.distributed.fsdp import fully_shard

    blocks = [
        block
        for part in module.modules()
        if isinstance(part, nn.ModuleList | nn.Sequential) and part is not module
        for block in part
        # A list has no forward to gather its weights at.
        if not isinstance(block, nn.ModuleList | nn.ModuleDict)
        and any(True for _ in block.parameters())
    ]
    for block in reversed(dict.fromkeys(blocks)):  # each once, the inner ones first
        fully_shard(block, mesh=mesh["data_parallel"])
    return fully_shard(module, mesh=mesh["data_parallel"])


def whole_tensor(tensor: Tensor) -> Tensor:
    """A split tensor put together (every process must ask); another one as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def split_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor split as `parameter` is, where that is split and has its shape."""
    if not hasattr(parameter, "full_tensor") or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)


def _end_with_parent() -> None:
    """End this process when torchrun is gone: killed, it leaves its workers behind, and they wait for
    each other or for its store half an hour (gloo's time limit) or for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # the checkpoint on disk is whole at any moment; cleaning up would wait again

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def check_shares(samples: int, batch: int, world: int) -> None:
    """Refuse batches, the last one of an epoch included, that leave a process without a sample.

    Raises:
        DataError: it would.
    """
    smallest = min(batch, samples % batch or batch)
    if smallest < world:
        raise DataError(
            f"a batch of {smallest} cannot be shared by {world} processes; use another --batch"
        )


def processes_here(fully_shard: bool = False) -> OneProcess | FabricProcesses:
    """What torchrun's environment says, or this process alone.

    Raises:
        InputError: `fully_shard` in one process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return ShardedProcesses() if fully_shard else FabricProcesses()
    if fully_shard:
        raise InputError(
            "--fully-shard splits a network over processes; start them by "
            "torchrun --nproc-per-node=2 -m edgeml train …"
        )
    return OneProcess()
