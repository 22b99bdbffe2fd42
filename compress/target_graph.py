"""The graph that a TensorRT builds from, with its types, and the graph that stands for it in ONNX Runtime.

Two forms (``docs/nvidia.md``): for TensorRT 10 and later the types lie in the graph, FP16 outside Q/DQ; for 8.x it
stays fp32 at opset 17, and the builder's flags choose.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from ..artifact.tensorrt_versions import TensorRTVersion
from ..export.model_files import model_files
from .fp16_cast import RANGE_SAMPLES, cast_fp16, emulate_fp16, overflowing

GRAPH, NUMERICS = "model.onnx", "numerics.onnx"
SHOWN = 3  # nodes named in a line


@dataclass(frozen=True)
class TypedGraph:
    """What `write_typed_graph` wrote.

    Attributes:
        path: the graph that TensorRT builds from.
        numerics: what ONNX Runtime computes at its level BASIC in its stead, every result outside fp32 nodes
            rounded to FP16; `path` itself where nothing is FP16; None where it was not asked for.
        kept: node → why it is fp32, or (8.x) why it should be and cannot be told to.
        nodes: of the graph, constants not counted; 0 where none was cast.
        notes: what the user should read.
    """

    path: Path
    numerics: Path | None
    kept: dict[str, str] = field(default_factory=dict)
    nodes: int = 0
    notes: list[str] = field(default_factory=list)


def write_typed_graph(
    source: Path,
    directory: Path,
    version: TensorRTVersion,
    fp16: bool,
    samples: Iterable[Mapping[str, np.ndarray]] = (),
    numerics: bool = True,
) -> TypedGraph:
    """Write `source` as TensorRT `version` wants it into `directory`.

    Args:
        source: the fp32 graph, with Q/DQ or without.
        fp16: what is not quantized runs in FP16; needs `samples`.
        samples: real inputs ``{name: [1, …]}``, which show what overflows.
        numerics: also write the graph that stands for it.

    Raises:
        BuildError, ParityError: as `fp16_cast.cast_fp16`.
        MissingPart: onnxconverter-common or onnxruntime is not installed.
    """
    graph, emulation = directory / GRAPH, directory / NUMERICS
    if fp16 and version.strong:
        done = cast_fp16(source, graph, samples, emulation=emulation if numerics else None)
        notes = [f"FP16: {done.nodes - len(done.kept)} of {done.nodes} nodes"]
        notes += [f"fp32 {name}: {reason}" for name, reason in done.kept.items()]
        return TypedGraph(graph, emulation if numerics else None, done.kept, done.nodes, notes)
    if version.strong:
        for file in model_files(source):
            shutil.copyfile(file, directory / (GRAPH if file == source else file.name))
        return TypedGraph(graph, graph if numerics else None)
    import onnx

    from ..export.lint_fixes import mend

    mended = mend(source, version)
    onnx.save_model(mended.model, str(graph))
    notes = [f"rewritten: {rule} {count}×" for rule, count in mended.counts.items()]
    if not fp16 or not numerics:
        return TypedGraph(graph, graph if numerics else None, notes=notes)
    # The builder may run any layer in FP16, so that no node is spared in what stands for it.
    emulate_fp16(graph, emulation)
    far = overflowing(source, [dict(sample) for sample in islice(samples, RANGE_SAMPLES)])
    if far:
        named = "; ".join(f"{name} {reason}" for name, reason in list(far.items())[:SHOWN])
        notes.append(
            f"{len(far)} nodes come near FP16's end and TensorRT {version.name} chooses types itself "
            f"({named}): build without --fp16, or for TensorRT 10"
        )
    return TypedGraph(graph, emulation, far, notes=notes)
