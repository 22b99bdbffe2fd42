"""What a torch module needs before ModelOpt quantizes it, so that TensorRT can fuse what comes out.

`prepared` fuses BatchNormalization into convolutions and writes ``nn.MultiheadAttention`` as Linear layers
(ModelOpt sees no Linear in it, and its export would quantize one weight without an activation).
`shared_residuals` lets residual additions read the shortcut that was quantized for the next convolution, as
TensorRT fuses convolution and addition (NVIDIA TensorRT guide, Working with quantized types).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
HEAVY = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Largest difference, over the largest output, that fusing may make in fp32.
FUSED_REL = 1e-3


def prepared(module: nn.Module, example: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `module` in eval mode, ready for ``mtq.quantize``: it computes the same.

    Args:
        module: left as it was.
        example: its inputs ``{name: [N, …]}``; tells which convolution each normalization follows.

    Returns:
        The copy, Conv and BatchNormalization fused, attention as Linear layers, residuals shared.

    Raises:
        RuntimeError: forward fails on the example.
    """
    module = copy.deepcopy(module).eval()
    split_attention(module)
    with torch.no_grad():
        fuse_normalizations(module, example)
    shared_residuals(module)
    return module


# ---------------------------------------------------------------- BatchNormalization


def fuse_normalizations(module: nn.Module, example: Mapping[str, Tensor]) -> int:
    """Fuse each BatchNormalization that reads a convolution's output alone into it, in place.

    Returns:
        How many were fused. Where the outputs change (another layer reads the convolution too), none is.
    """
    pairs = _followed(module, example)
    before = _leaves(module(**example))
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for conv, norm in pairs:
        fused = fuse_conv_bn_eval(conv, norm, isinstance(conv, TRANSPOSED))
        for old, new in ((conv, fused), (norm, nn.Identity())):
            parent, name = _place(module, old)
            replaced.append((parent, name, old))
            setattr(parent, name, new)
    after = _leaves(module(**example))
    for want, got in zip(before, after, strict=True):
        if want.is_floating_point() and float((want - got).abs().max()) > FUSED_REL * float(
            want.abs().max()
        ):
            for parent, name, old in reversed(replaced):
                setattr(parent, name, old)
            return 0
    return len(pairs)


def _followed(
    module: nn.Module, example: Mapping[str, Tensor]
) -> list[tuple[nn.Module, nn.Module]]:
    """(convolution, the BatchNormalization that is called on its output), each called once."""
    made: dict[
        int, tuple[nn.Module, Tensor]
    ] = {}  # the tensor is held, so that its id stays its own
    calls: dict[nn.Module, int] = {}
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def after(layer: nn.Module, args: tuple, out: Any) -> None:
        calls[layer] = calls.get(layer, 0) + 1
        if isinstance(layer, NORMALIZATIONS):
            conv = made.get(id(args[0]), (None,))[0] if args else None
            if conv is not None and layer.running_mean is not None:
                pairs.append((conv, layer))
        else:
            made[id(out)] = (layer, out)

    kinds = (*CONVOLUTIONS, *TRANSPOSED, *NORMALIZATIONS)
    hooks = [m.register_forward_hook(after) for m in module.modules() if isinstance(m, kinds)]
    try:
        module(**example)
    finally:
        for hook in hooks:
            hook.remove()
    return [(conv, norm) for conv, norm in pairs if calls[conv] == 1 and calls[norm] == 1]


def _place(module: nn.Module, part: nn.Module) -> tuple[nn.Module, str]:
    for parent in module.modules():
        for name, child in parent.named_children():
            if child is part:
                return parent, name
    raise LookupError(f"{type(part).__name__} is not in {type(module).__name__}")


def _leaves(result: Any) -> list[Tensor]:
    from torch.utils import _pytree

    return [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


# ---------------------------------------------------------------- attention


class SplitAttention(nn.Module):
    """``nn.MultiheadAttention`` with a Linear each for query, key, value and output.

    The two products of attention stay in float: TensorRT has one fused kernel for them.

    Args:
        attention: whose weights are taken; its masks and its order of axes are kept.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.batch_first, self.num_heads = attention.batch_first, attention.num_heads
        # What nn.TransformerEncoderLayer asks before its fast path, which would pass these layers by.
        self.in_proj_bias, self._qkv_same_embed_dim = None, attention._qkv_same_embed_dim
        width = attention.embed_dim
        if attention._qkv_same_embed_dim:
            weights = attention.in_proj_weight.chunk(3)
        else:
            weights = tuple(getattr(attention, f"{p}_proj_weight") for p in "qkv")
        given = attention.in_proj_bias
        biases = given.chunk(3) if given is not None else (None, None, None)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            setattr(self, name, _linear(weight, bias))
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)
        self.scale = (width // attention.num_heads) ** -0.5

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        n = query.shape[0]
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.q, query), (self.k, key), (self.v, value))
        )
        mask = _mask(attn_mask, q)
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (n, self.num_heads))
        padding = _mask(key_padding_mask, q)
        if padding is not None:
            mask = padding[:, None, None, :] if mask is None else mask + padding[:, None, None, :]
        weights = None
        if need_weights:
            scores = q @ k.transpose(-1, -2) * self.scale
            weights = (scores if mask is None else scores + mask).softmax(-1)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), weights


def _mask(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """As numbers to add: True of a boolean mask hides."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype).masked_fill(mask, float("-inf"))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def split_attention(module: nn.Module) -> int:
    """Replace each plain ``nn.MultiheadAttention`` inside `module`; how many there were."""
    found = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child) is nn.MultiheadAttention and child.bias_k is None and not child.add_zero_attn
    ]
    for parent, name, child in found:
        setattr(parent, name, SplitAttention(child).train(child.training))
    return len(found)


# ---------------------------------------------------------------- residual additions

_ADDITIONS = ("add", "__add__", "__radd__", "add_", "__iadd__")
_running: list[_Residuals] = []


class _Residuals(TorchFunctionMode):
    """While a forward pass runs: what was quantized, and what quantized convolutions made."""

    def __init__(self) -> None:
        super().__init__()
        self.quantized: dict[int, tuple[Tensor, Tensor]] = {}
        self.made: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _ADDITIONS and len(args) == 2 and not kwargs:
            left, right = args
            if id(left) in self.made and id(right) in self.quantized:
                args = (left, self.quantized[id(right)][1])
            elif (
                id(right) in self.made
                and id(left) in self.quantized
                and func.__name__ not in ("add_", "__iadd__")  # whose result is the shortcut itself
            ):
                args = (self.quantized[id(left)][1], right)
        return func(*args, **(kwargs or {}))


def seen_quantized(source: Tensor, quantized: Tensor) -> None:
    """Tell the running forward pass that `quantized` is `source` between Q and DQ."""
    if _running:
        # Both are held until the pass ends, so that their ids stay their own.
        _running[-1].quantized.setdefault(id(source), (source, quantized))


def shared_residuals(module: nn.Module) -> None:
    """From now on a residual addition in `module` reads the shortcut that its next convolution quantizes.

    Hooks on the module itself and, once they are there, on its quantizers: call it again after
    ``mtq.quantize`` (`compress.quantize_modelopt` does). Without quantizers nothing changes.
    """
    if not getattr(module, "_edgeml_residuals", False):
        module._edgeml_residuals = True
        module.register_forward_pre_hook(_begin)
        module.register_forward_hook(_end, always_call=True)
    for part in module.modules():
        quantizer = getattr(part, "input_quantizer", None)
        if quantizer is None or not isinstance(part, (*CONVOLUTIONS, *TRANSPOSED)):
            continue
        if not getattr(part, "_edgeml_residuals", False):
            part._edgeml_residuals = True
            part.register_forward_hook(_made)
            quantizer.register_forward_hook(_quantized)


def _begin(module: nn.Module, args: Any) -> None:
    _running.append(_Residuals())
    _running[-1].__enter__()


def _end(module: nn.Module, args: Any, out: Any) -> None:
    _running.pop().__exit__(None, None, None)


def _made(module: nn.Module, args: Any, out: Tensor) -> None:
    if _running and getattr(module.weight_quantizer, "is_enabled", True):
        _running[-1].made[id(out)] = out


def _quantized(quantizer: nn.Module, args: tuple, out: Tensor) -> None:
    if quantizer.is_enabled and quantizer._if_quant and quantizer.pre_quant_scale is None:
        seen_quantized(args[0], out)


# ---------------------------------------------------------------- recurrent layers


class _Hidden(nn.Module):
    """Runs a module that ModelOpt does not find."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_part", (part,))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._part[0](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_part"][0], name)


@contextlib.contextmanager
def recurrent_hidden(module: nn.Module) -> Iterator[list[str]]:
    """Inside, ModelOpt does not see recurrent layers, which it would unroll; yields their names."""
    found = [
        (parent, name, child, f"{path}.{name}".lstrip("."))
        for path, parent in module.named_modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.RNNBase)
    ]
    for parent, name, child, _ in found:
        setattr(parent, name, _Hidden(child))
    try:
        yield [where for *_, where in found]
    finally:
        for parent, name, child, _ in found:
            setattr(parent, name, child)
