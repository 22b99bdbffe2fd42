"""Which layer is to blame: the first one where two engines part, and the ones INT8 hurts most."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..artifact.onnx_file import read_onnx
from ..errors import InputError, ModelError
from ..runtime.engine import EngineOptions
from .layer_noise import worst_layers_onnx, worst_layers_openvino
from .onnx_graph import forward_feed, left_as_it_was
from .parity import Difference, RunningDifference, Tolerance, tolerance_for
from .probe import Probe, batch_of, chunks, float_probes, probed_engine

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = [
    "Blame",
    "first_divergence",
    "first_divergence_torch",
    "torch_scope",
    "worst_layers_onnx",
    "worst_layers_openvino",
]

Feeds = Sequence[Mapping[str, np.ndarray]]

SCOPES = "pkg.torch.onnx.name_scopes"  # written by torch.onnx.export(dynamo=True)


@dataclass(frozen=True)
class Blame:
    """The first layer, in the graph's order, where two engines part.

    Attributes:
        layer: the ONNX node's name.
        op: its operator.
        tensor: the output that differs.
        scope: the torch module it came from, where the ONNX file says so.
        error: how far apart they are there.
        line: all that in one line.
    """

    layer: str
    op: str
    tensor: str
    scope: str | None
    error: Difference
    line: str


def first_divergence(
    onnx_path: Path,
    reference_runtime: str,
    candidate_runtime: str,
    inputs: Feeds,
    precision: str,
    options: EngineOptions | None = None,
    candidate_onnx: Path | None = None,
) -> Blame | None:
    """Run one graph in two runtimes, or two graphs with the same tensor names, with intermediate
    outputs added, and name the first layer beyond the tolerance of `precision`.

    An added output keeps a runtime from fusing across it, so a fault of a fused kernel can vanish
    under observation. Therefore all tensors of a chunk are looked at together first (the fault of
    an operator); where none parts although the outputs did, one tensor at a time is added by
    bisection, which leaves all other fusions in place; and where even that hides it, the layer that
    computes the output is named, and the line says so.

    Args:
        onnx_path: the graph that is right.
        reference_runtime: ``onnxruntime`` or ``openvino``; runs it in fp32.
        candidate_runtime: the one in doubt, run with `options`.
        inputs: real inputs, each ``{name: [batch, …]}``; two to eight samples are enough.
        precision: chooses the tolerance, see `parity.TOLERANCES`.
        options: how the candidate is compiled; by default with an open batch axis.
        candidate_onnx: the candidate's graph, where it is another file.

    Returns:
        The blame, or None where the outputs are within tolerance.

    Raises:
        ModelError: a graph cannot be read, or the two share no outputs.
        InputError: the inputs do not fit.
    """
    if not inputs:
        raise InputError("blame needs at least one input")
    options = options or EngineOptions(batch=None)
    pair = _Pair(
        Path(onnx_path),
        Path(candidate_onnx or onnx_path),
        reference_runtime,
        candidate_runtime,
        options,
        inputs,
        tolerance_for(precision),
    )
    outputs = pair.differences([])
    parted = [d for d in outputs.values() if pair.parts(d)]
    if not parted:
        return None
    probes = pair.probes()
    for chunk in chunks(probes):
        found = pair.differences(chunk)
        for probe in chunk:
            if pair.parts(found[probe.tensor]):
                return _blame(probe.node, found[probe.tensor])
    return _bisect(pair, probes) or _blame_output(pair, parted[0])


@dataclass(frozen=True)
class _Pair:
    """Two graphs in two runtimes, run on the same inputs."""

    reference_onnx: Path
    candidate_onnx: Path
    reference_runtime: str
    candidate_runtime: str
    options: EngineOptions
    inputs: Feeds
    tolerance: Tolerance

    def probes(self) -> list[Probe]:
        """Tensors that both graphs compute, in the reference's order."""
        probes = float_probes(self.reference_onnx, batch_of(self.inputs))
        if self.candidate_onnx == self.reference_onnx:
            return probes
        shared = {out for node in read_onnx(self.candidate_onnx).graph.node for out in node.output}
        return [probe for probe in probes if probe.tensor in shared]

    def differences(self, probes: Sequence[Probe]) -> dict[str, Difference]:
        """Of the graph's outputs and of `probes`, by tensor."""
        values = [probe.value for probe in probes]
        plain = replace(self.options, execution="fp32")
        with (
            probed_engine(self.reference_onnx, values, self.reference_runtime, plain) as right,
            probed_engine(
                self.candidate_onnx, values, self.candidate_runtime, self.options
            ) as doubtful,
        ):
            found: dict[str, RunningDifference] = {}
            for feed in self.inputs:
                expected, got = right.run(feed), doubtful.run(feed)
                for name in expected.keys() & got.keys():
                    found.setdefault(name, RunningDifference(name)).add(expected[name], got[name])
        if not found:
            raise ModelError(
                f"{self.reference_onnx} and {self.candidate_onnx} have no output name in common"
            )
        return {name: sums.difference() for name, sums in found.items()}

    def parts(self, difference: Difference) -> bool:
        return difference.problem is not None or not difference.within(self.tolerance)


def _bisect(pair: _Pair, probes: Sequence[Probe]) -> Blame | None:
    """The first tensor that differs when it alone is added, if what follows it does too."""
    low, high, blame = 0, len(probes), None
    while low < high:
        middle = (low + high) // 2
        probe = probes[middle]
        found = pair.differences([probe])[probe.tensor]
        if pair.parts(found):
            high, blame = middle, _blame(probe.node, found)
        else:
            low = middle + 1
    return blame


def _blame_output(pair: _Pair, output: Difference) -> Blame:
    graph = read_onnx(pair.reference_onnx).graph
    node = next(node for node in graph.node if output.name in node.output)
    blame = _blame(node, output)
    return replace(
        blame,
        line=f"{blame.line}; no tensor before it shows a difference when looked at, so the fault "
        "lies in what is fused with it",
    )


def _blame(node: onnx.NodeProto, error: Difference, scope: str | None = None) -> Blame:
    scope = scope or torch_scope(node)
    layer = node.name or error.name
    origin = f"{node.op_type}, torch module {scope}" if scope else node.op_type
    figures = error.problem or (
        f"max |Δ| {error.max_abs:.2g}, {error.max_rel:.1e} of the largest value, "
        f"{error.sqnr_db:.1f} dB"
    )
    line = f"the outputs part first at layer {layer} ({origin}): {figures}"
    return Blame(layer, node.op_type, error.name, scope, error, line)


def torch_scope(node: onnx.NodeProto) -> str | None:
    """The torch module a node came from, as in ``layer1.0.conv1``; None where it is not said."""
    # The last entry is the traced operation, the one before it the innermost module.
    inner = _scopes(node)[-2:-1]
    return (inner[0] or None) if inner else None


def _scopes(node: onnx.NodeProto) -> list[str]:
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            try:
                scopes = ast.literal_eval(entry.value)
            except (SyntaxError, ValueError):
                return []
            return [str(scope) for scope in scopes] if isinstance(scopes, list) else []
    return []


# ---------------------------------------------------------------- torch against ONNX


def first_divergence_torch(
    module: torch.nn.Module,
    onnx_path: Path,
    inputs: Feeds,
    precision: str = "fp32",
    runtime: str = "onnxruntime",
) -> Blame | None:
    """Name the first torch module whose output the exported graph does not reproduce.

    Modules are matched by the scopes that torch's exporter writes into the nodes: the last node of
    a module computes its output. Modules whose nodes were folded away, that run more than once or
    return no single tensor are passed over; the innermost module is named.

    Args:
        module: run in eval mode, and left as it was.
        onnx_path: its export by `to_onnx`.
        inputs: real inputs, each ``{name: [batch, …]}``.
        precision: chooses the tolerance.
        runtime: executes the graph, in fp32.

    Returns:
        The blame, or None where no module parts from its nodes (compare the outputs by `parity`).
    """
    tolerance = tolerance_for(precision)
    last: dict[str, onnx.NodeProto] = {}
    for node in read_onnx(onnx_path).graph.node:
        for scope in _scopes(node)[:-1]:
            last[scope] = node
    probes = {probe.tensor: probe for probe in float_probes(Path(onnx_path), batch_of(inputs))}
    order = {tensor: i for i, tensor in enumerate(probes)}
    scoped = [(s, n) for s, n in last.items() if s and n.output[0] in probes]
    # In the graph's order; of modules that end in the same node the innermost first.
    scoped.sort(key=lambda pair: (order[pair[1].output[0]], -pair[0].count(".")))
    sums = {scope: RunningDifference(node.output[0]) for scope, node in scoped}
    wanted = list({node.output[0]: None for _, node in scoped})
    for chunk in chunks([probes[tensor] for tensor in wanted]):
        inside = {probe.tensor for probe in chunk}
        here = {scope: node.output[0] for scope, node in scoped if node.output[0] in inside}
        with probed_engine(
            Path(onnx_path), [p.value for p in chunk], runtime, EngineOptions(batch=None)
        ) as engine:
            for feed in inputs:
                got = engine.run(feed)
                for scope, value in _module_outputs(module, feed, set(here)).items():
                    if value.shape == got[here[scope]].shape:
                        sums[scope].add(value, got[here[scope]])
        for scope, node in scoped:
            if scope not in here:
                continue
            found = sums[scope].difference()
            if found.problem or not found.within(tolerance):
                return _blame(node, found, scope)
    return None


def _module_outputs(
    module: torch.nn.Module, feed: Mapping[str, np.ndarray], names: set[str]
) -> dict[str, np.ndarray]:
    """What the named modules return in one forward pass; not those that ran more than once."""
    import torch

    outputs: dict[str, np.ndarray] = {}
    calls: dict[str, int] = {}

    def keep(name: str):
        def hook(_module: torch.nn.Module, _args: object, output: object) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(output, torch.Tensor):
                outputs[name] = output.detach().float().cpu().numpy().copy()

        return hook

    tensors, _ = forward_feed(torch, module, feed)
    hooks = [m.register_forward_hook(keep(n)) for n, m in module.named_modules() if n in names]
    try:
        with left_as_it_was(torch, module), torch.no_grad():
            module(**tensors)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: value for name, value in outputs.items() if calls[name] == 1}
