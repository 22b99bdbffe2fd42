"""One thing the linter found."""

from __future__ import annotations

from dataclasses import dataclass


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


# Sources that several rules name.
GUIDE = "NVIDIA TensorRT guide, Working with quantized types"
TRIED = "tried: the parser of TensorRT-RTX 1.7"
