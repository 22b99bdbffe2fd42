"""Whether what a device predicted belongs to the samples it was sent: every one of them, each once."""

from __future__ import annotations

from pathlib import Path

from ..errors import DeviceError, InputError
from ..runtime.device.tensor_file import Tensor, read_tensors, sample_hash, samples


def check_predictions(sent: Path, came: Path) -> None:
    """Hold a file of predictions against the samples it answers.

    Args:
        sent: a tensor file of ``NNN.input.NAME``.
        came: what the device made of it: ``NNN.output.NAME`` and ``NNN.sample.sha256``.

    Raises:
        DeviceError: a sample is missing, doubled or another one, or its outputs are not those of the others.
    """
    try:
        given, tensors = samples(read_tensors(str(sent)), "input"), read_tensors(str(came))
    except InputError as e:
        raise DeviceError(f"its predictions cannot be read: {e}") from e
    outputs, hashes = samples(tensors, "output"), samples(tensors, "sample")
    if set(outputs) != set(given):
        missing, more = len(set(given) - set(outputs)), len(set(outputs) - set(given))
        raise DeviceError(
            f"{len(given)} samples were sent; of {missing} no prediction came, and {more} that came are of none"
        )
    kinds = _kinds(next(iter(outputs.values()), {}))
    for number, feed in given.items():
        told = hashes.get(number, {}).get("sha256")
        if told is None or told.data != sample_hash(feed).data:
            raise DeviceError(f"prediction {number} is not of the sample that was sent as {number}")
        if _kinds(outputs[number]) != kinds:
            raise DeviceError(
                f"prediction {number} has outputs {_kinds(outputs[number])}, the first {kinds}"
            )


def _kinds(outputs: dict[str, Tensor]) -> dict[str, str]:
    """Output → type and number of axes; how long an axis is may depend on the sample."""
    return {name: f"{t.dtype}, {len(t.shape)} axes" for name, t in sorted(outputs.items())}
