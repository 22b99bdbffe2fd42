"""Put an image's cast, scaling, normalisation and layout into the ONNX graph: uint8 NHWC in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact.onnx_file import read_onnx
from ..artifact.preprocess import ImagePreprocess
from ..artifact.tensor_spec import TensorSpec
from ..errors import ModelError
from .onnx_check import inspect_onnx
from .onnx_graph import write_onnx

if TYPE_CHECKING:
    import onnx
    import torch

FLOATS = ("float32", "float16", "bfloat16")


def fold_preprocess(
    onnx_path: Path,
    preprocess: ImagePreprocess,
    out_path: Path,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
) -> ImagePreprocess:
    """Write a copy of the graph that takes ``uint8 [batch, H, W, C]`` as decoded and cropped.

    In front of the network come Cast, ``x · (scale / std) − mean / std`` by channel and, for layout
    NCHW, a transposition. The input keeps its name and its open batch axis. Resizing and cropping
    stay outside, and so does the order of the channels: pixels come in the order that
    `preprocess.color` declares (what `preprocess.apply` gives when folded).

    Args:
        onnx_path: a graph with one image input ``float [batch, C, H, W]`` (or NHWC, as
            `preprocess.layout` says).
        preprocess: how images are prepared for it; the numbers that are folded.
        out_path: the file to write.
        input_shapes: the input's full shape, where the graph leaves H or W open; becomes fixed.

    Returns:
        The same preprocessing with ``folded=True``: what is left to do outside.

    Raises:
        ModelError: it is folded already, there is no such input, or the channels do not fit.
    """
    import onnx

    if preprocess.folded:
        raise ModelError(f"{onnx_path}: its preprocessing is in the graph already")
    spec = _image_input(
        inspect_onnx(onnx_path, input_shapes, open_axes=False).inputs, Path(onnx_path)
    )
    channels_first = preprocess.layout == "NCHW"
    batch, *axes = spec.shape
    height, width, channels = (*axes[1:], axes[0]) if channels_first else axes
    scale, shift = _affine(preprocess, channels, spec, Path(onnx_path))

    read_onnx(onnx_path)  # its errors are ours; onnx.load's are not
    model = onnx.load_model(onnx_path)
    graph = model.graph
    value = next(v for v in graph.input if v.name == spec.name)
    elem_type = value.type.tensor_type.elem_type
    batch_axis = value.type.tensor_type.shape.dim[0]
    batch = batch_axis.dim_param or batch or "batch"
    names = {n: _free_name(graph, f"{spec.name}_{n}") for n in ("f32", "scaled", "normal", "ready")}
    scale_name, shift_name = (_free_name(graph, f"{spec.name}_{n}") for n in ("scale", "shift"))
    node = onnx.helper.make_node
    front = [
        node("Cast", [spec.name], [names["f32"]], to=onnx.TensorProto.FLOAT),
        node("Mul", [names["f32"], scale_name], [names["scaled"]]),
        node("Add", [names["scaled"], shift_name], [names["normal"]]),
    ]
    if channels_first:
        front.append(
            node("Transpose", [names["normal"]], [f"{names['normal']}_nchw"], perm=[0, 3, 1, 2])
        )
    front.append(node("Cast", [front[-1].output[0]], [names["ready"]], to=elem_type))
    if elem_type == onnx.TensorProto.FLOAT:
        front.pop()  # it is float32 already
    for step in front:
        step.name = f"preprocess_{step.op_type}_{step.output[0]}"
    _rename(graph, spec.name, front[-1].output[0])
    old = list(graph.node)
    del graph.node[:]
    graph.node.extend([*front, *old])
    for name, array in ((scale_name, scale), (shift_name, shift)):
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    value.CopyFrom(
        onnx.helper.make_tensor_value_info(
            spec.name, onnx.TensorProto.UINT8, [batch, height, width, channels]
        )
    )
    write_onnx(model, Path(out_path))
    return preprocess.model_copy(update={"folded": True})


def folded_module(module: torch.nn.Module, preprocess: ImagePreprocess) -> torch.nn.Module:
    """`module` with the same in front: the reference of a folded graph. Its one input keeps its name.

    It computes ``(x · scale − mean) / std`` as `preprocess.apply` does, so that the graph's own form
    is compared with what was declared.
    """
    import torch

    mean, std = (torch.tensor(values) for values in (preprocess.mean, preprocess.std))

    class Folded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, **image: torch.Tensor) -> Any:
            ((name, pixels),) = image.items()
            x = (pixels.float() * preprocess.scale - mean) / std
            return self.module(
                **{name: x.permute(0, 3, 1, 2) if preprocess.layout == "NCHW" else x}
            )

    return Folded().eval()


def _image_input(inputs: Sequence[TensorSpec], path: Path) -> TensorSpec:
    images = [spec for spec in inputs if len(spec.shape) == 4 and spec.dtype in FLOATS]
    if len(images) != 1:
        seen = "; ".join(map(str, inputs))
        raise ModelError(
            f"{path}: preprocessing is folded into one float image input with 4 axes; "
            f"this graph takes {seen}"
        )
    return images[0]


def _affine(
    preprocess: ImagePreprocess, channels: int, spec: TensorSpec, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """float32 ``[C]`` each: (x · scale − mean) / std = x · (scale / std) + (−mean / std)."""
    wanted = 1 if preprocess.color == "L" else 3
    if channels != wanted:
        raise ModelError(
            f"{path}: input {spec} has {channels} channels in layout {preprocess.layout}, "
            f"{preprocess.color} images have {wanted}; see --layout and --color"
        )
    mean = np.broadcast_to(np.asarray(preprocess.mean, np.float64), (channels,))
    std = np.broadcast_to(np.asarray(preprocess.std, np.float64), (channels,))
    return (preprocess.scale / std).astype(np.float32), (-mean / std).astype(np.float32)


def _free_name(graph: onnx.GraphProto, name: str) -> str:
    taken = {t.name for t in graph.initializer} | {v.name for v in graph.input}
    taken |= {output for node in graph.node for output in node.output}
    while name in taken:
        name += "_"
    return name


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Every use of tensor `old`, in the bodies of If, Loop and Scan too."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(
                attribute.graphs
            ):
                _rename(inner, old, new)
