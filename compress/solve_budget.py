"""What to keep: the most importance subject to limits, a multiple-choice knapsack solved by HiGHS.

The formulation is HALP's (Shen et al. 2022, arXiv:2110.10811, section 3.2) with two additions:
several limits at once, and groups that lie in a block that may be removed as a whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import EdgemlError

# A solution within this share of the optimum is as good as the importances are.
GAP = 1e-4
TIME_LIMIT_S = 20.0


@dataclass(frozen=True)
class Option:
    """One way to keep a group.

    Attributes:
        value: the importance it keeps.
        costs: what it needs of each limit, in the limit's unit; may be negative.
    """

    value: float
    costs: tuple[float, ...]


def solve(
    groups: Mapping[str, Sequence[Option]],
    limits: Sequence[float],
    inside: Mapping[str, str] | None = None,
    *,
    gap: float = GAP,
) -> dict[str, int] | None:
    """Choose an option of every group so that the most value is kept within the limits.

    Args:
        groups: options by group. Of a block the first option removes it, the last keeps it.
        limits: upper limits of the summed costs.
        inside: group → the block it lies in; while that is removed the group has no option at all
            and costs nothing.
        gap: how far from the optimum the answer may be, relative; 0 is exact.

    Returns:
        The index of the chosen option by group, without the groups inside removed blocks; None
        where nothing fits the limits.

    Raises:
        EdgemlError: the solver found nothing in its time.

    >>> two = [Option(0, (1,)), Option(5, (3,))]
    >>> solve({"a": two, "b": [Option(0, (1,)), Option(4, (2,))]}, [4])
    {'a': 1, 'b': 0}
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import lil_matrix

    inside = inside or {}
    columns = [(name, i) for name, options in groups.items() for i in range(len(options))]
    at = {column: j for j, column in enumerate(columns)}
    if not columns:
        return {} if all(limit >= 0 for limit in limits) else None
    value = np.array([groups[name][i].value for name, i in columns])
    one = lil_matrix((len(groups), len(columns)))
    right = np.ones(len(groups))
    for row, (name, options) in enumerate(groups.items()):
        for i in range(len(options)):
            one[row, at[name, i]] = 1
        if name in inside:  # one of its options exactly where the block is kept
            block = inside[name]
            one[row, at[block, len(groups[block]) - 1]] = -1
            right[row] = 0
    cost = np.array([groups[name][i].costs for name, i in columns], dtype=float).T
    constraints = [LinearConstraint(one.tocsr(), right, right)]
    if len(limits):
        constraints.append(
            LinearConstraint(cost.reshape(len(limits), -1), -np.inf, np.asarray(limits, float))
        )
    # HiGHS's tolerances are absolute: values are brought to one scale.
    scale = np.abs(value).max() or 1.0
    with _no_printing():
        result = milp(
            -value / scale,
            integrality=np.ones(len(columns)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": gap, "time_limit": TIME_LIMIT_S},
        )
    if result.x is None:
        if result.status == 2:  # infeasible
            return None
        raise EdgemlError(f"the solver gave no answer: {result.message}")
    return {name: i for (name, i), x in zip(columns, result.x, strict=True) if x > 0.5}


@contextlib.contextmanager
def _no_printing() -> Iterator[None]:
    """HiGHS (as in SciPy 1.17.1) prints lines of its debugging to stdout, where ``--json -`` puts results."""
    libc, kept = ctypes.CDLL(None), os.dup(1)
    sys.stdout.flush()
    libc.fflush(None)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        libc.fflush(None)  # what C holds back would come out afterwards
        os.dup2(kept, 1)
        os.close(nowhere)
        os.close(kept)
