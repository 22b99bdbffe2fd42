"""The graph of a model without its weights: all that names files and shapes stays."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgeml.artifact.onnx_file import external_files, read_onnx
from edgeml.artifact.onnx_skeleton import read_skeleton
from edgeml.errors import ModelError
from onnx import helper


def _model(save_graph, path: Path, n: int) -> Path:
    weights = [("w", np.ones((n, 4), np.float32)), ("b", np.zeros(4, np.float32))]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    return save_graph(path, nodes, [("x", [1, n])], [("y", [1, 4])], weights)


def test_all_but_the_large_values_is_there(save_graph, tmp_path: Path) -> None:
    path = _model(save_graph, tmp_path / "m.onnx", 5000)
    whole, found = read_onnx(path), read_skeleton(path)
    assert [n.op_type for n in found.graph.node] == ["MatMul", "Add"]
    for tensor in whole.graph.initializer:
        if tensor.name == "w":
            tensor.ClearField("raw_data")
    assert found == whole


def test_its_memory_is_not_that_of_the_weights(save_graph, tmp_path: Path) -> None:
    path = _model(save_graph, tmp_path / "m.onnx", 2_000_000)
    read_skeleton(path)
    tracemalloc.start()
    read_skeleton(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6 < path.stat().st_size / 30


def test_external_data_is_named(save_graph, tmp_path: Path) -> None:
    path = _model(save_graph, tmp_path / "m.onnx", 5000)
    onnx.save_model(
        onnx.load_model(path), path, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    assert external_files(read_skeleton(path), path) == [tmp_path / "w.bin"]


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_what_is_damaged_is_told_as_by_the_whole_reader(
    save_graph, tmp_path: Path, damage: str
) -> None:
    path = _model(save_graph, tmp_path / "m.onnx", 5000)
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-7], "noise": b"\x07" * 50, "empty": b""}[damage])
    with pytest.raises(ModelError):
        read_skeleton(path)
