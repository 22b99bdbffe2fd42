"""A pruned network kept as factory, history and weights: opened, exported, and refused when it does not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from edgeml.artifact.bundle import MANIFEST, write_manifest
from edgeml.artifact.manifest import Manifest
from edgeml.errors import ModelError
from edgeml.train.model_source import open_model
from edgeml.train.prune_history import cut, read_history, replay, write_history
from edgeml.train.trained_bundle import HISTORY, WEIGHTS
from edgeml.train.zoo.catalogue import build_zoo
from safetensors.torch import save_file
from torch import nn

HALF = [
    {"op": "block", "module": "layer1.1", "kept": []},
    {
        "op": "channels",
        "module": "layer1.0.conv1",
        "kept": [0, 3],
        "layers": [["layer1.0.conv1", "out"], ["layer1.0.bn1", "out"], ["layer1.0.conv2", "in"]],
    },
]


def zoo():
    torch.manual_seed(1)
    return build_zoo("resnet20", {"width": 4}).eval()


@pytest.fixture
def bundle(tmp_path):
    """A trained bundle of a pruned network, and the network."""
    root = tmp_path / "run"
    root.mkdir()
    module = replay(zoo(), HALF)
    save_file(module.state_dict(), root / WEIGHTS)
    write_history(root / HISTORY, HALF)
    manifest = Manifest(
        edgeml_version="0",
        created="2026-11-25T00:00:00+00:00",
        name="resnet20",
        model={
            "kind": "torch",
            "reference": "resnet20",
            "sha256": "0" * 64,
            "trained": {"zoo": "resnet20", "options": {"width": 4}},
            "user_code": None,
        },
        recipe={},
        data={"source": "digits"},
        seed=0,
        tools={},
        machine={},
        inputs=[{"name": "x", "shape": [None, 3, 32, 32], "dtype": "float32"}],
        outputs=[{"name": "output", "shape": [None, 10], "dtype": "float32"}],
        engines=[],
        shipped=None,
    )
    write_manifest(root, manifest)
    return root, module


def test_a_pruned_bundle_opens_as_the_same_network(bundle):
    root, module = bundle
    opened = open_model(str(root)).module
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(opened(x), module(x))


def test_a_pruned_bundle_exports_as_any_other(bundle, tmp_path):
    from edgeml.export.onnx_graph import to_onnx

    _, module = bundle
    # Both sides of an option-A shortcut, so that its channels are gathered.
    cut(module, "layer2.0.shortcut", "out", [0, 2, 3, 5, 6])
    module.layer2 = nn.Sequential(module.layer2[0].shortcut)
    module.layer3, module.linear = nn.Identity(), nn.Linear(5, 3)
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    to_onnx(module.eval(), {"x": x}, tmp_path / "m.onnx")  # verifies itself against the module


def test_a_history_that_does_not_fit_is_told():
    broken = [HALF[0], {**HALF[1], "kept": [0, 9]}]
    with pytest.raises(ModelError, match=r"entry 1 \(layer1.0.conv1\).*ascending numbers below 4"):
        replay(zoo(), broken)
    with pytest.raises(ModelError, match="entry 0"):
        replay(zoo(), [{"op": "grow", "module": "x", "kept": []}])
    with pytest.raises(ModelError, match="entry 0"):
        replay(zoo(), ["block"])


def test_a_damaged_history_file_is_told(tmp_path):
    (tmp_path / "h.json").write_text("{")
    with pytest.raises(ModelError, match="no pruning history"):
        read_history(tmp_path / "h.json")
    (tmp_path / "h.json").write_text(json.dumps({"op": "block"}))
    with pytest.raises(ModelError, match="list of operations"):
        read_history(tmp_path / "h.json")


def test_a_forward_only_reads_whole_numbers_from_a_history():
    entry = {"op": "heads", "module": "", "kept": [0], "layers": [], "set": {"": {"training": 1}}}
    with pytest.raises(ModelError, match="no whole number"):
        replay(zoo(), [entry])


@pytest.mark.parametrize(
    ("layer", "axis", "shape"),
    [
        (nn.Conv2d(6, 4, 3), "out", (2, 6, 3, 3)),
        (nn.Conv2d(6, 4, 3), "in", (4, 2, 3, 3)),
        (nn.ConvTranspose2d(6, 4, 3), "out", (6, 2, 3, 3)),
        (nn.Conv1d(6, 6, 3, groups=6), "out", (2, 1, 3)),
        (nn.Linear(6, 4), "in", (4, 2)),
        (nn.LayerNorm(6), "out", (2,)),
        (nn.GroupNorm(2, 6), "out", (2,)),
        (nn.PReLU(6), "out", (2,)),
        (nn.Embedding(9, 6), "out", (9, 2)),
    ],
)
def test_a_layer_keeps_the_positions_asked_for(layer, axis, shape):
    before = layer.weight.detach().clone()
    cut(nn.Sequential(layer), "0", axis, [0, 3])
    assert tuple(layer.weight.shape) == shape
    where = next(n for n, (a, b) in enumerate(zip(before.shape, shape, strict=True)) if a != b)
    assert torch.equal(layer.weight, before.index_select(where, torch.tensor([0, 3])))
    assert layer.weight.requires_grad


def test_an_lstm_without_some_units_computes_what_the_masked_one_does():
    torch.manual_seed(0)
    lstm, x = nn.LSTM(4, 6, num_layers=2, bidirectional=True), torch.randn(5, 2, 4)
    whole = nn.LSTM(4, 6, num_layers=2, bidirectional=True)
    whole.load_state_dict(lstm.state_dict())
    kept, gone = [0, 2, 5], [1, 3, 4]
    with torch.no_grad():
        for name, weight in whole.named_parameters():
            if name.startswith("weight_hh"):
                weight[:, gone] = 0
            elif name.startswith("weight_ih_l1"):
                weight[:, gone + [6 + g for g in gone]] = 0
        cut(nn.ModuleDict({"rnn": lstm}), "rnn", "hidden", kept)
        expected = whole(x)[0][..., kept + [6 + k for k in kept]]
        assert torch.allclose(lstm(x)[0], expected, atol=1e-6)


def test_the_manifest_lists_the_history(bundle):
    root, _ = bundle
    assert HISTORY in json.loads((root / MANIFEST).read_text())["files"]
