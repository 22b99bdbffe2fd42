"""The solver finds what trying all finds."""

from __future__ import annotations

from itertools import product

import pytest
from edgeml.compress.solve_budget import Option, solve
from hypothesis import given, settings
from hypothesis import strategies as st

numbers = st.integers(0, 20)
options = st.lists(st.builds(Option, numbers, st.tuples(numbers, numbers)), min_size=1, max_size=4)


def brute_force(groups, limits, inside):
    """The most value within the limits, None where nothing fits."""
    best = None
    names = list(groups)
    for choice in product(*(range(len(groups[n])) for n in names)):
        chosen = dict(zip(names, choice, strict=True))
        alive = {
            n: i
            for n, i in chosen.items()
            if n not in inside or chosen[inside[n]] == len(groups[inside[n]]) - 1
        }
        cost = [sum(groups[n][i].costs[k] for n, i in alive.items()) for k in range(len(limits))]
        if all(c <= limit for c, limit in zip(cost, limits, strict=True)):
            value = sum(groups[n][i].value for n, i in alive.items())
            best = value if best is None else max(best, value)
    return best


@settings(deadline=None, max_examples=60)
@given(
    st.lists(options, min_size=1, max_size=4),
    st.tuples(st.integers(0, 60), st.integers(0, 60)),
    st.booleans(),
)
def test_it_keeps_as_much_as_trying_all(lists, limits, with_block):
    groups = {f"g{i}": tuple(found) for i, found in enumerate(lists)}
    inside = {}
    if with_block:
        groups = {"block": (Option(0, (0, 0)), Option(3, (1, 1))), **groups}
        inside = {"g0": "block"}
    found = solve(groups, limits, inside, gap=0)
    wanted = brute_force(groups, limits, inside)
    if wanted is None:
        assert found is None
        return
    assert sum(groups[n][i].value for n, i in found.items()) == pytest.approx(wanted)
    for k, limit in enumerate(limits):
        assert sum(groups[n][i].costs[k] for n, i in found.items()) <= limit + 1e-6


def test_a_group_inside_a_removed_block_costs_nothing():
    groups = {
        "block": (Option(0, (0,)), Option(1, (0,))),
        "inner": (Option(1, (5,)), Option(2, (9,))),
        "outer": (Option(0, (1,)), Option(10, (6,))),
    }
    assert solve(groups, [6], {"inner": "block"}) == {"block": 0, "outer": 1}
    assert solve(groups, [15], {"inner": "block"}) == {"block": 1, "inner": 1, "outer": 1}
    assert solve(groups, [0], {"inner": "block"}) is None


def test_nothing_of_the_solver_reaches_stdout(capfd):
    import ctypes

    from edgeml.compress.solve_budget import _no_printing

    libc = ctypes.CDLL(None)
    with _no_printing():
        libc.printf(b"debugging")
    libc.printf(b"result")
    libc.fflush(None)
    assert capfd.readouterr().out == "result"
