"""The `build.sh` of a bundle for TensorRT: the exact lines that build its engines on the device."""

from __future__ import annotations

from collections.abc import Sequence

from ..artifact.manifest import EngineEntry

_HEAD = """#!/bin/sh
# Builds this bundle's engines on the device, beside the bundle: sh build.sh
# Written by edgeml, not run on hardware. A plan runs only on the GPU architecture and TensorRT version it was
# built by: build it where it runs.
set -e
cd "$(dirname "$0")"
mkdir -p ../engines
"""


def build_script(entries: Sequence[EngineEntry]) -> str:
    """The script, a comment and a line an engine; the one that ships comes first."""
    parts = [_HEAD]
    for entry in entries:
        build = entry.build
        if build is not None:
            typed = (
                "types lie in the graph" if build.form == "typed" else "the builder chooses types"
            )
            parts.append(
                f"# {entry.id}: TensorRT {build.tensorrt}, {build.needs} or later, {typed}; {build.state}\n"
                f"{build.command}\n"
            )
    return "\n".join(parts)
