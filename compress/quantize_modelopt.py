"""INT8 and FP8 by NVIDIA ModelOpt on the torch module, as Q/DQ in TensorRT's form.

Inputs and weights of convolutions and Linear layers are quantized: ``max`` (largest magnitude seen),
``smoothquant`` (Xiao et al. 2022, arXiv:2211.10438: outlier channels of an activation are moved into the weights)
or ``fp8`` (E4M3 by max). Attention's own products, LayerNorm and softmax stay in float, for which TensorRT has
fused kernels: ModelOpt's ONNX defaults on a ViT-B lost 80 points, its Linear layers alone 0.7 at the same
speed (onnxsim's table). What stays in float is FP16 after `compress.fp16_cast`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import BuildError, InputError, MissingPart
from ..export.model_files import model_bytes
from .calibration import Calibration
from .node_names import match_nodes
from .step import StepResult

if TYPE_CHECKING:
    import torch

Method = Literal["max", "smoothquant", "fp8"]
# Samples that show which normalization follows which convolution, and that the export is compared on.
EXAMPLES = 8


class QuantizeModelopt:
    """ModelOpt post-training quantization: weights per channel (fp8: per tensor), activations per tensor.

    Args:
        module: the float torch module that the ONNX file of a run was exported from; left as it is. Without
            one the call raises InputError.
        method: see above.
        nodes_to_exclude: regular expressions over ONNX node names; their torch modules stay in float.

    Raises:
        MissingPart: modelopt or torch is not installed.
    """

    runtimes: tuple[str, ...] = ("tensorrt", "tensorrt-rtx")
    calibrates = True

    def __init__(
        self,
        module: torch.nn.Module | None,
        method: Method = "max",
        nodes_to_exclude: tuple[str, ...] = (),
    ) -> None:
        self.module, self.method, self.nodes_to_exclude = module, method, nodes_to_exclude
        self.route = f"modelopt {method}"
        self.precision = "fp8" if method == "fp8" else "int8"
        self._versions = modelopt_versions()

    def settings(self) -> dict[str, Any]:
        return {
            "route": self.route,
            "nodes_to_exclude": list(self.nodes_to_exclude),
            "versions": self._versions,
        }

    def __call__(self, model: Path, calibration: Calibration, directory: Path) -> StepResult:
        """Writes ``model.int8.onnx`` (or ``model.fp8.onnx``) with the outputs' names of `model`."""
        if self.module is None:
            raise InputError(
                f"{self.route} quantizes a torch module, and {model.name} is a graph; take modelopt-onnx"
            )
        excluded = modules_of_nodes(model, match_nodes(model, self.nodes_to_exclude))
        ready, notes = quantize_module(self.module, calibration, self.method, excluded)
        path = directory / f"model.{self.precision}.onnx"
        done = export_like(model, ready, examples(calibration), path)
        return StepResult(path, done.quantizers, model_bytes(path), [*notes, *done.notes])


def modelopt_versions() -> dict[str, str]:
    """Of the libraries that a result depends on.

    Raises:
        MissingPart: one is not installed.
    """
    packages = ("nvidia-modelopt", "torch", "onnx", "onnxscript")
    try:
        return {name: version(name) for name in packages}
    except PackageNotFoundError as e:
        raise MissingPart(
            f"{e.name} is not installed: pip install 'edgeml-toolchain[modelopt]', or take the route "
            "tensorrt-form, which needs no NVIDIA package"
        ) from e


def quantize_module(
    module: torch.nn.Module,
    samples: Iterable[Mapping[str, np.ndarray]],
    method: Method = "max",
    excluded: Iterable[str] = (),
) -> tuple[torch.nn.Module, list[str]]:
    """A fake-quantized copy of a float module.

    Args:
        module: left as it was.
        samples: calibration batches ``{name: [n, …]}``, read three times at most.
        method: ``max``, ``smoothquant`` or ``fp8``.
        excluded: names of modules whose layers stay in float.

    Returns:
        The copy (`modelopt_prepare.prepared`, with ModelOpt's quantizers), and what the user should know.

    Raises:
        MissingPart: modelopt is not installed.
        BuildError: the module has no layer that ModelOpt quantizes, or ``smoothquant`` meets a weight that is computed.
    """
    import torch

    from ..export.onnx_graph import forward_feed
    from .modelopt_export import import_modelopt, quiet
    from .modelopt_prepare import prepared, recurrent_hidden, shared_residuals

    mtq = import_modelopt()
    feed, _ = forward_feed(torch, module, examples(samples))
    ready = prepared(module, feed)
    layers = heavy_layers(mtq, ready, excluded)
    if not layers:
        raise BuildError(
            f"{type(module).__name__} has no convolution or Linear layer that ModelOpt quantizes"
        )

    if method == "smoothquant" and (name := computed_weight(ready, layers)):
        raise BuildError(
            f"{name}: its weight is computed at every use (a 2:4 mask, a parametrization), and smoothquant scales "
            "stored ones: finish_2to4 it first, or take max"
        )

    def forward_all(model: torch.nn.Module) -> None:
        with torch.no_grad():
            for sample in samples:
                model(**forward_feed(torch, model, sample)[0])

    with recurrent_hidden(ready) as recurrent, quiet():
        mtq.quantize(ready, configuration(ready, layers, method), forward_all)
    unseen = disable_unseen(ready, layers)
    shared_residuals(ready)
    notes = [f"{name} stays in float: ModelOpt would unroll its recurrence" for name in recurrent]
    notes += [f"{name} stays in float: no calibration sample reached it" for name in unseen]
    return ready, notes


def heavy_layers(mtq: Any, module: torch.nn.Module, excluded: Iterable[str] = ()) -> list[str]:
    """Names of the convolutions and Linear layers inside `module`, those below `excluded` left out.

    Subclasses with a forward of their own (EfficientNet's "same" padding) are made known to ModelOpt, which
    passes them by otherwise.
    """
    from modelopt.torch.quantization.nn import QuantModuleRegistry

    from .modelopt_prepare import HEAVY

    excluded = tuple(excluded)
    found = []
    for name, part in module.named_modules():
        kind = next((k for k in HEAVY if isinstance(part, k)), None)
        if kind is None or any(name == e or name.startswith(f"{e}.") for e in excluded):
            continue
        if type(part) not in QuantModuleRegistry:
            base = QuantModuleRegistry._registry[kind]
            QuantModuleRegistry.register({type(part): f"edgeml.{type(part).__qualname__}"})(base)
        found.append(name)
    return found


def computed_weight(module: torch.nn.Module, layers: list[str]) -> str | None:
    """The first of the layers whose weight is another tensor each time it is read. ModelOpt would write into that
    copy, and no comparison of graph and module would show it."""
    parts = ((name, module.get_submodule(name)) for name in layers)
    return next((name for name, part in parts if part.weight is not part.weight), None)


def configuration(module: torch.nn.Module, layers: list[str], method: Method) -> dict[str, Any]:
    """ModelOpt's ``quant_cfg`` for these layers by name: its own presets go by patterns of names
    (``output.*``, ``*vision_model*``) that leave layers of some networks in float unsaid."""
    from .modelopt_prepare import TRANSPOSED

    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    bits: Any = (4, 3) if method == "fp8" else 8
    for name in layers:
        layer = module.get_submodule(name)
        axis: int | None = None if method == "fp8" else 0
        if isinstance(layer, TRANSPOSED) and axis is not None:
            axis = 1 if layer.groups == 1 else None  # its output channels: [in, out/groups, …]
        for quantizer, along in (("weight_quantizer", axis), ("input_quantizer", None)):
            where = f"{name}.{quantizer}".lstrip(".")
            entries.append({"quantizer_name": where, "cfg": {"num_bits": bits, "axis": along}})
    return {
        "quant_cfg": entries,
        "algorithm": "smoothquant" if method == "smoothquant" else "max",
    }


def disable_unseen(module: torch.nn.Module, layers: list[str]) -> list[str]:
    """Leave layers in float that no sample reached; their names."""
    unseen = []
    for name in layers:
        layer = module.get_submodule(name)
        if layer.input_quantizer.is_enabled and layer.input_quantizer.amax is None:
            layer.input_quantizer.disable()
            layer.weight_quantizer.disable()
            unseen.append(name)
    return unseen


def examples(samples: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The first samples as one batch ``{name: [n, …]}``; a fixed batch stays what it is."""
    first = list(islice(iter(samples), EXAMPLES))
    fixed = len(next(iter(first[0].values()))) > 1
    ragged = any(a.shape != first[0][name].shape for s in first for name, a in s.items())
    if fixed or ragged:
        return dict(first[0])
    return {name: np.concatenate([sample[name] for sample in first]) for name in first[0]}


def modules_of_nodes(model: Path, nodes: Iterable[str]) -> list[str]:
    """The torch modules that nodes of an exported graph came from.

    Raises:
        BuildError: the file does not say where a node came from.
    """
    nodes = set(nodes)
    if not nodes:
        return []
    from ..artifact.onnx_file import read_onnx
    from ..export.blame import torch_scope

    scopes = {n.name: torch_scope(n) for n in read_onnx(model).graph.node if n.name in nodes}
    for name, scope in scopes.items():
        if scope is None:
            raise BuildError(f"{model}: node {name} names no torch module that could stay in float")
    return sorted({scope for scope in scopes.values() if scope})


def export_like(
    model: Path, ready: torch.nn.Module, example: Mapping[str, np.ndarray], path: Path
) -> Any:
    """`modelopt_export.export_quantized` with the outputs' names and the batch axis of `model`."""
    from ..artifact.onnx_file import read_onnx
    from .modelopt_export import export_quantized

    graph = read_onnx(model).graph
    stored = {tensor.name for tensor in graph.initializer}
    first = next(value for value in graph.input if value.name not in stored)
    dims = first.type.tensor_type.shape.dim
    return export_quantized(
        ready,
        example,
        path,
        [value.name for value in graph.output],
        dynamic_batch=bool(dims) and not dims[0].HasField("dim_value"),
    )
