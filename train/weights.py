"""Weights from a safetensors file into a torch module, checked key by key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifact.atomic_file import replacing
from ..errors import ModelError, one_line

if TYPE_CHECKING:
    import torch

SHOWN = 5  # keys that differ, named in one message


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Copy the tensors of `path` into `module`; all fit, or nothing is changed.

    Tied weights may be stored once (as ``safetensors.torch.save_model`` does), and a batch norm's
    ``num_batches_tracked`` may be absent, as torch itself allows.

    Raises:
        ModelError: the file is missing, of another format, cut short or holds NaN; or its keys and
            shapes do not fit (the first five that differ are named).
    """
    copy_weights(module, read_safetensors(path), path)


def copy_weights(module: torch.nn.Module, stored: dict[str, torch.Tensor], path: Path) -> None:
    """What `load_weights` does, with tensors that were read from `path`."""
    state = {k: v for k, v in module.state_dict().items() if hasattr(v, "shape")}
    differences = _differences(state, stored)
    if differences:
        rest = len(differences) - SHOWN
        raise ModelError(
            f"{path} does not fit {type(module).__name__}: {'; '.join(differences[:SHOWN])}"
            + (f"; and {rest} more" if rest > 0 else "")
        )
    if bad := _not_finite(stored.items(), inf=True):
        raise ModelError(f"{path} holds NaN or infinite values: {bad}")
    module.load_state_dict(stored, strict=False)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, by name.

    Raises:
        ModelError: the file is missing, empty, cut short, or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix.lower() != ".safetensors":
        raise ModelError(
            f"{path}: weights must be .safetensors (a {path.suffix or 'nameless'} file can run "
            "code when it is read); convert it where you trust it: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'w.safetensors')"
        )
    if not path.is_file():
        raise ModelError(f"no weights at {path}")
    if path.stat().st_size == 0:
        raise ModelError(f"{path} is empty (0 bytes)")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as e:
        raise ModelError(
            f"{path} is no safetensors file, or is cut short ({path.stat().st_size:,} bytes): "
            f"{one_line(e)}"
        ) from e


def write_safetensors(
    tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """All of `tensors`, contiguous ones, in a file that is whole or what it was before.

    Raises:
        DiskFull: no space left.
        InputError: the place is not writable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as part:
        try:
            save_file(tensors, part, metadata)
        except SafetensorError as e:
            # What the system said is in the text alone: "… (os error 28)".
            if number := re.search(r"\(os error (\d+)\)", str(e)):
                raise OSError(int(number[1]), one_line(e), str(path)) from e
            raise


def check_finite(module: torch.nn.Module, where: str) -> None:
    """Refuse a module whose parameters hold NaN or infinity, or whose buffers hold NaN.

    (An infinite buffer is legitimate: attention masks are made of them.)

    Raises:
        ModelError: with the names, at most five.
    """
    from torch.nn.parameter import is_lazy

    if lazy := [name for name, p in module.named_parameters() if is_lazy(p)]:
        raise ModelError(f"{where}: {lazy[0]} has no shape yet (a lazy layer); run the module once")
    bad = _not_finite(module.named_parameters(), inf=True)
    bad = bad or _not_finite(module.named_buffers(), inf=False)
    if bad:
        raise ModelError(f"{where} holds NaN or infinite values: {bad}")


def _not_finite(tensors: object, inf: bool) -> str:
    names = []
    for name, tensor in tensors:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        wrong = tensor.isfinite().logical_not() if inf else tensor.isnan()
        if count := int(wrong.sum()):
            names.append(f"{name} ({count:,} of {tensor.numel():,})")
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" * (len(names) > SHOWN))


def _differences(state: dict[str, torch.Tensor], stored: dict[str, torch.Tensor]) -> list[str]:
    """What keeps `stored` from fitting, shapes first, in the module's order."""
    shapes, missing = [], []
    present = {_identity(state[key]) for key in stored if key in state}
    for key, tensor in state.items():
        if key in stored:
            if tensor.shape != stored[key].shape:
                shapes.append(
                    f"{key} has shape {_shape(stored[key])}, the model's is {_shape(tensor)}"
                )
        elif key.rpartition(".")[2] != "num_batches_tracked" and not (
            tensor.numel() and _identity(tensor) in present
        ):
            missing.append(f"{key} is missing")
    unexpected = [f"{key} is unexpected" for key in stored if key not in state]
    return _mixed(shapes, missing, unexpected)


def _mixed(*kinds: list[str]) -> list[str]:
    """The kinds in turn, so that the first five show missing and unexpected keys side by side."""
    longest = max(map(len, kinds))
    return [kind[i] for i in range(longest) for kind in kinds if i < len(kind)]


def _identity(tensor: torch.Tensor) -> tuple:
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
