"""What a device is, in the words of a target, of a table's `machine`, and of a key under which times are kept."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from .address import Address
from .probe import DeviceFacts


def target_of(facts: DeviceFacts, name: str) -> str:
    """The name of the target that the device is: its board's, else its kind of CPU.

    Args:
        name: of the device, for messages.

    Raises:
        InputError: TensorRT is there, but no board that the table knows.
    """
    if facts.board is not None:
        return facts.board.name
    if facts.tensorrt_builds:
        raise InputError(
            f"{name} is {facts.title}, a board that no target describes; give --target FILE.yaml, and deploy "
            "afterwards"
        )
    return "arm64" if facts.values.get("machine") in ("aarch64", "arm64") else "intel-cpu"


def machine_of(facts: DeviceFacts, name: str) -> dict[str, Any]:
    """The device in a table's `machine`."""
    names = ("machine", "jetpack", "l4t", "cuda", "cores", "power")
    return {
        "cpu": facts.title,
        "device": name,
        "emulated": facts.emulated,
        **{key: facts.values.get(key) for key in names},
        "tensorrt": facts.tensorrt,
        "onnxruntime": facts.values.get("onnxruntime"),
    }


def timing_state(facts: DeviceFacts, address: Address, steady_s: float) -> dict[str, Any]:
    """What a time there depends on beside the engine's file.

    The clocks are their limits, governor and whether they are pinned: what they are at a moment changes
    with the load, and none would ever be found again.
    """
    values = facts.values
    power, clocks = values.get("power") or {}, values.get("clocks") or {}
    names = ("machine", "cpu", "cores", "l4t", "jetpack", "cuda", "hostname", "onnxruntime")
    limits = ("gpu_max_mhz", "cpu_max_mhz", "locked", "governor")
    return {
        "device": str(address),
        "board": values.get("board"),
        **{name: values.get(name) for name in names},
        "tensorrt": values.get("tensorrt"),
        "power_mode": power.get("active"),
        "clocks": {name: clocks.get(name) for name in limits},
        "steady_s": steady_s,
    }
