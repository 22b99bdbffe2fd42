"""What units and blocks are worth: scores that equal the measured change where they can."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edgeml.compress.prune_groups import find_groups
from edgeml.compress.prune_model import prune
from edgeml.errors import InputError
from edgeml.train.zoo.catalogue import build_zoo
from torch import nn


def dot(module, inputs, targets):
    return (module(**inputs) * targets).sum(1).mean()


class TwoReaders(nn.Module):
    """A linear network whose middle is read twice: its loss is linear in every unit."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x):
        x = self.a(x)
        return self.b(x) + 2 * self.c(x)


def without(net, unit):
    with torch.no_grad():
        kept = [u for u in range(5) if u != unit]
        return prune(net, torch.ones(2, 3), keep={"a": kept})[0]


def test_taylor_of_a_linear_network_is_the_change_of_the_loss_itself():
    torch.manual_seed(0)
    net = TwoReaders()
    batches = [({"x": torch.randn(1, 3)}, torch.randn(1, 2)) for _ in range(3)]
    (group,) = find_groups(net, torch.ones(2, 3), importance="taylor", loss=dot, batches=batches)
    for unit in range(5):
        pruned = without(net, unit)
        changes = [abs(float((dot(pruned, *b) - dot(net, *b)).detach())) for b in batches]
        assert np.isclose(group.importance[unit], np.mean(changes), rtol=1e-4)


def test_taylor_does_not_depend_on_how_samples_are_batched():
    torch.manual_seed(0)
    net, x, y = TwoReaders(), torch.randn(6, 3), torch.randn(6, 2)
    scores = []
    for size in (1, 6):
        batches = [({"x": a}, b) for a, b in zip(x.split(size), y.split(size), strict=True)]
        groups = find_groups(net, x, importance="taylor", loss=dot, batches=batches)
        scores.append(groups[0].importance)
    assert np.allclose(*scores, rtol=1e-4)


def cross_entropy(module, inputs, targets):
    return nn.functional.cross_entropy(module(**inputs), targets)


@pytest.mark.parametrize("name", ["resnet20", "transformer", "rnn"])
def test_every_group_of_the_zoo_has_a_taylor_score(name):
    torch.manual_seed(0)
    options = {"resnet20": {"width": 4}, "transformer": {"width": 16}, "rnn": {"hidden": 6}}[name]
    text = name != "resnet20"
    net = build_zoo(name, {**options, **({"vocabulary": 12} if text else {})}).eval()
    x = torch.randint(1, 12, (4, 5)) if text else torch.randn(4, 3, 8, 8)
    batches = [({"tokens" if text else "x": x}, torch.tensor([0, 1, 2, 3]))]
    groups = find_groups(net, x, importance="taylor", loss=cross_entropy, batches=batches)
    for group in groups:
        assert group.importance.shape == (group.size,) and np.isfinite(group.importance).all()
        assert (group.importance >= 0).all()
        assert group.kind == "block" or group.importance.max() > 0, group.name
    assert not any(p.grad is not None for p in net.parameters())


def test_a_dead_unit_is_worth_nothing_by_any_score():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    net = nn.Sequential(*net, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1], net[3].weight[:, 1] = 0, 0, 0
        net[1].weight[1], net[1].bias[1] = 0, 0
    x = torch.randn(4, 3, 8, 8)
    batches = [({"input": x}, torch.tensor([0, 1, 0, 1]))]
    for importance in ("magnitude", "bn_scale", "taylor"):
        groups = find_groups(net, x, importance=importance, loss=cross_entropy, batches=batches)
        group = next(g for g in groups if g.name == "0")
        assert group.importance[1] == 0 and np.count_nonzero(group.importance) == 3


def test_bn_scale_reads_gamma():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        net[1].weight[:] = torch.tensor([0.1, -4.0, 2.0, 1.0])
    (group, *_) = find_groups(net, torch.randn(2, 3, 4, 4), importance="bn_scale")
    assert group.best(2) == [1, 2]


def test_a_block_is_worth_the_rise_of_the_loss_without_it():
    torch.manual_seed(0)
    net = build_zoo("resnet20", {"width": 4}).eval()
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    groups = find_groups(
        net, x, importance="taylor", loss=cross_entropy, batches=[({"x": x}, y)], kinds=["block"]
    )
    assert {g.kind for g in groups} == {"block"}
    block = groups[0]
    pruned, _ = prune(net, x, keep={block.name: 0}, groups=groups)
    with torch.no_grad():
        rise = float(cross_entropy(pruned, {"x": x}, y) - cross_entropy(net, {"x": x}, y))
    assert np.isclose(block.importance[0], max(0.0, rise), atol=1e-5)


def test_a_loss_that_is_not_finite_is_told():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    batches = [({"input": torch.full((2, 3), float("nan"))}, torch.tensor([0, 1]))]
    with pytest.raises(InputError, match="the loss is nan"):
        find_groups(net, torch.ones(2, 3), importance="taylor", loss=cross_entropy, batches=batches)
