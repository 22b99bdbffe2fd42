"""Quantization-aware training for OpenVINO engines, by NNCF's torch backend.

`qat` puts trainable fake quantizers (Jacob et al. 2018, arXiv:1712.05877; the scales are learnt, too) into a
copy of a network, their ranges from calibration samples as in post-training quantization; any training
loop goes on from there; `to_openvino` writes the engine's file.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact.atomic_file import PREFIX, disk_errors, sync_directory, sync_tree
from ..errors import BuildError, DataError, InputError, one_line
from ..runtime.openvino_engine import import_openvino

if TYPE_CHECKING:
    from torch import nn

Samples = Iterable[Mapping[str, np.ndarray]]


def qat(
    model: nn.Module, calibration: Samples, samples: int = 300, excluded: Sequence[str] = ()
) -> nn.Module:
    """A copy of `model` with INT8 fake quantizers, to be trained by any loop.

    Train it in float32 (bfloat16 has fewer steps than INT8), then `to_openvino`.

    Args:
        model: a float network; left as it is.
        calibration: batches ``{input: [n, …]}`` that the first ranges are read from.
        samples: how many batches are taken at most.
        excluded: names of modules whose layers stay in float.

    Returns:
        The copy in eval mode; what it gives is what INT8 will give, up to the rounding of sums.

    Raises:
        InputError: `model` is no torch module.
        DataError: there are no calibration samples.
        MissingPart: nncf or openvino is not installed.
        BuildError: nothing was quantized, or NNCF failed.
    """
    import torch
    from torch import nn

    from ..export.onnx_graph import forward_feed
    from .quantize_nncf import quiet

    if not isinstance(model, nn.Module):
        raise InputError(
            f"QAT trains weights and needs a torch module, got {type(model).__name__}; an ONNX file "
            "has none to train: give net.py:build --weights, or quantize it"
        )
    import_openvino()  # before NNCF: it switches the telemetry of both off
    feeds = [
        forward_feed(torch, model, batch)[0]
        for _, batch in zip(range(samples), calibration, strict=False)
    ]
    if not feeds:
        raise DataError("no calibration samples: QAT reads its first ranges from them")
    model.eval()
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NNCF's tracing
        import nncf
        import nncf.torch

        _plain_kernels()
        scope = [f"^{re.escape(name.replace('.', '/'))}/.*" for name in excluded]
        try:
            ready = nncf.quantize(
                model,
                nncf.Dataset(feeds),
                preset=nncf.QuantizationPreset.PERFORMANCE,
                subset_size=len(feeds),
                ignored_scope=nncf.IgnoredScope(patterns=scope, validate=False),
            )
        except Exception as e:  # NNCF raises anything
            raise BuildError(f"QAT of {type(model).__name__}: {one_line(e)}") from e
    if not quantizers_of(ready):
        raise BuildError(f"NNCF inserted no quantizer: it knows no layer of {type(model).__name__}")
    return ready.eval()


def quantizers_of(module: nn.Module) -> int:
    """How many fake quantizers `module` has."""
    from nncf.torch.quantization.layers import BaseQuantizer

    return sum(isinstance(part, BaseQuantizer) for part in module.modules())


def to_openvino(
    module: nn.Module,
    sample: Mapping[str, np.ndarray],
    path: Path,
    outputs: Sequence[str] = (),
) -> int:
    """Write a network of `qat` as OpenVINO IR, ``path`` and its ``.bin`` beside it.

    Args:
        sample: a batch ``{input: [n, …]}``; the graph's inputs get its names, all axes stay open.
        path: ``….xml``.
        outputs: names for the graph's outputs, in order; () leaves OpenVINO's.

    Returns:
        The number of activation quantizers in the graph (weights are stored as int8).

    Raises:
        BuildError: OpenVINO cannot convert it, or no quantizer is left.
    """
    import torch

    from ..export.onnx_graph import forward_feed
    from .quantize_nncf import quiet

    ov = import_openvino()
    feed, names = forward_feed(torch, module, sample)
    module.eval()
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: the branches on Python numbers are NNCF's own
        try:
            graph = ov.convert_model(module, example_input=feed)
        except Exception as e:
            raise BuildError(f"OpenVINO cannot convert the trained network: {one_line(e)}") from e
    ports = {name: port for port in graph.inputs for name in port.get_names()}
    for own, name in zip(feed, names, strict=True):
        ports.get(own, graph.inputs[list(feed).index(own)]).get_tensor().set_names({name})
    for port, name in zip(graph.outputs, outputs, strict=False):
        port.get_tensor().set_names({name})
    count = sum(op.get_type_name() == "FakeQuantize" for op in graph.get_ops())
    if not count:
        raise BuildError("no quantizer is left in the converted graph")
    path = Path(path)
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=PREFIX) as folder:
            part = Path(folder) / path.name
            ov.save_model(graph, str(part), compress_to_fp16=False)
            sync_tree(Path(folder))
            part.with_suffix(".bin").replace(path.with_suffix(".bin"))
            part.replace(path)
        sync_directory(path.parent)
    return count


def _plain_kernels() -> None:
    """NNCF's own fake quantizers in plain torch, where none of its extensions was loaded before.

    It would compile C++ for minutes at first use (more than its own limit of 60 s on two busy cores,
    seen), and its fallback goes through torch.compile, which compiled for 68 s here.
    """
    from nncf.torch.quantization.extensions import QuantizedFunctionsCPU
    from nncf.torch.quantization.reference import torch_executor

    if QuantizedFunctionsCPU._loaded_namespace is None:
        kernels: Any = SimpleNamespace(
            Quantize_forward=torch_executor.forward, Quantize_backward=torch_executor.backward
        )
        QuantizedFunctionsCPU._loaded_namespace = kernels
