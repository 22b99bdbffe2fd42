"""Weights from safetensors, checked key by key."""

import pytest
import torch
from edgeml.errors import ModelError
from edgeml.train.weights import check_finite, load_weights
from safetensors.torch import save_file, save_model
from torch import nn


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def saved(net, path, **changes):
    tensors = {**{k: v.clone() for k, v in net.state_dict().items()}, **changes}
    save_file({k: v for k, v in tensors.items() if v is not None}, path)
    return path


def test_weights_are_loaded_exactly(net, tmp_path):
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    load_weights(other, saved(net, tmp_path / "w.safetensors"))
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in other.state_dict().items())


def test_the_first_five_keys_that_differ_are_named(net, tmp_path):
    path = saved(
        net,
        tmp_path / "w.safetensors",
        **{
            "0.weight": torch.zeros(4, 7),
            "2.weight": torch.zeros(9, 4),
            "1.bias": None,
            "2.bias": None,
            "head.weight": torch.zeros(1),
            "head.bias": torch.zeros(1),
        },
    )
    before = net[0].bias.clone()
    with pytest.raises(ModelError) as caught:
        load_weights(net, path)
    line = str(caught.value)
    assert "0.weight has shape 4×7, the model's is 4×3" in line
    assert "1.bias is missing" in line
    assert "head.bias is unexpected" in line
    assert line.endswith("and 1 more")
    assert torch.equal(net[0].bias, before)


def test_a_missing_batch_counter_is_allowed_as_torch_allows_it(net, tmp_path):
    load_weights(net, saved(net, tmp_path / "w.safetensors", **{"1.num_batches_tracked": None}))


def test_tied_weights_may_be_stored_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    net, other = Tied(), Tied()
    save_model(net, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(other.head.weight, net.head.weight)


def test_nan_weights_are_named(net, tmp_path):
    bad = torch.zeros(4, 3)
    bad[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"NaN or infinite values: 0\.weight \(1 of 12\)"):
        load_weights(net, saved(net, tmp_path / "w.safetensors", **{"0.weight": bad}))
    net[2].bias.data[1] = torch.inf
    with pytest.raises(ModelError, match=r"net\.py:build holds .*2\.bias \(1 of 2\)"):
        check_finite(net, "net.py:build")


def test_an_infinite_buffer_is_a_mask_and_allowed(net):
    net.register_buffer("mask", torch.full((2,), -torch.inf))
    check_finite(net, "net")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".npz"])
def test_other_formats_are_refused_with_the_conversion(net, tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(ModelError, match=r"must be \.safetensors .*save_file"):
        load_weights(net, path)


@pytest.mark.parametrize("keep", [0, 5, 40, -10])
def test_missing_empty_or_truncated_files_are_one_line(net, tmp_path, keep):
    path = saved(net, tmp_path / "w.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"is empty|is cut short") as caught:
        load_weights(net, path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="no weights at"):
        load_weights(net, tmp_path / "none.safetensors")
