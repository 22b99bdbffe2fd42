"""Engines of a graph with intermediate tensors as outputs: what blame and layer noise look at."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..artifact.onnx_file import external_files, load_shape_tensors, read_onnx
from ..runtime.engine import Engine, EngineOptions, load_file

if TYPE_CHECKING:
    import onnx

# Intermediate outputs of one run, together: a deep network at 224×224 has about 100 MB a sample.
PROBED_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Probe:
    """One float tensor that a node computes, and what it takes to compare it."""

    tensor: str
    node: onnx.NodeProto
    value: onnx.ValueInfoProto
    size_bytes: int


def chunks(probes: Sequence[Probe]) -> Iterator[list[Probe]]:
    """The probes in order, in lists that together stay below `PROBED_BYTES` (or hold one)."""
    chunk: list[Probe] = []
    for probe in probes:
        if chunk and sum(p.size_bytes for p in chunk) + probe.size_bytes > PROBED_BYTES:
            yield chunk
            chunk = []
        chunk.append(probe)
    if chunk:
        yield chunk


def float_probes(onnx_path: Path, batch: int) -> list[Probe]:
    """Every float tensor that a node of the main graph computes, in the graph's order (ONNX demands
    a topological one), with its size at `batch`."""
    import onnx

    model = read_onnx(onnx_path)
    external_files(model, onnx_path)
    load_shape_tensors(model, onnx_path)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    values = {v.name: v for v in [*model.graph.value_info, *model.graph.output]}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    outputs = {v.name for v in model.graph.output}
    probes = []
    for node in model.graph.node:
        for tensor in node.output:
            value = values.get(tensor)
            if value is None or value.type.tensor_type.elem_type not in floats:
                continue
            if node.op_type == "Constant":
                continue
            lengths = [d.dim_value or batch for d in value.type.tensor_type.shape.dim]
            size = 0 if tensor in outputs else 4 * math.prod(lengths)
            probes.append(Probe(tensor, node, value, size))
    return probes


@contextlib.contextmanager
def probed_engine(
    onnx_path: Path, values: Sequence[onnx.ValueInfoProto], runtime: str, options: EngineOptions
) -> Iterator[Engine]:
    """An engine of a copy of the graph whose outputs include the tensors `values`."""
    import onnx

    model = read_onnx(onnx_path)
    data = external_files(model, onnx_path)
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(value for value in values if value.name not in present)
    with tempfile.TemporaryDirectory(prefix="edgeml-blame-") as folder:
        copy = Path(folder) / "model.onnx"
        onnx.save_model(model, copy)
        for file in data:
            beside = Path(folder) / file.relative_to(onnx_path.parent)
            beside.parent.mkdir(parents=True, exist_ok=True)
            _same_file(file, beside)
        with load_file(copy, runtime, options) as engine:
            yield engine


def _same_file(file: Path, beside: Path) -> None:
    try:
        os.link(file.resolve(), beside)  # gigabytes are not copied where the file system is one
    except OSError:
        shutil.copyfile(file, beside)


def batch_of(inputs: Sequence[Mapping[str, np.ndarray]]) -> int:
    """The largest batch among the inputs."""
    return max((len(v) for feed in inputs for v in feed.values() if np.ndim(v)), default=1)
