"""Torch to ONNX: named, dynamic, checked, quiet, and the module left as it was."""

import logging

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from edgeml.errors import BuildError, ModelError
from edgeml.export import to_onnx
from edgeml.export.onnx_graph import forward_inputs
from torch import nn


class Net(nn.Module):
    """Convolution, batch norm, dropout, linear."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 4)

    def forward(self, image):
        return self.fc(self.drop(torch.relu(self.bn(self.conv(image))).mean((2, 3))))


class TwoInTwoOut(nn.Module):
    def forward(self, a, b):
        return {"difference": a - b, "product": a * b}


class BatchAsConstant(nn.Module):
    def forward(self, x):
        return x * int(x.shape[0])


class DataDependent(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class NoOnnxForm(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x)


class FixedSecond(nn.Module):
    def forward(self, x):
        return x * 2, torch.ones(5, 4) + 1


def rand(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def run(path, feed):
    session = onnxruntime.InferenceSession(path)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))


def test_a_network_exports_as_it_is_in_eval_mode_with_an_open_batch(tmp_path, capfd):
    torch.manual_seed(0)
    net = Net()
    net.drop.eval()  # a mixed state must come back mixed
    with torch.no_grad():
        net(torch.randn(8, 3, 8, 8))  # batch norm has statistics of its own
    before = {k: v.clone() for k, v in net.state_dict().items()}
    info = to_onnx(net, {"image": rand(1, 3, 8, 8)}, tmp_path / "net.onnx")

    assert (info.inputs[0].name, info.inputs[0].shape) == ("image", (None, 3, 8, 8))
    assert (info.outputs[0].name, info.outputs[0].shape) == ("output", (None, 4))
    assert (info.opset, info.notes) == (20, ())
    assert (net.training, net.drop.training, net.fc.training) == (True, False, True)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.NOTSET

    feed = rand(5, 3, 8, 8)
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(feed)).numpy()
    np.testing.assert_allclose(run(info.path, {"image": feed})["output"], expected, atol=1e-6)

    model = onnx.load_model(info.path)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert any("name_scopes" in p.key for n in model.graph.node for p in n.metadata_props)
    assert __file__.encode() not in info.path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx"]


def test_names_follow_forward_whatever_the_order_of_the_examples(tmp_path):
    a, b = rand(2, 3), rand(2, 3) + 1
    info = to_onnx(TwoInTwoOut(), {"b": b, "a": a}, tmp_path / "m.onnx")
    assert [spec.name for spec in info.inputs] == ["a", "b"]
    got = run(info.path, {"a": a, "b": b})
    np.testing.assert_array_equal(got["difference"], a - b)
    np.testing.assert_array_equal(got["product"], a * b)


def test_a_single_input_takes_the_name_of_the_example(tmp_path):
    info = to_onnx(nn.Linear(3, 2), {"features": rand(2, 3)}, tmp_path / "m.onnx", ["logits"])
    assert (info.inputs[0].name, info.outputs[0].name) == ("features", "logits")


def test_a_batch_used_as_a_constant_is_exported_static_and_said(tmp_path):
    info = to_onnx(BatchAsConstant(), {"x": rand(1, 3)}, tmp_path / "m.onnx")
    assert info.inputs[0].shape == (1, 3)
    assert "the batch axis could not be left open, it is 1" in info.notes[0]


def test_an_output_that_does_not_grow_with_the_batch_is_noted(tmp_path):
    info = to_onnx(FixedSecond(), {"x": rand(1, 3)}, tmp_path / "m.onnx")
    assert [spec.name for spec in info.outputs] == ["output_0", "output_1"]
    assert info.notes == ("output output_1 does not grow with the batch: its first axis is fixed",)


def test_large_weights_go_to_a_file_beside(tmp_path):
    info = to_onnx(
        nn.Linear(64, 64), {"x": rand(1, 64)}, tmp_path / "m.onnx", external_over_bytes=9
    )
    assert info.has_external
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert run(info.path, {"x": rand(3, 64)})["output"].shape == (3, 64)


def test_an_operator_without_an_onnx_form_is_named(tmp_path):
    with pytest.raises(BuildError, match=r"NoOnnxForm: operator aten\.linalg_eig .*no ONNX form"):
        to_onnx(NoOnnxForm(), {"x": rand(1, 3, 3)}, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_traced_is_named_with_its_line(tmp_path):
    with pytest.raises(ModelError, match=r"DataDependent cannot be traced at test_onnx_graph\.py"):
        to_onnx(DataDependent(), {"x": rand(1, 3)}, tmp_path / "m.onnx")


def test_a_forward_that_fails_on_the_examples_says_so(tmp_path):
    net = nn.Linear(3, 2)
    with pytest.raises(ModelError, match=r"fails on the example inputs \(input 1×4\).*multiplied"):
        to_onnx(net, {"input": rand(1, 4)}, tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("feed", "line"),
    [
        ({}, "needs an example of each input"),
        ({"a": rand(1, 3)}, "input 'b' has no example"),
        ({"a": rand(1, 3), "c": rand(1, 3)}, "no input 'c', known: a, b"),
        ({"a": np.float32(1), "b": rand(1, 3)}, "'a' has no batch axis"),
    ],
)
def test_examples_that_do_not_fit_forward_are_named(tmp_path, feed, line):
    with pytest.raises(ModelError, match=line):
        to_onnx(TwoInTwoOut(), feed, tmp_path / "m.onnx")


def test_forward_inputs_are_those_without_a_default():
    class Net(nn.Module):
        def forward(self, ids, mask, scale=1.0, *rest, **more):
            return ids

    assert forward_inputs(Net()) == ["ids", "mask"]
