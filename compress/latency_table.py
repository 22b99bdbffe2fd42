"""The latency table of a target: what an engine's time becomes when channels, heads or blocks go.

Not the work is counted but the time measured: on one CPU generation half the channels of ResNet-56
made its INT8 engine 1.4 times slower, and removing blocks beat both (docs/budget.md). A layer's
time depends on its input *and* its output channels, so the table holds a measured time a shape
(`layer_times`), filled as shapes are asked for; a network is the sum of its layers times a
correction that the real engine gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import InputError
from .layer_times import GATES, LayerShape, time_layer

# Units kept by group; of a block 1 or 0. A group that is missing is whole.
Kept = Mapping[str, int]
# Points on a group's axis: more cost measuring time and win little, kernels reward multiples.
MOST_LEVELS = 10
# Shapes to measure, at about 0.2 s each; shared among the families of a network.
MOST_SHAPES = 640


@dataclass(frozen=True)
class Prunable:
    """A group as the table sees it.

    Attributes:
        name, kind, size: of the group; a block has size 1.
        members: ``(layer, axis, positions a unit)`` with axis ``in`` or ``out``.
        block: the innermost block that holds the group (of a block: that it lies in), or None.
    """

    name: str
    kind: str
    size: int
    members: tuple[tuple[str, str, int], ...] = ()
    block: str | None = None

    def levels(self) -> list[int]:
        """How many units may be kept, ascending, the whole last.

        Steps are multiples of 8 where the group has enough units: the kernels' vectors have 16 or
        more lanes, and levels between cost the same. Of the rest the solver takes what pays.
        """
        if self.kind == "block":
            return [0, 1]
        step = next(
            s for s in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if s * MOST_LEVELS >= self.size
        )
        if self.kind == "channels" or self.kind == "hidden":
            step = max(
                step, 8 if self.size >= 32 else 4 if self.size >= 16 else 2 if self.size >= 8 else 1
            )
        return [*range(step, self.size, step), self.size]


@dataclass
class LatencyTable:
    """Times of layer shapes, and what a network of such layers takes.

    Args:
        layers: the shapes of the unpruned network, by layer.
        groups: what may be removed, by name.
        threads: of the engines.
        time_shape: milliseconds of a shape; replaced where a test plants a latency, or by a count
            of multiply-accumulates (`flops_table`).
        sparse: nothing is measured as it is asked for: what `remember` was not given is estimated from
            its family (a device builds each engine that it times, see `device_layer_times`).

    Attributes:
        times: milliseconds by `LayerShape.key`, everything measured so far.
        fixed_ms: what an inference costs beside its layers.
        scale: real engine over table, corrected by what is measured (`correct`).
        coverage: of a sparse table, how many of the shapes that one group alone can make were measured, and
            how many there are.
        notes: what disturbed the measuring.
    """

    layers: dict[str, LayerShape]
    groups: dict[str, Prunable]
    threads: int | None = None
    time_shape: Callable[[LayerShape], float] | None = None
    sparse: bool = False
    times: dict[str, float] = field(default_factory=dict)
    fixed_ms: float = 0.0
    scale: float = 1.0
    coverage: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)
    _empty: dict[str, float] = field(default_factory=dict)
    _families: dict[str, dict[tuple[int, int], float]] = field(default_factory=dict)

    def layer_ms(self, shape: LayerShape) -> float:
        """A layer's own time, measured once a shape; where enough of its family was measured, from
        three of those."""
        known = self.times.get(shape.key)
        if known is not None:
            return known
        family = self._families.setdefault(shape.family, {})
        if self.sparse:
            estimate = _from_three(family, shape.inputs, shape.outputs)
            return _by_work(family, shape) if estimate is None else estimate
        if self.time_shape is None and len(family) >= self._most_a_family():
            estimate = _from_three(family, shape.inputs, shape.outputs)
            if estimate is not None:
                return estimate
        measure = self.time_shape or (lambda s: time_layer(s, self.threads, self._empty))
        self.times[shape.key] = family[shape.inputs, shape.outputs] = measure(shape)
        return self.times[shape.key]

    def wanted(self) -> list[LayerShape]:
        """Every shape that one group alone can make, each once, the unpruned ones first."""
        asked: dict[str, LayerShape] = {}

        def note(shape: LayerShape) -> float:
            asked[shape.key] = shape
            return 1.0

        LatencyTable(self.layers, self.groups, time_shape=note).costs({})
        return list(asked.values())

    def remember(self, times: Mapping[str, float]) -> None:
        """Take over what was measured before, by `LayerShape.key`."""
        for key, ms in times.items():
            inputs, outputs, family = key.split("-", 2)
            self._families.setdefault(family, {})[int(inputs), int(outputs)] = ms
            self.times[key] = ms

    def _most_a_family(self) -> int:
        return max(16, MOST_SHAPES // len({shape.family for shape in self.layers.values()}))

    def shapes(self, kept: Kept) -> dict[str, LayerShape]:
        """The layers that are left, as they are then."""
        lost: dict[tuple[str, str], int] = {}
        for name, units in kept.items():
            group = self.groups[name]
            for layer, axis, each in group.members:
                lost[layer, axis] = lost.get((layer, axis), 0) + each * (group.size - units)
        gone = [name for name, group in self.groups.items() if _removed(group, kept)]
        return {
            layer: _cut(shape, lost.get((layer, "in"), 0), lost.get((layer, "out"), 0))
            for layer, shape in self.layers.items()
            if not any(layer == name or layer.startswith(f"{name}.") for name in gone)
        }

    def predict(self, kept: Kept) -> float:
        """Milliseconds of one inference of the pruned network."""
        return self.fixed_ms + self.scale * sum(map(self.layer_ms, self.shapes(kept).values()))

    def correct(self, kept: Kept, measured_ms: float) -> float:
        """Make the table agree with an engine that was measured.

        Returns:
            The prediction's relative error before: measured / predicted − 1.
        """
        error = measured_ms / self.predict(kept) - 1
        layers = (self.predict(kept) - self.fixed_ms) / self.scale
        self.scale = max(measured_ms - self.fixed_ms, 0.05 * measured_ms) / layers
        return error

    def costs(self, kept: Kept) -> tuple[float, dict[str, dict[int, float]]]:
        """What each level of each group costs while the others stay as `kept` says.

        Returns:
            The milliseconds that no choice changes, and by group and level the milliseconds added
            to them. Of a group inside a block they count only while the block is kept; a block's
            own level 1 holds the time of its layers.
        """
        shapes = self.shapes(
            {**kept, **{n: 1 for n, g in self.groups.items() if g.kind == "block"}}
        )
        now = {layer: self.layer_ms(shape) for layer, shape in shapes.items()}
        inside = {layer: self._block_of(layer) for layer in now}
        base = self.fixed_ms + self.scale * sum(ms for la, ms in now.items() if inside[la] is None)
        found: dict[str, dict[int, float]] = {}
        for name, group in self.groups.items():
            if group.kind == "block":
                own = sum(ms for layer, ms in now.items() if inside[layer] == name)
                found[name] = {0: 0.0, 1: self.scale * own}
                continue
            axes: dict[str, dict[str, int]] = {}
            for layer, axis, each in group.members:
                if layer in now:
                    at = axes.setdefault(layer, {})
                    at[axis] = at.get(axis, 0) + each
            found[name] = {}
            for level in group.levels():
                more = kept.get(name, group.size) - level
                delta = 0.0
                for layer, each in axes.items():
                    # Of a block that is gone now, this group's share is nothing.
                    if group.block is None and _gone(inside[layer], self.groups, kept):
                        continue
                    cut = _cut(shapes[layer], more * each.get("in", 0), more * each.get("out", 0))
                    delta += self.layer_ms(cut) - now[layer]
                found[name][level] = self.scale * delta
        return base, found

    def sizes(self, whole_bytes: float) -> LatencyTable:
        """The same network in bytes of an INT8 engine's files: a byte a weight, and what the whole
        one's files hold beyond that (the graph's text, names) shared among the layers."""
        weights = sum(map(_weights, self.layers.values()))
        each = max(0.0, whole_bytes - weights) / max(1, len(self.layers))
        return LatencyTable(self.layers, self.groups, time_shape=lambda s: _weights(s) + each)

    def _block_of(self, layer: str) -> str | None:
        """The innermost removable block that holds a layer."""
        names = [
            name
            for name, group in self.groups.items()
            if group.kind == "block" and (layer == name or layer.startswith(f"{name}."))
        ]
        return max(names, key=len, default=None)


def flops_table(table: LatencyTable) -> LatencyTable:
    """The same network predicted by its multiply-accumulates alone: what benchmarks compare with."""
    return LatencyTable(table.layers, table.groups, time_shape=lambda s: s.macs * 1e-9)


def trace_layers(module: Any, sample: Mapping[str, Any]) -> dict[str, LayerShape]:
    """The layers that carry the work, with the shapes one inference gives them.

    Args:
        module: the torch module, in eval mode.
        sample: its inputs with the batch axis, tensors or arrays.
    """
    import torch
    from torch import nn

    found: dict[str, LayerShape] = {}
    hooks = []

    def look(name: str) -> Callable[..., None]:
        def hook(layer: Any, inputs: Sequence[Any], named: dict[str, Any], output: Any) -> None:
            shape = _shape_of(layer, inputs[0] if inputs else next(iter(named.values())))
            if shape is not None:
                found[name] = shape

        return hook

    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear, nn.LSTM, nn.GRU)):
            hooks.append(layer.register_forward_hook(look(name), with_kwargs=True))
    try:
        with torch.inference_mode():
            module(**{n: torch.as_tensor(a) for n, a in sample.items()})
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _from_three(family: Mapping[tuple[int, int], float], inputs: int, outputs: int) -> float | None:
    """t(a, b) from t(a, y) · t(x, b) / t(x, y) with the nearest x and y that were measured so."""
    best = None
    for (x, y), pivot in family.items():
        one, other = family.get((inputs, y)), family.get((x, outputs))
        if one is None or other is None:
            continue
        far = abs(x / inputs - 1) + abs(y / outputs - 1)
        if best is None or far < best[0]:
            best = far, one * other / pivot
    return None if best is None else best[1]


def _by_work(family: Mapping[tuple[int, int], float], shape: LayerShape) -> float:
    """From the shape of the family with the nearest work, by their multiply-accumulates.

    Raises:
        InputError: none of the family was measured.
    """
    if not family:
        raise InputError(
            f"no layer of the kind {shape.family} was measured; give the table more time"
        )
    known = {replace(shape, inputs=a, outputs=b).macs: ms for (a, b), ms in family.items()}
    nearest = min(known, key=lambda macs: abs(math.log(macs / shape.macs)))
    return known[nearest] * shape.macs / nearest


def _shape_of(layer: Any, x: Any) -> LayerShape | None:
    from torch import nn

    if isinstance(layer, nn.Linear):
        rows = x.numel() // x.shape[-1]
        return LayerShape("linear", layer.in_features, layer.out_features, (1, rows))
    if isinstance(layer, (nn.LSTM, nn.GRU)):
        x = getattr(x, "data", x)  # of a packed sequence
        steps = x.shape[1 if layer.batch_first else 0] if x.dim() == 3 else x.shape[0]
        cells = layer.num_layers * (2 if layer.bidirectional else 1)
        kind = type(layer).__name__.lower()
        return LayerShape(kind, layer.input_size, layer.hidden_size, (cells, steps))
    size, kernel, stride = tuple(x.shape[2:]), tuple(layer.kernel_size), tuple(layer.stride)
    if isinstance(layer, nn.Conv1d):
        size, kernel, stride = (1, *size), (1, *kernel), (1, *stride)
    depthwise = 1 < layer.groups == layer.in_channels == layer.out_channels
    return LayerShape(
        "conv",
        layer.in_channels,
        layer.out_channels,
        size,
        kernel,
        stride,
        depthwise,
        1 if depthwise else layer.groups,
    )


def _removed(group: Prunable, kept: Kept) -> bool:
    return group.kind == "block" and kept.get(group.name, 1) == 0


def _gone(block: str | None, groups: Mapping[str, Prunable], kept: Kept) -> bool:
    while block is not None:
        if kept.get(block, 1) == 0:
            return True
        block = groups[block].block
    return False


def _cut(shape: LayerShape, fewer_in: int, fewer_out: int) -> LayerShape:
    if not fewer_in and not fewer_out:
        return shape
    if shape.depthwise:  # one of the two says it for both
        left = shape.outputs - (fewer_out or fewer_in)
        return replace(shape, inputs=max(1, left), outputs=max(1, left))
    groups = shape.groups
    inputs, outputs = max(groups, shape.inputs - fewer_in), max(groups, shape.outputs - fewer_out)
    return replace(shape, inputs=inputs - inputs % groups, outputs=outputs - outputs % groups)


def _weights(shape: LayerShape) -> int:
    if shape.kind in GATES:
        gates = GATES[shape.kind] * shape.size[0]
        return gates * shape.outputs * (shape.inputs + shape.outputs)
    each = 1 if shape.depthwise else shape.inputs // shape.groups
    return shape.outputs * each * shape.kernel[0] * shape.kernel[1]
