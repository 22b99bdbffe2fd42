"""The shipped engine of a bundle, compiled as it was when it was measured."""

from __future__ import annotations

from pathlib import Path

from ..artifact.bundle import open_bundle
from ..artifact.manifest import EngineEntry
from .engine import Engine, EngineOptions, load_file


def load_bundle(
    path: Path, options: EngineOptions | None = None, engine_id: str | None = None
) -> Engine:
    """Open and verify a bundle and load its shipped engine, or the one of that id.

    Args:
        options: None compiles it as it was measured.

    Raises:
        BundleError: the bundle is damaged, doctored or too new.
    """
    bundle = open_bundle(path)
    entry = bundle.engine(engine_id)
    file = bundle.file(entry.files[0])
    return load_file(file, entry.runtime, options or _options(entry))


def bundle_options(path: Path, engine_id: str | None = None) -> EngineOptions:
    """How the bundle's engine was compiled when it was measured."""
    return _options(open_bundle(path).engine(engine_id))


def _options(entry: EngineEntry) -> EngineOptions:
    shapes = tuple((name, tuple(shape)) for name, shape in entry.input_shapes.items())
    return EngineOptions(
        threads=entry.threads,
        batch=entry.batch,
        input_shapes=shapes or None,
        execution=entry.execution,
        objective="throughput" if entry.objective == "throughput" else "latency",
    )
