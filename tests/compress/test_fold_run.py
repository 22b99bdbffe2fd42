"""``--fold-preprocess`` from end to end."""

from __future__ import annotations

import numpy as np
import pytest
from edgeml.artifact.recipe import build_recipe
from edgeml.compress.run_recipe import run_recipe
from PIL import Image

NET = """
import torch

def build():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(8, 4),
    )
"""


@pytest.fixture
def fold(tmp_path, fresh_cache):
    """A function: the rows of a run on noise in four folders, folded, fp32 only."""
    rng = np.random.default_rng(0)
    for i in range(40):
        folder = tmp_path / "photos" / str(i % 4)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")

    def run(model, out, **preprocess):
        values = {
            "model": str(model),
            "data": f"imagefolder:{tmp_path / 'photos'}",
            "preprocess": {"crop": 16, **preprocess},
            "fold_preprocess": True,
            "precisions": ["fp32"],
            "max_drop_points": 50,
        }
        return run_recipe(build_recipe(values), tmp_path / out, cache=fresh_cache).table.rows

    return run


def test_a_torch_network_is_the_reference_of_its_folded_graph(fold, tmp_path):
    (tmp_path / "net.py").write_text(NET)
    rows = fold(f"{tmp_path / 'net.py'}:build", "out", mean=[0.5], std=[0.2, 0.3, 0.4])
    assert {row.id for row in rows} >= {"torch-fp32", "openvino-fp32", "onnxruntime-fp32"}
    assert [row.reason for row in rows if row.status == "failed"] == []


def test_another_mean_is_another_graph_in_every_runtime(fold, small):
    for out, mean in (("a", 0.0), ("b", 0.5)):
        rows = fold(small["model"], out, mean=[mean])
        assert [row.reason for row in rows if row.status == "failed"] == []
