"""One thing the linter found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Finding:
    """A node and what is wrong with it.

    Attributes:
        node: its name (its first output where it has none), or the graph input's.
        rule: a word that does not change between releases.
        severity: ``error`` keeps the engine from building or makes it wrong; ``warning`` makes it
            slow or less accurate.
        consequence: what TensorRT would do.
        mend: what to change.
        source: where that is written, or that it was tried.
        fixable: ``edgeml lint --fix`` mends it.
    """

    node: str
    rule: str
    severity: str
    consequence: str
    mend: str
    source: str
    fixable: bool = False

    @property
    def line(self) -> str:
        return f"{self.severity} {self.rule} at {self.node}: {self.consequence}; {self.mend} [{self.source}]"


NAMED = 3  # nodes named where one cause has many


def grouped(findings: Iterable[Finding]) -> list[str]:
    """One line for all nodes that a rule found for the same cause: how many, and the first names.

    Findings that differ in more than the node (a range, the layer it breaks) keep lines of their own. The
    lines stand in the order of each cause's first finding.
    """
    nodes: dict[Finding, list[str]] = {}
    for finding in findings:
        nodes.setdefault(replace(finding, node=""), []).append(finding.node)
    return [replace(cause, node=_named(names)).line for cause, names in nodes.items()]


def _named(nodes: list[str]) -> str:
    first = ", ".join(nodes[:NAMED])
    return first if len(nodes) <= NAMED else f"{len(nodes)} nodes ({first} …)"


# Sources that several rules name.
GUIDE = "NVIDIA TensorRT guide, Working with quantized types"
TRIED = "tried: the parser of TensorRT-RTX 1.7"
