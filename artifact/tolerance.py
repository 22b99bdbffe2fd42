"""How far an engine may be from its reference, by precision: here and on a device."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError, nearest


@dataclass(frozen=True)
class Tolerance:
    """How far a candidate may be from its reference.

    Attributes:
        max_rel: largest difference over the largest magnitude of that output; None: not judged.
        min_sqnr_db: least power of the output over that of the difference, in dB; None: not judged.
        max_differing: largest share of unequal elements of an integer output (an argmax may fall
            the other way at a tie), which the other two do not judge; None: not judged.
        warns_only: a miss is a warning; accuracy is judged on the engine instead.
        origin: where the numbers come from.
    """

    max_rel: float | None
    min_sqnr_db: float | None
    max_differing: float | None
    warns_only: bool
    origin: str


# SQNR of rounding to p bits of significand is about 6.02 p + 1.76 dB, and falls with depth.
TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(
        1e-3,
        60.0,
        0.01,
        False,
        "measured: ResNet-20 and -56, torch to ONNX Runtime to OpenVINO, 5e-7 and 128 dB; the rest "
        "is room for deeper graphs, and far below a fault",
    ),
    "fp16": Tolerance(
        None,
        30.0,
        0.05,
        False,
        "11 bits round at 68 dB; 30 dB is an error of 3 % of the output; an argmax flips less often "
        "than in bf16, and one of 32 may",
    ),
    "bf16": Tolerance(
        None,
        15.0,
        0.1,
        False,
        "8 bits round at 50 dB; measured: ResNet-20 41 dB, ResNet-56 40 dB in OpenVINO; 0.8 % of "
        "EfficientNet-Lite0's argmax flip on 1,300 images, and three of 32 may",
    ),
    "int8": Tolerance(
        None,
        5.0,
        0.25,
        True,
        "accuracy is scored on the engine; below 5 dB a layer has collapsed; 2.9 % of "
        "EfficientNet-Lite0's argmax flip on 1,300 images",
    ),
    "fp8": Tolerance(None, 5.0, 0.25, True, "as int8"),
    "int4": Tolerance(
        None, 0.0, 0.5, True, "measured: a relative error of 0.38 (8 dB) for group-128 weights"
    ),
}


@dataclass(frozen=True)
class Difference:
    """How far one tensor is from its reference, over all inputs.

    Attributes:
        name: the output.
        max_abs: the largest difference, in the output's unit.
        max_rel: `max_abs` over the largest magnitude of the reference's output.
        cosine: of the two, flattened over all inputs (1 where both are zero).
        sqnr_db: 10 log10(power of the reference / power of the difference); inf when equal.
        differing: the share of unequal elements, for an integer output; None for a float one.
        problem: a difference no tolerance covers (NaN, shape), or None.
    """

    name: str
    max_abs: float
    max_rel: float
    cosine: float
    sqnr_db: float
    differing: float | None = None
    problem: str | None = None

    def within(self, tolerance: Tolerance) -> bool:
        """Whether the numbers (not `problem`) stay inside `tolerance`."""
        if self.differing is not None:
            return tolerance.max_differing is None or self.differing <= tolerance.max_differing
        return (tolerance.max_rel is None or self.max_rel <= tolerance.max_rel) and (
            tolerance.min_sqnr_db is None or self.sqnr_db >= tolerance.min_sqnr_db
        )


def tolerance_for(precision: str) -> Tolerance:
    """The row of `TOLERANCES`.

    Raises:
        InputError: there is none for this precision.
    """
    if precision not in TOLERANCES:
        raise InputError(f"no tolerance for {precision!r}, {nearest(precision, TOLERANCES)}")
    return TOLERANCES[precision]
