"""2:4 structured sparsity for NVIDIA GPUs: two of every four weights along the input channels are zero.

Sparse tensor cores (SM80 and later) skip those zeros where TensorRT builds with its SPARSE_WEIGHTS flag
(NVIDIA TensorRT guide, Structured Sparsity; Mishra et al. 2021, arXiv:2104.08378). The masks are
ModelOpt's, by magnitude; they hold through fine-tuning, as every forward multiplies by them. (Its
``sparsegpt``, 0.47, counts the four along a convolution's flattened kernel, which no GPU skips.)
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..artifact.target import Target
from ..errors import EdgemlError, InputError, MissingPart, one_line
from ..export.lint_graph import LintGraph, attribute
from .prune_groups import check_torch_module
from .sparsity_gain import why_no_gain

# What ModelOpt covers: its rule is that of NVIDIA's ASP.
OUT_MULTIPLE, IN_MULTIPLE = 8, 16


@dataclass(frozen=True)
class SparseLayer:
    """One weight of an ONNX file and whether it is 2:4.

    Attributes:
        node: the Conv, Gemm or MatMul that reads it.
        shape: of the weight as stored.
        is_2to4: no four weights in a row along the input channels hold more than two that are not zero.
    """

    node: str
    shape: tuple[int, ...]
    is_2to4: bool


def sparsify_2to4(
    model: nn.Module,
    *,
    target: Target | None = None,
    force: bool = False,
) -> nn.Module:
    """A copy of `model` whose covered weights are 2:4, and stay so while it is trained.

    Covered are dense layers and 2-D convolutions with out channels a multiple of 8 and in channels (of
    a group) a multiple of 16. Train the copy as any network, then call `finish_2to4`.

    Args:
        target: where it will run; None asks nothing.
        force: do it although the target gains nothing.

    Raises:
        InputError: the target gains nothing, or no layer is covered.
        MissingPart: nvidia-modelopt does not load.
    """
    check_torch_module(model)
    if target is not None and not force and (reason := why_no_gain(target)):
        raise InputError(f"2:4 sparsity gains nothing there: {reason}; force it to have it anyway")
    refuse_uncovered(model)
    sparse = copy.deepcopy(model).eval()
    with _quiet():
        return _modelopt().sparsify(sparse, "sparse_magnitude", config={"verbose": False})


def finish_2to4(model: nn.Module) -> nn.Module:
    """The plain network of a sparsified one, its zeros written into the weights; in place.

    Raises:
        EdgemlError: a covered weight is not 2:4.
    """
    names = covered_layers(model)
    if not names:
        raise EdgemlError(f"{type(model).__name__} holds no 2:4 mask: call sparsify_2to4 first")
    with _quiet():
        model = _modelopt().export(model).eval()
    for name in names:
        if not is_2to4(model.get_submodule(name).weight.detach().cpu().numpy(), 1):
            raise EdgemlError(f"{name}.weight is not 2:4 after fine-tuning: its mask was not kept")
    return model


def covered_layers(model: nn.Module) -> list[str]:
    """The layers of a sparsified network whose weights are masked."""
    masks = ((name, getattr(layer, "_weight_mask", None)) for name, layer in model.named_modules())
    return [name for name, mask in masks if mask is not None and not bool(mask.all())]


def is_2to4(weight: np.ndarray, axis: int) -> bool:
    """Whether no four in a row along `axis` (a length of a multiple of 4) hold more than two non-zeros.

    >>> is_2to4(np.array([[1.0, 0, 2, 0], [0, 0, 3, 4]]), 1)
    True
    """
    if weight.shape[axis] % 4:
        return False
    fours = np.moveaxis(weight, axis, -1).reshape(-1, 4)
    return bool((np.count_nonzero(fours, axis=1) <= 2).all())


def sparse_layers_of(path: Path) -> list[SparseLayer]:
    """Every Conv, Gemm and MatMul of an ONNX file that reads a stored weight, checked for 2:4.

    The weight is a float one, or the int8 or FP8 values behind a DequantizeLinear: symmetric ones, as TensorRT
    takes them, so that a zero of the network is a zero of the file.

    Raises:
        ModelError: the file cannot be read.
    """
    graph = LintGraph.read(path)
    layers = []
    for node in graph.nodes:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        maker = graph.producers.get(node.input[1])
        quantized = maker is not None and maker.op_type == "DequantizeLinear"
        weight = graph.constant(maker.input[0] if quantized else node.input[1])
        if weight is None:
            continue
        transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
        axis = 1 if node.op_type == "Conv" or transposed else weight.ndim - 2
        layers.append(
            SparseLayer(node.name, weight.shape, is_2to4(weight.astype(np.float32), axis))
        )
    return layers


def refuse_uncovered(model: nn.Module) -> None:
    """Say that no layer of a network has a shape that 2:4 covers.

    Raises:
        InputError: so it is.
    """
    if not any(_is_covered(layer) for layer in model.modules()):
        raise InputError(
            f"{type(model).__name__} has no layer that 2:4 covers: out channels must be a multiple of "
            f"{OUT_MULTIPLE}, in channels of {IN_MULTIPLE}"
        )


def _is_covered(layer: nn.Module) -> bool:
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        return False
    out, of_group = layer.weight.shape[:2]
    return out % OUT_MULTIPLE == 0 and of_group % IN_MULTIPLE == 0


def _modelopt() -> Any:
    try:
        import modelopt.torch.sparsity as mts
    except ImportError as e:
        raise MissingPart(
            f"2:4 sparsity needs nvidia-modelopt, which does not load ({one_line(e)}); pip install "
            "'edgeml-toolchain[modelopt]'"
        ) from e
    return mts


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # skipped layers, transformers' version, torch.jit
        yield
