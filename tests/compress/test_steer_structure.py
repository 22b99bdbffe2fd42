"""One round's structure on a planted engine: it fits, and the cheapest removal put back does not."""

from __future__ import annotations

import copy

import pytest
import torch
from edgeml.compress.latency_table import LatencyTable, trace_layers
from edgeml.compress.layer_times import LayerShape
from edgeml.compress.prune_groups import find_groups
from edgeml.compress.steer_engine import Measured
from edgeml.compress.steer_solve import Worth
from edgeml.compress.steer_structure import MARGIN, comparable, find_structure, prunables
from edgeml.train.prune_history import replay
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(48, 32, 3, padding=1)

    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 32, 3), nn.Sequential(Block(), Block())
        # Next to no time and most of the weights.
        self.wide, self.head = nn.Linear(32, 512), nn.Linear(512, 64)

    def forward(self, x):
        y = self.blocks(torch.relu(self.stem(x))).mean((2, 3))
        return self.head(torch.relu(self.wide(y)))


def planted(shape: LayerShape) -> float:
    """A part of 16 channels costs as much as the whole."""
    return 0.001 + shape.macs / shape.outputs * 16 * -(-shape.outputs // 16) * 1e-9


FIXED_MS = 0.001


def engine_ms(net: nn.Module, x: torch.Tensor) -> float:
    """Not the table's own sum: the last word is the engine's."""
    return FIXED_MS + 1.2 * sum(map(planted, trace_layers(net, {"x": x[:1]}).values())) ** 1.1


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


def found_for(net, share=float("inf"), max_bytes=None):
    x = torch.zeros(2, 3, 10, 10)
    groups = find_groups(net, x, kinds=("channels", "hidden", "block"))
    layers = trace_layers(net, {"x": x[:1]})
    table = LatencyTable(layers, prunables(groups, layers), time_shape=planted, fixed_ms=FIXED_MS)
    base = engine_ms(net, x)
    table.correct({}, base)
    worth = Worth(comparable(groups, table.groups))
    whole = sum(p.numel() for p in net.parameters())
    if max_bytes is not None:
        worth = Worth(worth.importance, max_bytes * whole, table.sizes(whole))

    def measure(pruned, what):
        bytes_ = sum(p.numel() for p in pruned.parameters())
        return Measured(engine_ms(pruned, x) / base, bytes_)

    found = find_structure(net, groups, table, worth, share * base, measure, base, last=True)
    again = measure(replay(copy.deepcopy(net), found.history), {})
    assert (again.ratio, again.size_bytes) == (found.ratio, found.size_bytes)
    return found, whole


@pytest.mark.parametrize("share", [0.8, 0.5])
def test_it_fits_and_nothing_more_can_be_put_back(net, share):
    found, _ = found_for(net, share)
    assert found.ratio <= share * (1 - MARGIN)
    assert found.over is not None and found.over > share * (1 - MARGIN)
    assert found.removed and len(found.errors) <= 14


def test_bytes_are_put_back_where_bytes_are_the_limit(net):
    found, whole = found_for(net, max_bytes=0.7)
    # A level of the stream, the widest step here, holds 17 % of the weights.
    assert 0.53 * whole < found.size_bytes <= 0.7 * whole
    assert found.over is not None
