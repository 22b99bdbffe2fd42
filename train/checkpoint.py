"""Where a training stands, in one safetensors file that is whole or what it was an epoch before."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, one_line
from .execution import Execution
from .processes import split_like, whole_tensor
from .weights import write_safetensors


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    Attributes:
        number: counted from 1.
        loss: mean training loss over the samples.
        lr: the rate it ended with.
        samples_per_s: of training, validation not included.
        validation: what `validate` returned, or {}.
    """

    number: int
    loss: float
    lr: float
    seconds: float
    samples_per_s: float
    validation: dict[str, float] = field(default_factory=dict)


@dataclass
class Progress:
    """What a training has reached beside its weights.

    Attributes:
        epochs: those that are done.
        best_epoch: the one with the lowest validation loss; None without early stopping.
        best_weights: the module's state after it.
    """

    execution: Execution
    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def best_loss(self) -> float:
        """The lowest validation loss so far."""
        return (
            float("inf")
            if self.best_epoch is None
            else self.epochs[self.best_epoch - 1].validation["loss"]
        )


class Checkpoint:
    """A checkpoint file of one training.

    Args:
        path: ``….safetensors``.
        identity: everything the result depends on, by name: settings, hashes of code and data.
            A file with another identity is refused, and the message names what changed.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = Path(path)
        self._identity = json.loads(json.dumps(identity))  # as it will be read back

    def save(self, module: nn.Module, optimizer: dict[str, Tensor], progress: Progress) -> None:
        """Write all of it.

        Args:
            optimizer: from `optimizer_state`.

        Raises:
            EdgemlError: the disk is full; the checkpoint before stays.
        """
        groups = {
            "module": weights_of(module),
            "best": progress.best_weights,
            "optimizer": optimizer,
        }
        tensors = {
            f"{group}/{name}": _storable(tensor)
            for group, named in groups.items()
            for name, tensor in named.items()
        }
        record = {
            "identity": self._identity,
            "execution": progress.execution.values(),
            "epochs": [asdict(epoch) for epoch in progress.epochs],
            "best_epoch": progress.best_epoch,
        }
        write_safetensors(tensors, self.path, {"edgeml": json.dumps(record)})

    def load(self) -> tuple[Progress, dict[str, Tensor], dict[int, dict[str, Tensor]]] | None:
        """What was reached, the module's state, the optimizer's state by parameter; None: nothing.

        Raises:
            InputError: the file is damaged, or of a training with other code, data or settings.
        """
        if not self.path.is_file():
            return None
        record, tensors = _read(self.path)
        if changed := _changed(record["identity"], self._identity):
            raise InputError(
                f"{self.path.parent} was trained with other {changed}; "
                "train anew with another -o, or put it back as it was"
            )
        groups: dict[str, dict[str, Tensor]] = {"module": {}, "best": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = tensor
        optimizer: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups["optimizer"].items():
            index, _, key = name.partition(".")
            optimizer.setdefault(int(index), {})[key] = tensor
        progress = Progress(
            Execution(**record["execution"]),
            [Epoch(**epoch) for epoch in record["epochs"]],
            record["best_epoch"],
            groups["best"],
        )
        return progress, groups["module"], optimizer


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Momenta by ``PARAMETER.NAME``, whole: where they are split, every process must call this."""
    return {
        f"{index}.{key}": whole_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]
) -> None:
    """Put saved momenta back, split as the parameters are; rates and the like come from the
    settings."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    split = {
        index: {key: split_like(value, parameters[index]) for key, value in named.items()}
        for index, named in state.items()
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": split, "param_groups": groups})


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer of the state dict, tied ones under each of their names."""
    return {
        name: tensor.detach().clone()
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, Tensor)
    }


def _storable(tensor: Tensor) -> Tensor:
    # A clone has memory of its own, which safetensors asks for; it stores no memory format.
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            record = json.loads(file.metadata()["edgeml"])
            return record, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(
            f"the checkpoint {path} cannot be read ({one_line(e)}); remove it to start anew"
        ) from e


# What a name of an identity means to who reads that it changed.
_WORDS = {"code": "code or first weights"}


def _changed(was: dict[str, Any], now: dict[str, Any]) -> str:
    """The names of what differs, one level into dictionaries: ``settings (lr 0.1, now 0.2)``."""
    found = []
    for name in {**was, **now}:
        old, new = was.get(name), now.get(name)
        if old == new:
            continue
        shown = _WORDS.get(name, name)
        if isinstance(old, dict) and isinstance(new, dict):
            inner = [k for k in {**old, **new} if old.get(k) != new.get(k)]
            parts = ", ".join(f"{k} {old.get(k)}, now {new.get(k)}" for k in inner)
            found.append(f"{shown} ({parts})")
        else:
            found.append(shown)
    return ", ".join(found)
