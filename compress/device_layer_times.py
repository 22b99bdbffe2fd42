"""Times of layer shapes on a device: networks of many layers beside each other, read by the runtime's profile there.

A device builds every engine it times, which takes TensorRT seconds to minutes: so one network holds `PER_NETWORK`
layers of different widths (HALP, Shen et al. 2021, arXiv:2110.10811, section 3.2 times each shape alone, in
hours), and the profile tells each layer's own time. Coarse widths come first, so that a bound of time leaves a table
that is coarse and not one that is cut.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DeviceError, InputError
from ..runtime.remote_bench import ModelFile, RemoteMeter
from .device_layer_network import FORM, IR_VERSION, OPSET, read_layers, write_layers
from .latency_table import LatencyTable, Prunable
from .layer_times import GATES, LayerShape
from .stages import Stages

PER_NETWORK = 24
ITERATIONS = 50


@dataclass(frozen=True)
class DeviceTimes:
    """What was measured.

    Attributes:
        times: milliseconds by `LayerShape.key`.
        asked: shapes that were wanted; those without a time are estimated from the others.
        seconds: what each network took, in order, also where it came from the cache.
        warnings: of the device, each once.
    """

    times: dict[str, float]
    asked: int
    seconds: list[float]
    warnings: tuple[str, ...] = ()


def open_device_table(
    layers: dict[str, LayerShape],
    groups: dict[str, Prunable],
    meter: RemoteMeter,
    runtime: str,
    stages: Stages,
    table_time_s: float | None = None,
    times: Mapping[str, float] | None = None,
) -> LatencyTable:
    """The latency table of a network on the device behind `meter`, in INT8.

    Args:
        layers, groups: as of `LatencyTable`.
        runtime: tensorrt or onnxruntime.
        table_time_s: bound of the measuring; the network's own shapes are measured in any case.
        times: what was measured before, by `LayerShape.key`; with a bound only the network's own shapes are
            added then, as the bound was for the first table.

    Raises:
        InputError: a recurrent layer, which no route for a device quantizes.
        DeviceError: the link is lost, or the profile there does not name a layer.
    """
    refuse_recurrent(layers)
    table = LatencyTable(layers, groups, sparse=True)
    known = dict(times or {})
    table.remember(known)
    whole, more = own_shapes(layers), table.wanted()
    if known and table_time_s is not None:
        more = []
    found = measure_on_device(
        [shape for shape in whole if shape.key not in known],
        [shape for shape in more if shape.key not in known],
        meter,
        runtime,
        stages,
        table_time_s,
        measured_families={key.split("-", 2)[2] for key in known},
    )
    table.remember(found.times)
    table.notes += found.warnings
    wanted = {shape.key for shape in (*whole, *table.wanted())}
    table.coverage = len(wanted & table.times.keys()), len(wanted)
    if note := coverage_note(*table.coverage):
        stages.log(f"note: {note}")
    table.fixed_ms = _call_ms(meter, runtime, stages)
    return table


def coverage_note(measured: int, wanted: int) -> str | None:
    """What is told of a table that is partly estimated; None where all of it was measured.

    >>> coverage_note(3, 8)
    'the latency table holds 3 of 8 shapes measured on the device; the others are estimated from them'
    """
    if measured >= wanted:
        return None
    return (
        f"the latency table holds {measured} of {wanted} shapes measured on the device; the others are "
        "estimated from them"
    )


def refuse_recurrent(layers: Mapping[str, LayerShape]) -> None:
    """Say which layer has no place in a device's table.

    Raises:
        InputError: a recurrent one.
    """
    for name, shape in layers.items():
        if shape.kind in GATES:
            raise InputError(
                f"layer {name} is recurrent: no route for a device quantizes it, and no table holds it"
            )


def own_shapes(layers: Mapping[str, LayerShape]) -> list[LayerShape]:
    """The network's own shapes, each once."""
    return list({shape.key: shape for shape in layers.values()}.values())


def measure_on_device(
    first: Sequence[LayerShape],
    more: Sequence[LayerShape],
    meter: RemoteMeter,
    runtime: str,
    stages: Stages,
    table_time_s: float | None = None,
    most_networks: int | None = None,
    measured_families: Collection[str] = (),
) -> DeviceTimes:
    """Times of shapes, `PER_NETWORK` a network; each network is a stage, so that a killed run goes on.

    Args:
        first: measured in any case.
        more: as far as `table_time_s` reaches, coarse widths first.
        most_networks: stop after so many (`--plan`).
        measured_families: of which shapes were measured before.
    """
    known = {shape.key for shape in first}
    rest = [shape for shape in coarse_first(more) if shape.key not in known]
    shapes = [*first, *rest]
    times: dict[str, float] = {}
    families = set(measured_families)
    seconds: list[float] = []
    warnings: list[str] = []
    for start in range(0, len(shapes), PER_NETWORK):
        batch = shapes[start : start + PER_NETWORK]
        # What came from the cache counts as it took then: a run that was killed stops where it would have.
        spent = sum(seconds)
        late = stages.out_of_time() or (
            table_time_s is not None and spent + _each(spent, start) > table_time_s
        )
        if (start >= len(first) and late) or len(seconds) == most_networks:
            break
        key = {
            "device": meter.state(),
            "runtime": runtime,
            "iterations": ITERATIONS,
            "form": FORM,
            "shapes": [shape.key for shape in batch],
        }
        line = f"latency table on the device: shapes {start + 1} to {start + len(batch)} of {len(shapes)}"
        found = stages.values(
            "device-table",
            key,
            line,
            lambda b=batch, f=frozenset(families): _timed(b, meter, runtime, stages.part, f),
        )
        times |= found["times"]
        families |= {shape.family for shape in batch if shape.key in times}
        seconds.append(found["seconds"])
        warnings += found["warnings"]
    return DeviceTimes(times, len(shapes), seconds, tuple(dict.fromkeys(warnings)))


def coarse_first(shapes: Sequence[LayerShape]) -> list[LayerShape]:
    """Of each family by work: a coarse grid of shapes first, then those between them."""
    families: dict[str, list[LayerShape]] = {}
    for shape in shapes:
        families.setdefault(shape.family, []).append(shape)
    ranked = []
    for family in families.values():
        ordered = sorted(family, key=lambda shape: shape.macs)
        # The lowest set bit of a place: 0 and the multiples of large powers of two are the coarse grid.
        ranked += [((i & -i) or len(ordered), shape) for i, shape in enumerate(ordered)]
    return [shape for _, shape in sorted(ranked, key=lambda pair: -pair[0])]


def _timed(
    shapes: Sequence[LayerShape],
    meter: RemoteMeter,
    runtime: str,
    folder: Path,
    known: Collection[str],
) -> dict[str, Any]:
    path, began = folder / "layers.onnx", time.monotonic()
    feeds = write_layers(shapes, runtime, path)
    try:
        model = ModelFile((path,), runtime, "int8")
        found = meter.layer_times({"layers": model}, feeds, iterations=ITERATIONS)
    finally:
        path.unlink(missing_ok=True)
    times = read_layers(shapes, found.layers["layers"], known)
    spent = time.monotonic() - began
    return {"times": times, "seconds": spent, "warnings": list(found.warnings)}


def _call_ms(meter: RemoteMeter, runtime: str, stages: Stages) -> float:
    """Milliseconds of a call there that computes next to nothing."""
    import onnx
    from onnx import helper

    def make() -> Mapping[str, Any]:
        path = stages.part / "nothing.onnx"
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"], "nothing")],
            "nothing",
            [info("x", onnx.TensorProto.FLOAT, [1, 8])],
            [info("y", onnx.TensorProto.FLOAT, [1, 8])],
        )
        opset = [helper.make_opsetid("", OPSET)]
        onnx.save_model(helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION), path)
        try:
            model = ModelFile((path,), runtime, "fp32")
            found = meter.bench(
                {"nothing": model}, {"x": np.zeros((1, 8), np.float32)}, duration_s=0.5
            )
        finally:
            path.unlink(missing_ok=True)
        if found.failed:
            raise DeviceError(f"a call that computes nothing: {found.failed['nothing']}")
        return {"ms": found["nothing"].p50_ms.value}

    key = {"device": meter.state(), "runtime": runtime}
    return float(stages.values("device-call", key, "timing a call on the device", make)["ms"])


def _each(spent: float, measured: int) -> float:
    """Seconds that the next network will take, by those before it."""
    return spent * PER_NETWORK / max(1, measured)
