"""The latency table on planted times: what it predicts, what it costs, and where the solver goes."""

from __future__ import annotations

import numpy as np
import pytest
from edgeml.compress.latency_table import LatencyTable, Prunable, flops_table, trace_layers
from edgeml.compress.layer_times import LayerShape
from edgeml.compress.prune_groups import Group
from edgeml.compress.steer_solve import Worth, lowest, put_back, solve_to, without_removed
from edgeml.compress.steer_structure import comparable


def conv(inputs: int, outputs: int) -> LayerShape:
    return LayerShape("conv", inputs, outputs, (8, 8), (3, 3))


def planted(shape: LayerShape) -> float:
    """Vectors of 16 channels: a part of one costs as much as the whole."""
    return 0.01 * -(-shape.inputs // 16) * -(-shape.outputs // 16) + 0.002


def residual_table() -> LatencyTable:
    """A stem and two blocks of two convolutions on a stream of 64 channels."""
    layers = {"stem": conv(3, 64)}
    stream = [("stem", "out", 1)]
    groups = {}
    for i in range(2):
        layers |= {f"blocks.{i}.a": conv(64, 64), f"blocks.{i}.b": conv(64, 64)}
        stream += [(f"blocks.{i}.a", "in", 1), (f"blocks.{i}.b", "out", 1)]
        inner = ((f"blocks.{i}.a", "out", 1), (f"blocks.{i}.b", "in", 1))
        groups[f"blocks.{i}.a"] = Prunable(f"blocks.{i}.a", "channels", 64, inner, f"blocks.{i}")
    groups["stem"] = Prunable("stem", "channels", 64, tuple(stream))
    groups |= {f"blocks.{i}": Prunable(f"blocks.{i}", "block", 1) for i in range(2)}
    return LatencyTable(layers, groups, time_shape=planted)


def worth_of(table: LatencyTable, block: float = 1.0) -> Worth:
    rng = np.random.default_rng(0)
    return Worth(
        {
            name: np.array([block]) if g.kind == "block" else rng.random(g.size)
            for name, g in table.groups.items()
        }
    )


def test_a_prediction_is_the_sum_of_what_is_left():
    table = residual_table()
    whole = planted(conv(3, 64)) + 4 * planted(conv(64, 64))
    assert table.predict({}) == pytest.approx(whole)
    half = planted(conv(3, 64)) + 2 * planted(conv(64, 32)) + 2 * planted(conv(64, 64))
    assert table.predict({"blocks.0.a": 32}) == pytest.approx(half)
    stream = planted(conv(3, 32)) + 4 * planted(conv(32, 64))
    assert table.predict({"stem": 32}) == pytest.approx(stream)
    one = planted(conv(3, 64)) + 2 * planted(conv(64, 64))
    assert table.predict({"blocks.1": 0}) == pytest.approx(one)


def test_costs_of_single_changes_are_exact():
    table = residual_table()
    for kept in ({}, {"stem": 32, "blocks.0.a": 16}):
        base, costs = table.costs(kept)
        full = {n: kept.get(n, g.size) for n, g in table.groups.items()}
        for name, by_level in costs.items():
            for level, cost in by_level.items():
                wanted = table.predict({**kept, name: level})
                others = sum(costs[n][full[n]] for n in costs if n != name)
                if name in ("blocks.0", "blocks.1") and not level:
                    others -= costs[f"{name}.a"][full[f"{name}.a"]]
                assert base + cost + others == pytest.approx(wanted)


def test_shapes_are_measured_once():
    asked = []
    table = residual_table()
    table.time_shape = lambda shape: asked.append(shape.key) or 1.0
    table.predict({})
    table.predict({"blocks.0.a": 32})
    assert len(asked) == len(set(asked)) == 4


def test_a_measured_engine_corrects_the_table():
    table = residual_table()
    table.fixed_ms = 0.01
    error = table.correct({}, 2 * table.predict({}))
    assert error == pytest.approx(1.0)
    predicted = table.predict({"stem": 32})
    assert table.correct({"stem": 32}, predicted) == pytest.approx(0)


@pytest.mark.parametrize("share", [0.8, 0.6, 0.4, 0.25])
def test_the_solver_meets_the_target_and_no_more(share):
    table = residual_table()
    worth = worth_of(table, block=3.0)
    target = share * table.predict({})
    kept = solve_to(table, worth, target)
    assert table.predict(kept) <= target * (1 + 1e-6)
    added, again = put_back(table, kept)[0]
    assert added >= 0 or table.predict(again) <= target
    undone = [
        k for _, k in put_back(table, kept) if worth.total(table, k) > worth.total(table, kept)
    ]
    # What could be put back for nothing would have been kept.
    assert all(table.predict(k) > table.predict(kept) - 1e-9 for k in undone)


def test_channels_that_cost_nothing_are_kept():
    table = residual_table()
    kept = solve_to(table, worth_of(table, block=100.0), 0.5 * table.predict({}))
    widths = [units for name, units in kept.items() if table.groups[name].kind != "block"]
    assert all(units % 16 == 0 for units in widths)


def test_a_worthless_block_goes_first():
    table = residual_table()
    groups = [
        Group(n, g.kind, g.size, np.full(g.size, 1e-6 if n == "blocks.1" else 1.0), ())
        for n, g in table.groups.items()
    ]
    worth = Worth(comparable(groups, table.groups))
    kept = solve_to(table, worth, 0.55 * table.predict({}))
    assert kept["blocks.1"] == 0 and kept["blocks.0"] == 1
    # What lies in a block shares what skipping it costs.
    assert worth.importance["blocks.1.a"].sum() == pytest.approx(1e-6)
    assert worth.importance["blocks.0.a"].sum() == pytest.approx(1.0)


def test_an_impossible_target_gives_nothing():
    table = residual_table()
    assert solve_to(table, worth_of(table), 1e-6) is None
    least = table.predict(lowest(table))
    assert solve_to(table, worth_of(table), least * 1.01) is not None


def test_a_group_inside_a_removed_block_is_left_out():
    table = residual_table()
    kept = without_removed(table, {"blocks.0": 0, "blocks.0.a": 16, "stem": 32})
    assert "blocks.0.a" not in kept and kept["stem"] == 32 and kept["blocks.1.a"] == 64


def test_bytes_are_a_limit_of_their_own():
    table = residual_table()
    sizes = table.sizes(250_000)
    assert sizes.predict({}) == pytest.approx(250_000)
    worth = Worth(worth_of(table).importance, max_bytes=120_000, sizes=sizes)
    kept = solve_to(table, worth, float("inf"))
    assert 90_000 < sizes.predict(kept) <= 121_000


def test_flops_are_another_prediction():
    table = residual_table()
    flops = flops_table(table)
    assert flops.predict({"stem": 32}) < 0.6 * flops.predict({})


def test_layers_are_traced_with_their_shapes():
    import torch
    from torch import nn

    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    ).eval()
    found = trace_layers(net, {"input": torch.zeros(1, 3, 8, 8)})
    assert found["0"] == LayerShape("conv", 3, 8, (8, 8), (3, 3), (2, 2))
    assert found["1"].depthwise and found["1"].macs == 16 * 8 * 9
    assert found["3"] == LayerShape("linear", 128, 5, (1, 1))


def test_a_family_that_is_known_well_enough_is_not_measured_further(monkeypatch):
    asked = []

    def product(shape, threads, empty):
        asked.append(shape.key)
        return shape.inputs * shape.outputs * 1e-4

    monkeypatch.setattr("edgeml.compress.latency_table.time_layer", product)
    monkeypatch.setattr("edgeml.compress.latency_table.MOST_SHAPES", 1)
    table = LatencyTable({"a": conv(64, 64)}, {})
    for channels in range(8, 72, 8):
        table.layer_ms(conv(channels, 64))
        table.layer_ms(conv(64, channels))
    table.layer_ms(conv(32, 32))
    measured = len(asked)
    assert table.layer_ms(conv(24, 40)) == pytest.approx(24 * 40 * 1e-4)
    assert len(asked) == measured
    again = LatencyTable({"a": conv(64, 64)}, {})
    again.remember(table.times)
    assert again.layer_ms(conv(32, 32)) == table.layer_ms(conv(32, 32)) and len(asked) == measured


def test_a_layer_that_holds_a_group_twice_is_cut_twice():
    """Queries, keys and values of one dense layer are three slices of one axis."""
    layers = {
        "qkv": LayerShape("linear", 64, 192, (1, 8)),
        "out": LayerShape("linear", 64, 64, (1, 8)),
    }
    members = (("qkv", "out", 1),) * 3 + (("out", "in", 1),)
    table = LatencyTable(
        layers, {"heads": Prunable("heads", "hidden", 64, members)}, time_shape=planted
    )
    base, costs = table.costs({})
    assert base + costs["heads"][32] + costs["heads"][64] == pytest.approx(
        table.predict({"heads": 32})
    )


def test_a_layer_called_by_names_is_traced():
    import torch
    from torch import nn

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(4, 3)

        def forward(self, x):
            return self.dense(input=x)

    layers = trace_layers(Named(), {"x": torch.zeros(1, 4)})
    assert layers["dense"] == LayerShape("linear", 4, 3, (1, 1))
