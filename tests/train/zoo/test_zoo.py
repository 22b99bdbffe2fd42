"""Every network of the zoo: shapes, exact sizes, export with an open batch axis, published weights."""

import doctest
import importlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from edgeml.errors import InputError, ModelError
from edgeml.export.onnx_graph import to_onnx
from edgeml.runtime.engine import EngineOptions, load_file
from edgeml.train.weights import load_weights
from edgeml.train.zoo.catalogue import ZOO, build_zoo, zoo_options

SMALL = {
    "cnn": {"channels": 3},
    "resnet20": {"width": 8},
    "mobilenetv2": {"width": 0.35, "size": 32},
    "rnn": {"vocabulary": 50},
    "transformer": {"vocabulary": 50, "max_length": 12},
}
LENGTHS = (12, 1, 5, 9, 3)


def inputs_of(name, n=5):
    random = np.random.default_rng(0)
    if ZOO[name].takes == "text":
        tokens = random.integers(1, 50, (n, 12))
        for row, length in zip(tokens, LENGTHS, strict=True):
            row[length:] = 0
        return {"tokens": tokens}
    size = {"mobilenetv2": 32}.get(name, ZOO[name].size)
    return {"x": random.normal(size=(n, 3, size, size)).astype(np.float32)}


def outputs_of(module, inputs):
    with torch.no_grad():
        return module(**{k: torch.from_numpy(v) for k, v in inputs.items()}).numpy()


@pytest.mark.parametrize("file", ["resnet", "cnn", "mobilenetv2"])
def test_networks_have_the_published_number_of_parameters(file):
    module = importlib.import_module(f"edgeml.train.zoo.{file}")
    assert doctest.testmod(module) == (0, 1)


@pytest.mark.parametrize("name", SMALL)
def test_an_exported_network_computes_what_torch_does(name, tmp_path):
    torch.manual_seed(0)
    module = build_zoo(name, SMALL[name])
    inputs = inputs_of(name)
    module(**{k: torch.from_numpy(v) for k, v in inputs.items()})  # batch norms see something
    module.eval()
    info = to_onnx(module, {k: v[:2] for k, v in inputs.items()}, tmp_path / "m.onnx")
    assert info.inputs[0].shape[0] is None and not info.notes
    shapes = tuple((k, v.shape) for k, v in inputs.items())
    options = EngineOptions(batch=5, input_shapes=shapes)
    expected = outputs_of(module, inputs)
    for runtime in ("onnxruntime", "openvino"):
        with load_file(tmp_path / "m.onnx", runtime, options) as engine:
            found = engine.run(inputs)["output"]
        assert np.abs(found - expected).max() < 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("options", [
    {"cell": "lstm", "bidirectional": True}, {"cell": "gru", "bidirectional": False},
    {"pool": "last"},
])  # fmt: skip
def test_padding_changes_nothing_for_a_recurrent_network(options):
    torch.manual_seed(0)
    module = build_zoo("rnn", {"vocabulary": 50, **options}).eval()
    inputs = inputs_of("rnn")
    together = outputs_of(module, inputs)
    for row, length, expected in zip(inputs["tokens"], LENGTHS, together, strict=True):
        alone = outputs_of(module, {"tokens": row[None, :length]})
        assert np.abs(alone - expected).max() < 1e-5


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_both_directions_equal_torchs_own_packed_lstm(pool):
    torch.manual_seed(0)
    module = build_zoo("rnn", {"vocabulary": 50, "pool": pool}).eval()
    packed = torch.nn.LSTM(64, 64, batch_first=True, bidirectional=True)
    for name, tensor in module.forward_rnn.named_parameters():
        getattr(packed, name).data.copy_(tensor)
    for name, tensor in module.backward_rnn.named_parameters():
        getattr(packed, f"{name}_reverse").data.copy_(tensor)
    tokens = torch.from_numpy(inputs_of("rnn")["tokens"])
    sequence = torch.nn.utils.rnn.pack_padded_sequence(
        module.embedding(tokens), list(LENGTHS), batch_first=True, enforce_sorted=False
    )
    with torch.no_grad():
        outputs, (hidden, _) = packed(sequence)
        states, lengths = torch.nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True)
        read = {"mean": states.sum(1) / lengths[:, None], "last": torch.cat([*hidden], 1)}[pool]
        expected = module.dense(read)
        assert (module(tokens) - expected).abs().max() < 1e-5


def test_padding_changes_nothing_for_a_transformer():
    torch.manual_seed(0)
    module = build_zoo("transformer", SMALL["transformer"]).eval()
    tokens = inputs_of("transformer")["tokens"]
    together = outputs_of(module, {"tokens": tokens})
    alone = outputs_of(module, {"tokens": tokens[2:3, :5]})
    assert np.abs(alone - together[2]).max() < 1e-5


def test_depth_width_and_blocks_vary_a_resnet():
    sizes = {name: sum(p.numel() for p in build_zoo(name).parameters()) for name in
             ("resnet20", "resnet32", "resnet44", "resnet56")}  # fmt: skip
    # He et al. 2015, table 6: 0.27, 0.46, 0.66, 0.85 million.
    assert [round(n / 1e6, 2) for n in sizes.values()] == [0.27, 0.46, 0.66, 0.85]
    assert build_zoo("resnet20", {"width": 8, "classes": 3}).linear.weight.shape == (3, 32)
    assert len(build_zoo("resnet20", {"blocks": (1, 2, 3)}).layer3) == 3


def test_unknown_names_options_and_values_are_refused():
    with pytest.raises(ModelError, match="did you mean resnet20"):
        build_zoo("resnet-20")
    with pytest.raises(ModelError, match="did you mean width"):
        build_zoo("resnet20", {"widht": 8})
    with pytest.raises(ModelError, match="'eight' is no int"):
        build_zoo("resnet20", {"width": "eight"})
    for name, wrong in {
        "cnn": {"size": 9},
        "resnet20": {"width": 0},
        "rnn": {"pool": "first"},
        "transformer": {"width": 10},
        "mobilenetv2": {"width": 0.0},
    }.items():
        with pytest.raises(InputError):
            build_zoo(name, wrong)
    assert zoo_options("resnet20") == {"width": 16, "blocks": None, "classes": 10, "channels": 3}


@pytest.mark.skipif(not os.environ.get("EDGEML_DATA"), reason="needs the published weights")
@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_published_weights_load(name):
    folder = Path(os.environ["EDGEML_DATA"]) / "models/cifar10-resnet"
    load_weights(build_zoo(name), folder / f"{name}.safetensors")
