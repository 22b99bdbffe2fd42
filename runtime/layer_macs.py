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


def recurrent_macs(sequence: Sequence[int], *weights: Sequence[int]) -> int:
    """A recurrent layer's: every step of every text meets each of its weights once.

    Args:
        sequence: its input, [steps, texts, features] in either order.
        weights: of the inputs and of the state, gates and directions included.

    >>> recurrent_macs([50, 1, 8], [1, 4 * 16, 8], [1, 4 * 16, 16])
    76800
    """
    return math.prod(sequence[:2]) * sum(map(math.prod, weights))
