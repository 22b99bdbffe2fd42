"""The mean of several trainings' weights."""

from __future__ import annotations

import pytest
import torch
from edgeml.errors import ModelError
from edgeml.train import average_weights
from safetensors.torch import load_file, save_file


def weights(path, value, **more):
    save_file({"w": torch.full((2, 3), value), "n": torch.tensor([7]), **more}, path)
    return path


def test_floats_are_averaged_and_counters_are_the_firsts(tmp_path):
    half = torch.tensor([1.0, 2.0], dtype=torch.float16)
    files = [weights(tmp_path / f"{i}.safetensors", float(i), half=half * i) for i in (0, 1, 5)]
    average_weights(files, tmp_path / "mean.safetensors")
    mean = load_file(tmp_path / "mean.safetensors")
    assert torch.equal(mean["w"], torch.full((2, 3), 2.0)) and mean["n"].item() == 7
    assert mean["half"].dtype == torch.float16 and mean["half"].tolist() == [2.0, 4.0]


def test_what_does_not_fit_is_one_line_and_writes_nothing(tmp_path):
    one = weights(tmp_path / "a.safetensors", 1.0)
    more = weights(tmp_path / "b.safetensors", 1.0, extra=torch.zeros(1))
    save_file({"w": torch.zeros(3, 2), "n": torch.tensor([7])}, tmp_path / "c.safetensors")
    out = tmp_path / "mean.safetensors"
    for files, says in (
        ([one], "two files at least"),
        ([one, more], "extra is in only one of"),
        ([one, tmp_path / "c.safetensors"], "w has another shape or type"),
        ([one, tmp_path / "none.safetensors"], "no weights at"),
    ):
        with pytest.raises(ModelError, match=says):
            average_weights(files, out)
        assert not out.exists()
    out.write_bytes(b"mine")
    with pytest.raises(ModelError, match="exists"):
        average_weights([one, one], out)
    assert out.read_bytes() == b"mine"
