"""Whether 2:4 sparsity makes anything faster on a target. It needs no torch: every plan asks."""

from __future__ import annotations

import re

from ..artifact.target import Target

# The first GPU generation with sparse tensor cores is Ampere, SM80.
FIRST_SPARSE = 80


def why_no_gain(target: Target) -> str | None:
    """Why 2:4 weights make nothing faster on a target; None where they may."""
    if not target.by_tensorrt:
        return (
            f"{target.name} runs {', '.join(target.runtimes)}, whose kernels multiply the zeros too"
        )
    number = re.sub(r"\D", "", target.compute_capability or "")
    if number and int(number) < FIRST_SPARSE:
        return f"{target.name} is {target.compute_capability}: sparse tensor cores came with SM80"
    return None
