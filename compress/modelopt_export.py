"""A torch module quantized by ModelOpt (PTQ, QAT, 2:4) as ONNX with Q/DQ in TensorRT's form.

ModelOpt 0.47's own dynamo export fails, and its TorchScript export writes FP8 as ``trt::`` operators that
only TensorRT reads. So each `TensorQuantizer` is replaced, while torch traces, by a module that emits
QuantizeLinear and DequantizeLinear; weights are then stored as int8 or float8.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BuildError, MissingPart, ParityError, one_line
from ..export.onnx_graph import forward_feed, left_as_it_was, to_onnx, write_onnx
from .modelopt_graph import tensorrt_form
from .modelopt_parity import layer_differences

if TYPE_CHECKING:
    import torch

# The most that a layer of the graph may differ from the module's, given the same tensors, as relative L2. Measured:
# 0.03 % at worst (a few values beside a rounding border: ModelOpt multiplies by 127 / amax, ONNX divides by a scale).
LAYER_REL = 0.01


@dataclass(frozen=True)
class Exported:
    """What `export_quantized` wrote.

    Attributes:
        path: the ONNX file, fp32 outside Q/DQ, opset 20.
        quantizers: activations and weights between Q/DQ.
        layer_rel: relative L2 difference to the fake-quantized module in ONNX Runtime, of the worst layer given the
            module's own tensors (`modelopt_parity`).
        notes: what the user should know.
    """

    path: Path
    quantizers: int
    layer_rel: float
    notes: tuple[str, ...]


def import_modelopt() -> Any:
    """``modelopt.torch.quantization``, its prints and hints switched off.

    Raises:
        MissingPart: it is not installed, or does not load.
    """
    import warnings

    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")  # of transformers' version, and of parts without a GPU
            import modelopt.torch.quantization as mtq
    except ImportError as e:
        raise MissingPart(
            f"nvidia-modelopt does not load ({one_line(e)}): pip install 'edgeml-toolchain[modelopt]', "
            "or take the route tensorrt-form, which needs no NVIDIA package"
        ) from e
    return mtq


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep ModelOpt's prints ("Inserted 12 quantizers"), bars and warnings out of our table."""
    import io
    import warnings

    sink = io.StringIO()
    with (
        contextlib.redirect_stdout(sink),
        contextlib.redirect_stderr(sink),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def export_quantized(
    module: torch.nn.Module,
    example_inputs: Mapping[str, np.ndarray],
    path: Path,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
) -> Exported:
    """Write a module that ModelOpt quantized to one ONNX file, and show that it computes the same.

    Conv and BatchNormalization should have been fused before quantizing (`modelopt_prepare.prepared`): Q/DQ on
    a convolution's weights would keep TensorRT from fusing them.

    Args:
        module: quantized by ``mtq.quantize``, ``mtq.auto_quantize`` or trained afterwards; left as it was.
        example_inputs: real samples ``{name: [N, …]}`` by the names of forward's parameters.
        path: the file to write.
        output_names: as in `export.onnx_graph.to_onnx`.
        dynamic_batch: leave axis 0 of every input open.

    Returns:
        The file and how near it is to the fake-quantized module.

    Raises:
        MissingPart: modelopt, torch, onnxscript or onnxruntime is not installed.
        ModelError: the module cannot be traced.
        BuildError: nothing is quantized, a quantizer has no form in TensorRT (named), or was never
            calibrated.
        ParityError: ONNX Runtime computes something else than the fake-quantized module; nothing is written.
    """
    import_modelopt()
    import torch

    path = Path(path)
    feed, names = forward_feed(torch, module, example_inputs)
    with tempfile.TemporaryDirectory(prefix="edgeml-modelopt-") as scratch:
        traced = Path(scratch, "traced.onnx")
        with qdq_emitted(module):
            info = to_onnx(
                module, example_inputs, traced, output_names, dynamic_batch=dynamic_batch
            )
        proto, quantizers = tensorrt_form(traced)
    given = {n: t.numpy() for n, t in zip(names, feed.values(), strict=True)}
    with left_as_it_was(torch, module), quiet():
        differences = layer_differences(proto, module, feed, given)
    layer, rel = max(differences.items(), key=lambda item: _worst(item[1]))
    if not rel <= LAYER_REL:  # written so that NaN fails
        raise ParityError(
            f"the exported Q/DQ graph is {rel:.1%} from the fake-quantized module at {layer}, given the module's "
            f"own tensors before it; {LAYER_REL:.0%} is allowed"
        )
    write_onnx(proto, path)
    return Exported(path, quantizers, rel, info.notes)


def _worst(rel: float) -> float:
    return rel if rel == rel else float("inf")


@contextlib.contextmanager
def qdq_emitted(module: torch.nn.Module) -> Iterator[None]:
    """Inside, the module's enabled quantizers emit Q/DQ when they are traced (and give zeros when run).

    Raises:
        BuildError: nothing is quantized, or a quantizer has no form in TensorRT; its name is told.
    """
    from modelopt.torch.quantization.nn import SequentialQuantizer, TensorQuantizer
    from modelopt.torch.quantization.utils.core_utils import export_torch_mode

    places = [
        (parent, name, child, f"{path}.{name}".lstrip("."))
        for path, parent in module.named_modules()
        if not isinstance(parent, SequentialQuantizer)
        for name, child in parent.named_children()
        if isinstance(child, (TensorQuantizer, SequentialQuantizer))
    ]
    emitters = [(parent, name, _emitter(child, where)) for parent, name, child, where in places]
    if not any(emitter.emits for _, _, emitter in emitters):
        raise BuildError("the module has no enabled quantizer: mtq.quantize it first")
    try:
        for parent, name, emitter in emitters:
            parent._modules[name] = emitter
        with export_torch_mode():
            yield
    finally:
        for parent, name, child, _ in places:
            parent._modules[name] = child


def _emitter(quantizer: Any, where: str) -> torch.nn.Module:
    """The module that stands for a quantizer while torch traces."""
    import torch

    emitter = _emitter_class()
    if not getattr(quantizer, "is_enabled", True):
        return emitter(None, None, None, quantizer.pre_quant_scale)
    bits = getattr(quantizer, "num_bits", None)
    kinds = {8: (torch.int8, 127.0), (4, 3): (torch.float8_e4m3fn, 448.0)}
    if type(quantizer).__name__ != "TensorQuantizer" or bits not in kinds:
        raise BuildError(
            f"{where}: {bits or type(quantizer).__name__} bits have no Q/DQ form here; int8 and fp8 (4, 3) do"
        )
    for name in ("unsigned", "block_sizes", "_dynamic", "bias", "rotate_is_enabled"):
        if getattr(quantizer, name, None):
            raise BuildError(f"{where}: {name.strip('_')} has no form in TensorRT's Q/DQ")
    dtype, largest = kinds[bits]
    amax = quantizer.amax
    if amax is None:
        raise BuildError(f"{where} was never calibrated: no sample reached its layer")
    if not bool(torch.isfinite(amax).all()):
        raise BuildError(f"{where}: a range of {amax.max().item()} cannot be quantized")
    axes = (
        [i for i, n in enumerate(amax.shape) if n == amax.numel()] if amax.numel() > 1 else [None]
    )
    if not axes:
        raise BuildError(f"{where}: ranges of shape {tuple(amax.shape)} are not along one axis")
    # ModelOpt multiplies by 127 / amax: of that the reciprocal, so that ONNX's division rounds alike. A channel of
    # zeros (pruned) has any scale; ModelOpt gives zeros up to 2^-24, which FP16 cannot hold.
    reach = amax.detach().float().flatten()
    scale = torch.where(reach <= 2.0**-24, torch.ones_like(reach), 1.0 / (largest / reach))
    return emitter(
        scale if axes[0] is not None else scale[0], axes[0], dtype, quantizer.pre_quant_scale
    )


def _emitter_class() -> type:
    """Defined when torch is there."""
    import torch

    from .modelopt_prepare import seen_quantized

    class QdqEmitter(torch.nn.Module):
        """x -> DQ(Q(x · pre_quant_scale)), as ONNX nodes.

        Args:
            scale: float32, [] or [C]; None passes x through.
            axis: of the C channels.
            dtype: what is stored.
            pre_quant_scale: SmoothQuant's, [channels], or None.
        """

        def __init__(self, scale: Any, axis: int | None, dtype: Any, pre_quant_scale: Any) -> None:
            super().__init__()
            self.axis, self.dtype, self.emits = axis, dtype, scale is not None
            self.register_buffer("pre_quant_scale", pre_quant_scale)
            if scale is not None:
                self.register_buffer("scale", scale.contiguous())
                self.register_buffer("zero_point", torch.zeros(scale.shape).to(dtype))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            source = x
            if self.pre_quant_scale is not None:
                x = x * self.pre_quant_scale
            if not self.emits:
                return x
            attributes = {} if self.axis is None else {"axis": self.axis}
            parameters = (self.scale, self.zero_point)
            stored = torch.onnx.ops.symbolic(
                "QuantizeLinear", (x, *parameters), attributes, dtype=self.dtype, shape=x.shape
            )
            back = torch.onnx.ops.symbolic(
                "DequantizeLinear", (stored, *parameters), attributes, dtype=x.dtype, shape=x.shape
            )
            if self.pre_quant_scale is None:
                seen_quantized(source, back)
            return back

    return QdqEmitter
