"""Multiply-accumulates of one layer, from its shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence


def conv_macs(output: Sequence[int], kernel: Sequence[int]) -> int:
    """A convolution's: every output element sums over `kernel`, [input channels of its group, *window].

    >>> conv_macs([1, 8, 16, 16], [3, 3, 3])
    55296
    """
    return math.prod(output) * math.prod(kernel)


def matmul_macs(output: Sequence[int], inner: int) -> int:
    """A matrix product's: every output element sums over the inner axis.

    >>> matmul_macs([1, 10], 64)
    640
    """
    return math.prod(output) * inner
