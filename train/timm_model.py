"""``timm:NAME``: an image network of timm, built without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import MissingPart, ModelError, nearest, one_line


def timm_library(name: str) -> Any:
    """The library, which knows the network `name`.

    Raises:
        MissingPart: timm is not installed.
        ModelError: it has no such network; the nearest is told.
    """
    try:
        import timm
    except (ImportError, RuntimeError) as e:  # a torchvision of another torch raises RuntimeError
        raise MissingPart(
            f"timm:{name} needs timm, which does not import here ({one_line(e)}); install it under "
            "the constraints: pip install -c constraints.txt timm"
        ) from e
    if not timm.is_model(name):
        hint = nearest(name, timm.list_models())
        raise ModelError(
            one_line(ValueError(f"timm:{name} is no model of timm {timm.__version__}, {hint}"))
        )
    return timm


def build_timm(name: str, options: dict[str, Any] | None = None) -> Any:
    """The network with fresh weights (drawn from torch's current random state).

    Args:
        options: of ``timm.create_model``: num_classes, in_chans, drop_rate …

    Raises:
        ModelError: timm refuses an option.
    """
    timm = timm_library(name)
    try:
        # No download behind the user's back: weights come from --weights.
        return timm.create_model(name, pretrained=False, **(options or {}))
    except (TypeError, ValueError, RuntimeError, AssertionError) as e:
        raise ModelError(f"timm:{name} cannot be built with {options}: {one_line(e)}") from e


def load_timm_weights(module: Any, path: Path) -> bool:
    """Load a checkpoint into a network of timm; a head for another number of classes stays fresh.

    Returns:
        Whether the head stayed fresh.

    Raises:
        ModelError: the weights do not fit otherwise.
    """
    from .weights import copy_weights, read_safetensors

    stored = read_safetensors(path)
    state = module.state_dict()
    head = (getattr(module, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = (head,) if isinstance(head, str) else tuple(head)
    other = [
        key
        for key in stored
        if any(key.startswith(f"{name}.") for name in heads)
        and key in state
        and state[key].shape != stored[key].shape
    ]
    if other:
        stored |= {
            key: state[key] for key in state if key.startswith(tuple(f"{h}." for h in heads))
        }
    copy_weights(module, stored, path)
    return bool(other)
