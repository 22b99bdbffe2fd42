"""Structured pruning of torch networks: what is found, that it is right, and that it can be redone."""

from __future__ import annotations

import copy
import inspect
import json
import sys

import numpy as np
import pytest
import torch
from edgeml.compress.prune_graph import TimeLimit, within
from edgeml.compress.prune_groups import find_groups
from edgeml.compress.prune_model import apply_history, history_of, prune
from edgeml.errors import InputError, MissingPart, ModelError
from edgeml.train.zoo.catalogue import build_zoo
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[5, 9, 3, 2, 7], [8, 1, 4, 0, 0], [6, 6, 0, 0, 0]])


class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.bn, self.c = nn.BatchNorm2d(14), nn.Conv2d(14, 6, 1)
        self.fc = nn.Linear(6 * 64, 5)

    def forward(self, x):
        a = F.relu(self.a(x))
        y = self.bn(torch.cat([a, F.relu(self.b(a))], 1))
        return self.fc(F.relu(self.c(y)).flatten(1))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.g = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.t = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(F.relu(self.t(F.relu(self.g(F.relu(self.a(x)))))).mean((2, 3)))


class Gated(nn.Module):
    """The two halves of `a` meet again."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        p, q = self.a(x).chunk(2, 1)
        return self.fc(F.relu(self.b(p * torch.sigmoid(q))).mean((2, 3)))


def mobilenet():
    net = build_zoo("mobilenetv2", {"width": 0.2, "size": 32})
    net.train()
    for _ in range(5):  # at random weights it collapses (FACTS)
        net(torch.randn(4, 3, 8, 8))
    return net


NETWORKS = {
    "resnet": lambda: (build_zoo("resnet20", {"width": 4}), IMAGES),
    "concat": lambda: (Concat(), IMAGES),
    "grouped": lambda: (Grouped(), IMAGES),
    "gated": lambda: (Gated(), IMAGES),
    "mobilenet": lambda: (mobilenet(), IMAGES),
    "transformer": lambda: (build_zoo("transformer", {"vocabulary": 12, "width": 16}), TOKENS),
    "lstm": lambda: (build_zoo("rnn", {"vocabulary": 12, "hidden": 8, "embedding": 6}), TOKENS),
    "gru": lambda: (
        build_zoo("rnn", {"vocabulary": 12, "hidden": 8, "cell": "gru", "bidirectional": False}),
        TOKENS,
    ),
}


@pytest.fixture(scope="module")
def found():
    """Each network with random but lively weights, its inputs and groups."""
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            net, inputs = NETWORKS[name]()
            for part in net.modules():
                if isinstance(part, nn.BatchNorm2d):
                    nn.init.uniform_(part.weight, 0.5, 1.5)
                    nn.init.normal_(part.bias)
            made[name] = (net.eval(), inputs, find_groups(net, inputs))
        return made[name]

    return get


def kinds(groups):
    return {group.name: group.kind for group in groups}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_history_on_a_fresh_network_and_the_weights_give_exactly_the_pruned_one(
    found, name, tmp_path
):
    net, inputs, groups = found(name)
    pruned, history = prune(net, inputs, ratio=0.5, groups=groups)
    save_file(pruned.state_dict(), tmp_path / "w.safetensors")
    history = json.loads(json.dumps(history))
    fresh = apply_history(NETWORKS[name]()[0].eval(), inputs, history)
    fresh.load_state_dict(load_file(tmp_path / "w.safetensors"))
    with torch.no_grad():
        assert torch.equal(fresh(inputs), pruned(inputs))
        assert pruned(inputs).shape == net(inputs).shape
    assert sum(p.numel() for p in pruned.parameters()) < 0.7 * sum(
        p.numel() for p in net.parameters()
    )


@pytest.mark.parametrize("name", ["resnet", "transformer", "lstm"])
def test_pruned_networks_export_and_run_as_any_other(found, name, tmp_path):
    from edgeml.export.onnx_graph import to_onnx
    from edgeml.runtime.engine import EngineOptions, load_file

    if name == "resnet":  # a block a stage: a third of the nodes to export
        net, inputs = build_zoo("resnet20", {"width": 4, "blocks": 1}).eval(), IMAGES
        groups = find_groups(net, inputs)
    else:
        net, inputs, groups = found(name)
    keep = {g.name: max(1, g.size // 2) for g in groups if g.kind != "block"}
    last = [g.name for g in groups if g.kind == "block"][-1:]
    pruned, _ = prune(net, inputs, keep=keep | dict.fromkeys(last, 0), groups=groups)
    (word,) = inspect.signature(net.forward).parameters
    to_onnx(pruned, {word: inputs.numpy()}, tmp_path / "net.onnx")
    with torch.no_grad():
        expected = pruned(inputs).numpy()
    with load_file(tmp_path / "net.onnx", "openvino", EngineOptions(threads=1)) as engine:
        (row,) = engine.run({word: inputs.numpy()[:1]}).values()
    assert np.allclose(row, expected[:1], rtol=2e-2, atol=2e-2 * np.abs(expected).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_history_on_the_trained_network_gives_exactly_the_pruned_one(found, name):
    net, inputs, groups = found(name)
    pruned, history = prune(net, inputs, ratio=0.3, groups=groups)
    again = apply_history(copy.deepcopy(net), None, history)
    for key, value in pruned.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


def test_channels_that_are_added_are_one_group(found):
    _, _, groups = found("resnet")
    stage = next(g for g in groups if g.name == "layer2.0.conv2")
    assert {"layer2.0.conv2", "layer2.1.conv2", "layer2.2.conv2", "layer3.0.conv1"} <= set(
        stage.members
    )
    # The option-A shortcut keeps the widths of the stages independent of each other.
    assert "layer1.0.conv2" not in stage.members


def test_a_network_with_option_a_shortcuts_computes_what_its_masked_original_does(found):
    net, inputs, _ = found("resnet")
    pruned, _ = prune(net, inputs, keep={"layer2.0.conv2": [1, 2, 5], "conv1": [0, 3]})
    masked = {"layer2": ([0, 3, 4, 6, 7], net.layer3), "conv1": ([1, 2], net.layer1)}
    with torch.no_grad():
        x = net.relu(net.bn1(net.conv1(inputs)))
        for layer, gone in ((net.layer1, [1, 2]), (net.layer2, masked["layer2"][0])):
            for block in layer:
                if block is layer[0] and layer is net.layer1:
                    x[:, gone] = 0
                x = block(x)
                x[:, gone] = 0
        expected = net.linear(torch.flatten(net.pool(net.layer3(x)), 1))
        assert torch.allclose(pruned(inputs), expected, atol=1e-4)


def test_blocks_are_those_that_keep_their_shape(found):
    _, _, groups = found("resnet")
    blocks = [g.name for g in groups if g.kind == "block"]
    assert blocks == [
        "layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2",
    ]  # fmt: skip
    assert {g.name for g in found("transformer")[2] if g.kind == "block"} == {
        "layers.0",
        "layers.1",
    }


def test_a_removed_block_takes_its_inner_channels_with_it(found):
    net, inputs, groups = found("resnet")
    pruned, history = prune(
        net, inputs, keep={"layer1.1": 0, "layer1.1.conv1": 2, "conv1": 3}, groups=groups
    )
    assert [entry["op"] for entry in history] == ["block", "channels"]
    with torch.no_grad():
        assert pruned(inputs).shape == (2, 10)
    assert not list(pruned.layer1[1].parameters())


def test_rounds_of_pruning_append_to_one_history(found):
    net, inputs, groups = found("resnet")
    once, first = prune(net, inputs, keep={"conv1": 3, "layer2.1": 0}, groups=groups)
    twice, second = prune(once, inputs, keep={"conv1": 2, "layer3.1.conv1": 7})
    again = apply_history(NETWORKS["resnet"]()[0].eval(), inputs, first + second)
    again.load_state_dict(twice.state_dict())
    with torch.no_grad():
        assert torch.equal(again(inputs), twice(inputs))


def test_a_concatenation_meets_two_groups_in_one_axis(found):
    net, inputs, groups = found("concat")
    pruned, _ = prune(net, inputs, keep={"a": [1, 7], "b": [0, 5]}, groups=groups)
    assert torch.equal(pruned.c.weight, net.c.weight[:, [1, 7, 8, 13]])
    assert torch.equal(pruned.bn.weight, net.bn.weight[[1, 7, 8, 13]])


@pytest.mark.parametrize("name", NETWORKS)
def test_names_are_unique(found, name):
    names = [g.name for g in found(name)[2]]
    assert len(set(names)) == len(names)


def test_kinds_are_told_apart(found):
    assert kinds(found("transformer")[2])["layers.0.up"] == "hidden"
    assert kinds(found("transformer")[2])["layers.0.heads"] == "heads"
    assert kinds(found("lstm")[2]) == {"forward_rnn": "rnn_hidden", "backward_rnn": "rnn_hidden"}
    assert kinds(found("concat")[2])["a"] == "channels"


def test_heads_go_whole_and_the_forward_knows(found):
    net, inputs, groups = found("transformer")
    heads, size = [g for g in groups if g.kind == "heads"][:2]
    history = history_of([heads], {heads.name: [0, 3]})
    pruned = apply_history(NETWORKS["transformer"]()[0].eval(), inputs, history)
    assert (pruned.layers[0].heads, net.layers[0].heads) == (2, 4)
    assert pruned.layers[0].query_key_value.out_features == 3 * 2 * 4
    narrow, _ = prune(net, inputs, keep={size.name: 3}, groups=groups)
    assert (narrow.layers[0].heads, narrow.layers[0].head_size) == (4, 3)


def test_grouped_convolutions_keep_the_same_places_of_each_group(found):
    net, inputs, groups = found("grouped")
    sizes = {g.name: g.size for g in groups}
    assert (sizes["a"], sizes["g"]) == (4, 8)
    pruned, _ = prune(net, inputs, keep={"a": 3, "g": 5}, groups=groups)
    assert (pruned.g.in_channels, pruned.g.out_channels, pruned.g.groups) == (12, 20, 4)


def test_a_multi_layer_bidirectional_lstm_is_cut_in_all_its_parts():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(5, 6, num_layers=2, bidirectional=True, batch_first=True)
            self.fc = nn.Linear(12, 3)

        def forward(self, x):
            return self.fc(self.rnn(x)[0][:, -1])

    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(2, 4, 5)
    pruned, _ = prune(net, x, keep={"rnn": 4})
    assert (pruned.rnn.hidden_size, pruned.fc.in_features) == (4, 8)
    assert pruned.rnn.weight_ih_l1_reverse.shape == (16, 8)


def test_the_original_stays_as_it_was(found):
    net, inputs, _ = found("concat")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    grads = [p.requires_grad for p in net.parameters()]
    prune(net, inputs, ratio=0.5)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == grads
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


class BareShortcut(nn.Module):
    """He et al.'s option A, written in the forward: Torch-Pruning 1.6.1 fails on it (FACTS)."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)
        self.stride, self.grown = stride, width - channels

    def forward(self, x):
        y = self.conv2(F.relu(self.conv1(x)))
        if self.stride > 1:
            half = self.grown // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.grown - half))
        return F.relu(x + y)


def test_bare_option_a_shortcuts_leave_inner_channels_and_blocks():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        BareShortcut(4, 4, 1),
        BareShortcut(4, 8, 2),
        BareShortcut(8, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    notes = []
    groups = find_groups(net, IMAGES, log=notes.append)
    assert {(g.name, g.kind) for g in groups} == {
        ("1.conv1", "channels"),
        ("2.conv1", "channels"),
        ("3.conv1", "channels"),
        ("1", "block"),
        ("3", "block"),
    }
    assert notes and all("\n" not in note for note in notes)


def test_torch_encoder_layers_lose_hidden_units_and_say_why_the_stream_stays():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    net = nn.Sequential(nn.Linear(5, 8), layer, nn.Linear(8, 3)).eval()
    notes = []
    groups = find_groups(net, torch.randn(2, 4, 5), log=notes.append)
    assert {(g.name, g.kind) for g in groups} == {("1.linear1", "hidden"), ("1", "block")}
    assert any("MultiheadAttention has no out axis" in note for note in notes)


class Squeeze(nn.Module):
    """Squeeze and excitation, and two outputs."""

    def __init__(self):
        super().__init__()
        self.a, self.down, self.up = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.b, self.c = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return {"boxes": self.b(x), "classes": self.c(x)}


def test_gates_follow_the_channels_that_they_scale_and_outputs_stay():
    torch.manual_seed(0)
    groups = find_groups(Squeeze(), IMAGES)
    assert {(g.name, g.size) for g in groups} == {("a", 8), ("down", 4)}
    assert set(groups[0].members) == {"a", "down", "up", "b", "c"}


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.a(x)
        return self.b(x) if x.sum() > 0 else self.b(-x)


class Reshaped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.a(x).mean((2, 3)).reshape(-1, 2, 4).transpose(1, 2).reshape(-1, 8))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize(
    ("net", "inputs", "told"),
    [
        ("net.onnx", IMAGES, "quantization works on ONNX alone"),
        (Branches(), torch.ones(2, 8), "decides by its data which way to go"),
        (Reshaped(), IMAGES, "nothing that can be pruned"),
        (Tied(), torch.ones(2, 8), "shares its weights"),
        (nn.Linear(3, 3), torch.ones(2, 3), "nothing that can be pruned"),
        (nn.Linear(3, 3), torch.ones(2, 4), "does not run on the example inputs"),
    ],
)
def test_what_cannot_be_pruned_is_one_line(net, inputs, told):
    with pytest.raises(InputError, match=told) as error:
        prune(net, inputs, ratio=0.5)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"keep": {"conv2": 3}}, "did you mean conv1"),
        ({"keep": {"conv1": 0}}, "has 4 units and cannot keep 0"),
        ({"keep": {"conv1": [0, 4]}}, "units 0 to 3"),
        ({"ratio": 1.5}, "between 0 and 1"),
        ({}, "either keep"),
        ({"ratio": 0.5, "importance": "taylor"}, "needs a loss and batches"),
    ],
)
def test_wrong_requests_are_one_line(found, how, told):
    net, inputs, groups = found("resnet")
    with pytest.raises(InputError, match=told):
        prune(net, inputs, groups=None if "importance" in how else groups, **how)


def test_pruning_that_removes_nothing_is_an_error(found):
    net, inputs, groups = found("resnet")
    with pytest.raises(Exception, match="removed nothing"):
        prune(net, inputs, keep={"conv1": 4}, groups=groups)


def test_a_history_of_another_network_is_told(found):
    net, inputs, groups = found("resnet")
    _, history = prune(net, inputs, keep={"conv1": 2}, groups=groups)
    with pytest.raises(ModelError, match=r"entry 0 .conv1. does not fit Concat"):
        apply_history(Concat(), IMAGES, history)


def test_without_torch_pruning_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingPart, match=r"edgeml-toolchain\[prune\]"):
        find_groups(Concat(), IMAGES)


def test_what_never_ends_is_stopped():
    stopped = []

    def endless():
        try:
            while True:
                pass
        except TimeLimit:
            stopped.append(True)

    with pytest.raises(TimeLimit):
        within(0.05, endless)
    assert stopped


def test_importance_prefers_the_larger_weights():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        for unit, scale in enumerate([3.0, 0.1, 2.0, 0.2]):
            net[0].weight[unit] = scale
            net[2].weight[:, unit] = scale
    (group,) = find_groups(net, torch.ones(2, 3))
    assert group.best(2) == [0, 2]
    assert np.isclose(group.importance.mean(), 1)
