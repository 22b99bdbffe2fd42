"""One process or several: what the loop asks of Lightning Fabric, and the plain form of it.

Several processes are started by torchrun; each trains on its share of every global batch.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, MissingPart, one_line
from .batches import Batch


class OneProcess:
    """This process alone: nothing is shared, nothing is wrapped."""

    rank, world = 0, 1

    def setup(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        return module, optimizer

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
            strategy="ddp",
        )
        self._fabric.launch()
        self.rank, self.world = self._fabric.global_rank, self._fabric.world_size

    def setup(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        return self._fabric.setup(module, optimizer)

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


def processes_here() -> OneProcess | FabricProcesses:
    """What torchrun's environment says, or this process alone."""
    return FabricProcesses() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else OneProcess()
