"""What a TensorRT version would reject, get wrong or run slowly in an ONNX graph.

A rule is a function ``(graph, version) -> findings``; the rules lie in `lint_rules_qdq` (scales, zero
points, placement), `lint_rules_version` (operators, opset, types, shapes) and `lint_rules_operators` (forms of
operators). `RULES` lists them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..artifact.tensorrt_versions import TensorRTVersion, find_version
from . import lint_rules_operators, lint_rules_qdq, lint_rules_version
from .lint_finding import Finding
from .lint_graph import LintGraph

Rule = Callable[[LintGraph, TensorRTVersion], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    lint_rules_qdq.scales,
    lint_rules_qdq.scale_counts,
    lint_rules_qdq.zero_points,
    lint_rules_qdq.quantized_types,
    lint_rules_qdq.int32_biases,
    lint_rules_qdq.weight_axes,
    lint_rules_qdq.activation_channels,
    lint_rules_qdq.doubled_pairs,
    lint_rules_qdq.lone_quantizers,
    lint_rules_qdq.half_quantized,
    lint_rules_qdq.outputs_before_activation,
    lint_rules_qdq.normalization_after_quantized,
    lint_rules_qdq.residual_adds,
    lint_rules_qdq.concat_scales,
    lint_rules_version.opset,
    lint_rules_version.operators,
    lint_rules_version.reduce_axes,
    lint_rules_version.heavy_float32,
    lint_rules_version.fp16_overflow,
    lint_rules_operators.element_types,
    lint_rules_operators.stored_inputs,
    lint_rules_operators.operator_forms,
    lint_rules_operators.old_opset,
)


@dataclass(frozen=True)
class LintReport:
    """All findings on one file for one version.

    Attributes:
        path: the file.
        version: the row of `artifact.tensorrt_versions`.
        findings: errors first, then in the graph's order.
    """

    path: Path
    version: TensorRTVersion
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Those that keep the engine from building or make it wrong."""
        return tuple(f for f in self.findings if f.severity == "error")

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "model": str(self.path),
            "tensorrt": self.version.name,
            "errors": len(self.errors),
            "warnings": len(self.findings) - len(self.errors),
            "findings": [asdict(finding) for finding in self.findings],
        }


def lint(
    path: Path,
    tensorrt: str | TensorRTVersion,
    shapes: Iterable[str] = (),
    ranges: Mapping[str, float] | None = None,
) -> LintReport:
    """Check an ONNX file against a TensorRT version.

    Args:
        path: the ``.onnx`` file.
        tensorrt: ``8.5.2 … 11.4`` or ``rtx``.
        shapes: names of the inputs that an optimisation profile gives shapes to.
        ranges: largest magnitude seen of a float tensor, by name, on calibration data; with it
            FP16 overflow is found where no quantizer tells the range.

    Raises:
        InputError: the version is unknown.
        ModelError: the file cannot be read.
    """
    version = find_version(tensorrt) if isinstance(tensorrt, str) else tensorrt
    graph = LintGraph.read(Path(path))
    found = [finding for rule in RULES for finding in rule(graph, version)]
    found += lint_rules_version.open_shapes(graph, frozenset(shapes))
    if ranges:
        found += lint_rules_version.ranges_beyond_fp16(graph, ranges)
    order = {node: i for i, node in enumerate(_labels(graph))}
    found.sort(key=lambda f: (f.severity != "error", order.get(f.node, -1), f.rule))
    return LintReport(Path(path), version, tuple(dict.fromkeys(found)))


def _labels(graph: LintGraph) -> list[str]:
    from .lint_graph import label

    return [label(node) for node in graph.nodes]
