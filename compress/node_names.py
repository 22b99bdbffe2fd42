"""Which nodes of an ONNX graph a user's regular expressions name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError


def match_nodes(model: Path, patterns: Sequence[str]) -> list[str]:
    """Names of the nodes that any of `patterns` matches (``re.search``).

    Raises:
        InputError: a pattern is no regular expression, or matches nothing.
    """
    if not patterns:
        return []
    import onnx

    names = [node.name for node in onnx.load(str(model), load_external_data=False).graph.node]
    matched: list[str] = []
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except re.error as e:
            raise InputError(f"--nodes-to-exclude {pattern!r} is no regular expression: {e}") from e
        hits = [name for name in names if expression.search(name)]
        if not hits:
            raise InputError(
                f"--nodes-to-exclude {pattern!r} matches none of the {len(names)} nodes, "
                f"as in {', '.join(names[:3])}"
            )
        matched += hits
    return sorted(set(matched))
