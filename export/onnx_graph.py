"""Torch to ONNX by torch.export (dynamo), named, shaped, checked, and quiet."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact.atomic_file import (
    PREFIX,
    disk_errors,
    replacing,
    sync_directory,
    sync_tree,
)
from ..errors import BuildError, EdgemlError, MissingPart, ModelError, nearest, one_line
from .onnx_check import OnnxInfo, inspect_onnx

if TYPE_CHECKING:
    import onnx
    import torch

# 20 and not newer: from 23 on attention becomes one operator that TensorRT-RTX 1.7 cannot build.
OPSET = 20
# One protobuf message holds at most 2 GiB; the graph beside the weights needs some of it.
EXTERNAL_OVER_BYTES = 1_900_000_000
# Dropped from what torch writes into each node: source lines with this machine's paths, and copies.
DROPPED_METADATA = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node", "namespace")


def forward_inputs(module: torch.nn.Module) -> list[str]:
    """The names of the inputs that ``module.forward`` cannot do without, in order."""
    return [
        p.name
        for p in inspect.signature(module.forward).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


def to_onnx(
    module: torch.nn.Module,
    example_inputs: Mapping[str, np.ndarray],
    path: Path,
    output_names: Sequence[str] | None = None,
    opset: int = OPSET,
    dynamic_batch: bool = True,
    external_over_bytes: int = EXTERNAL_OVER_BYTES,
) -> OnnxInfo:
    """Export `module`, as it is in eval mode, to one ONNX file.

    Args:
        module: left as it was: training flags, parameters and buffers are not changed.
        example_inputs: an array ``[batch, …]`` an input, by the names of forward's parameters;
            where forward takes a single input, any name will do, and becomes the graph's.
        path: the file to write, at once (a reader never sees half of it).
        output_names: a name an output; by default the keys or field names of what forward returns,
            ``output`` for a single tensor, ``output_0, output_1 …`` for a tuple.
        opset: of the standard operators; verified in the result.
        dynamic_batch: leave axis 0 of every input open, named ``batch`` (one sample is enough: it
            is traced twice over). Where the model computes with the batch size as a constant, the
            export is static in the size of the examples, and a note in the result says so.
        external_over_bytes: weights beyond this go to ``<path>.data`` (one ONNX file holds 2 GB).

    Returns:
        What was written, checked by ``onnx.checker`` and shape inference; its `notes` say what did
        not go as asked.

    Raises:
        MissingPart: torch or onnxscript is not installed.
        ModelError: forward fails on the examples, or cannot be traced.
        BuildError: an operator has no ONNX form, or the file that came out is not sound.
    """
    torch = _import_torch()
    path = Path(path)
    feed, inputs = forward_feed(torch, module, example_inputs)
    with left_as_it_was(torch, module):
        outputs = list(output_names or _output_names(torch, module, feed))
        proto, notes = _export(torch, module, feed, inputs, outputs, opset, dynamic_batch)
    _tidy(proto)
    notes += _verify(proto, path, inputs, outputs, opset, dynamic_batch and not notes)
    return replace(write_onnx(proto, path, external_over_bytes), notes=tuple(notes))


def _import_torch() -> Any:
    try:
        import onnxscript  # noqa: F401  torch.onnx needs it, and says so late
        import torch
    except ImportError as e:
        raise MissingPart(
            f"exporting to ONNX needs torch and onnxscript ({one_line(e)}); install "
            "edgeml-toolchain[train]"
        ) from e
    return torch


@contextlib.contextmanager
def left_as_it_was(torch: Any, module: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every part has its training flag back, and every buffer its
    values (a forward pass may count or cache in one)."""
    training = {part: part.training for part in module.modules()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.eval()
    try:
        yield
    finally:
        for part, flag in training.items():
            part.training = flag
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name in buffers and not torch.equal(buffer, buffers[name]):
                    buffer.copy_(buffers[name])


# ---------------------------------------------------------------- inputs and outputs


def forward_feed(
    torch: Any, module: torch.nn.Module, examples: Mapping[str, np.ndarray]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The examples as tensors on the module's device, by forward's own parameter names and in its
    order; and the names they shall have in the graph, in the same order."""
    if not examples:
        raise ModelError(f"exporting {type(module).__name__} needs an example of each input")
    for name, array in examples.items():
        if np.ndim(array) == 0 or len(array) == 0:
            raise ModelError(f"the example of input {name!r} has no batch axis, or an empty one")
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    tensors = {k: torch.from_numpy(np.array(v)).to(device) for k, v in examples.items()}
    parameters = inspect.signature(module.forward).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    required = forward_inputs(module)
    if len(tensors) == 1 and not set(tensors) <= set(parameters):
        first = required or [n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
        if len(required) <= 1 and first:
            return dict(zip(first, tensors.values(), strict=False)), list(tensors)
    unknown = [] if open_ended else [name for name in tensors if name not in parameters]
    missing = [name for name in required if name not in tensors]
    if unknown or missing:
        what = (
            f"no input {unknown[0]!r}, {nearest(unknown[0], parameters)}"
            if unknown
            else f"input {missing[0]!r} has no example"
        )
        raise ModelError(f"{type(module).__name__}.forward: {what}")
    # Names are given to the graph's inputs by position: the order must be forward's.
    order = [n for n in parameters if n in tensors] + [n for n in tensors if n not in parameters]
    return {name: tensors[name] for name in order}, order


def _output_names(torch: Any, module: torch.nn.Module, feed: Mapping[str, Any]) -> list[str]:
    """Run forward once, and name what it returns."""
    from torch.utils import _pytree

    try:
        with torch.no_grad(), _quiet():
            result = module(**feed)
    except Exception as e:
        shapes = ", ".join(f"{n} {'×'.join(map(str, t.shape))}" for n, t in feed.items())
        raise ModelError(
            f"{type(module).__name__}.forward fails on the example inputs ({shapes}): "
            f"{type(e).__name__}: {one_line(e)}"
        ) from e
    if isinstance(result, torch.Tensor):
        return ["output"]
    leaves = [leaf for leaf in _pytree.tree_leaves(result) if leaf is not None]
    if not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise ModelError(
            f"{type(module).__name__}.forward returns {type(result).__name__}; it must return "
            "tensors, in a tuple or a dictionary"
        )
    fields = list(result) if isinstance(result, Mapping) else getattr(result, "_fields", None)
    if fields and len(fields) == len(leaves):
        return [str(name) for name in fields]
    return ["output"] if len(leaves) == 1 else [f"output_{i}" for i in range(len(leaves))]


# ---------------------------------------------------------------- the export


def _export(
    torch: Any,
    module: torch.nn.Module,
    feed: dict[str, torch.Tensor],
    input_names: list[str],
    output_names: list[str],
    opset: int,
    dynamic_batch: bool,
) -> tuple[onnx.ModelProto, list[str]]:
    """The graph, and a note where the batch axis could not be left open."""
    static_why = None
    if dynamic_batch:
        # torch.export takes an axis of length 1 for a constant, so it is traced with two samples.
        doubled = {k: torch.cat([t, t]) if t.shape[0] == 1 else t for k, t in feed.items()}
        shapes = {k: {0: torch.export.Dim("batch")} for k in feed}
        try:
            proto = _torch_export(torch, module, doubled, input_names, output_names, opset, shapes)
        except EdgemlError as e:
            static_why, failure = one_line(e), e
        else:
            if all(_axis_is_open(value) for value in proto.graph.input):
                return proto, []
            static_why, failure = "the model computes with it as a constant", None
    try:
        proto = _torch_export(torch, module, feed, input_names, output_names, opset, None)
    except EdgemlError:
        if dynamic_batch and failure is not None:
            raise failure from failure.__cause__
        raise
    if static_why is None:
        return proto, []
    batch = next(iter(feed.values())).shape[0]
    return proto, [f"the batch axis could not be left open, it is {batch}: {static_why}"]


def _torch_export(
    torch: Any,
    module: torch.nn.Module,
    feed: dict[str, torch.Tensor],
    input_names: list[str],
    output_names: list[str],
    opset: int,
    dynamic_shapes: dict | None,
) -> onnx.ModelProto:
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                module,
                (),
                kwargs=feed,
                input_names=input_names,
                output_names=output_names,
                opset_version=opset,
                dynamo=True,
                dynamic_shapes=dynamic_shapes,
                verbose=False,
            )
            return program.model_proto
    except Exception as e:
        raise _export_error(type(module).__name__, e) from e


def _export_error(name: str, error: BaseException) -> EdgemlError:
    """One line out of torch's page: the operator without an ONNX form, or the line of the model
    that cannot be traced."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    text = "\n".join(str(cause) for cause in causes)
    if found := re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text):
        node = re.search(r"Error when translating node (%\w+)", text)
        at = f" (node {node.group(1)})" if node else ""
        return BuildError(f"{name}: operator {found.group(1)}{at} has no ONNX form")
    reason = one_line(causes[-1])
    call = re.search(r'The following call raised this error:\s*File "([^"]+)", line (\d+)', text)
    at = f" at {Path(call.group(1)).name}:{call.group(2)}" if call else ""
    if type(error).__name__ == "TorchExportError":
        return ModelError(f"{name} cannot be traced{at}: {type(causes[-1]).__name__}: {reason}")
    return BuildError(f"{name} could not be exported to ONNX{at}: {reason}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of the exporter's prints, warnings and logs comes out; errors still raise."""
    sink = io.StringIO()
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # it warns of a missing torchvision in every export
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


# ---------------------------------------------------------------- the file


def _axis_is_open(value: onnx.ValueInfoProto) -> bool:
    dims = value.type.tensor_type.shape.dim
    return bool(dims) and bool(dims[0].dim_param)


def _tidy(proto: onnx.ModelProto) -> None:
    """Keep of torch's metadata what names the module of each node; drop this machine's paths."""
    for node in proto.graph.node:
        kept = [p for p in node.metadata_props if p.key not in DROPPED_METADATA]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    for holder in (proto.graph, *proto.graph.value_info, *proto.functions):
        del holder.metadata_props[:]


def _verify(
    proto: onnx.ModelProto,
    path: Path,
    inputs: list[str],
    outputs: list[str],
    opset: int,
    want_dynamic: bool,
) -> list[str]:
    """What was asked for is what came out, or a BuildError; softer deviations are notes."""
    got = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if got != opset:
        raise BuildError(f"{path}: asked for opset {opset}, torch wrote {got}")
    for kind, want, have in (
        ("inputs", inputs, [v.name for v in proto.graph.input]),
        ("outputs", outputs, [v.name for v in proto.graph.output]),
    ):
        if want != have:
            raise BuildError(
                f"{path}: {kind} should be {', '.join(want)}; torch wrote {', '.join(have)} "
                "(an input that forward does not use, or an output given twice)"
            )
    if not want_dynamic:
        return []
    fixed = [v.name for v in proto.graph.output if not _axis_is_open(v)]
    return [f"output {n} does not grow with the batch: its first axis is fixed" for n in fixed]


def write_onnx(
    proto: onnx.ModelProto, path: Path, external_over_bytes: int = EXTERNAL_OVER_BYTES
) -> OnnxInfo:
    """Write `proto`, whose weights are in memory, to `path` and check it; all or nothing.

    Raises:
        BuildError: what was to be written is not sound.
    """
    import onnx

    weights = sum(len(t.raw_data) or t.ByteSize() for t in proto.graph.initializer)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if weights <= external_over_bytes:
            with replacing(path) as part:
                onnx.save_model(proto, part)
                info = _inspect(part)
        else:
            info = _write_with_external_data(proto, path)
    return replace(info, path=path)


def _write_with_external_data(proto: onnx.ModelProto, path: Path) -> OnnxInfo:
    """The graph names its data file, so both are written under their last names in a folder of
    their own, then moved: the data first, so that no graph ever stands without it."""
    import onnx

    data = path.with_name(f"{path.name}.data")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=PREFIX) as folder:
        part = Path(folder) / path.name
        onnx.save_model(
            proto,
            part,
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=data.name,
            size_threshold=1024,  # runtimes must see shapes inside
        )
        info = _inspect(part)
        sync_tree(Path(folder))
        if info.has_external:
            part.with_name(data.name).replace(data)
        part.replace(path)
    sync_directory(path.parent)
    return info


def _inspect(part: Path) -> OnnxInfo:
    try:
        return inspect_onnx(part)
    except ModelError as e:  # the user's model was fine; what was made of it is not
        raise BuildError(f"the ONNX file that came out is not sound: {one_line(e)}") from e
