"""The contract of a compression step, and the one place where it is checked.

A step is an object with its options in ``__init__`` and ``step(model, calibration, directory) ->
StepResult``. `apply` checks what must hold before and after, so that success that did nothing
(FACTS: the commonest failure of quantizers) is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ..errors import BuildError, EdgemlError, one_line
from ..export.model_files import model_bytes
from .calibration import Calibration

# INT8 weights take a quarter of float32's bytes. In small files names and shapes outweigh them.
SAME_SIZE, SMALL_BYTES = 0.9, 2**20


@dataclass(frozen=True)
class StepResult:
    """What a step left behind.

    Attributes:
        path: the quantized model, `.xml` (with its `.bin`) or `.onnx`.
        quantizers: how many quantize operations it inserted.
        weights_bytes: size of the step's files.
        notes: what the user should know.
    """

    path: Path
    quantizers: int
    weights_bytes: int
    notes: list[str] = field(default_factory=list)


class QuantizationStep(Protocol):
    """One quantization route.

    Attributes:
        route: its name in tables, as in ``nncf performance``.
        runtimes: the runtimes that can execute what it makes.
        calibrates: whether it reads the calibration samples.
    """

    route: str
    runtimes: tuple[str, ...]
    calibrates: bool

    def settings(self) -> dict[str, Any]:
        """Everything the result depends on besides model and data, library versions included."""

    def __call__(self, model: Path, calibration: Calibration, directory: Path) -> StepResult:
        """Quantize the ONNX file `model` into `directory`."""


def apply(
    step: QuantizationStep, model: Path, calibration: Calibration, directory: Path
) -> StepResult:
    """Run a step and check that it did something.

    Raises:
        BuildError: the library failed, or it inserted no quantizer.
        InputError: the calibration data cannot be used.
    """
    try:
        result = step(model, calibration, directory)
    except EdgemlError:
        raise
    except Exception as e:  # the libraries raise anything; the row needs its one line
        raise BuildError(f"{step.route}: {type(e).__name__}: {one_line(e)}") from e
    if result.quantizers == 0:
        raise BuildError(
            f"{step.route} inserted no quantizer: it knows no operator of this network"
        )
    if not result.path.is_file():
        raise BuildError(f"{step.route} wrote no {result.path.name}")
    before = model_bytes(model)
    if before > SMALL_BYTES and result.weights_bytes > SAME_SIZE * before:
        note = f"the file is {result.weights_bytes / before:.0%} of the float one's size: most weights stayed in float"
        result = replace(result, notes=[*result.notes, note])
    return result
