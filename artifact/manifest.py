"""What a bundle says of itself."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MANIFEST_VERSION = 1


class FileRecord(BaseModel):
    """One file of a bundle: its sha256 (damage, not forgery) and size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size_bytes: int


class EngineEntry(BaseModel):
    """One engine in a bundle, and how it was compiled when it was measured.

    Attributes:
        files: relative names; the first is the one its runtime loads.
        input_shapes: the static shapes, batch included, by input name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    runtime: str
    precision: str
    execution: str = "fp32"
    route: str | None = None
    files: list[str]
    threads: int | None = None
    batch: int | None = 1
    objective: str = "latency"
    input_shapes: dict[str, list[int]] = Field(default_factory=dict)


class Manifest(BaseModel):
    """Where a bundle came from, what is in it, what ships.

    Attributes:
        parent: sha256 of the bundle it was made from, or None.
        model: kind, reference, sha256, `user_code` ({file, text, sha256}, or None when nothing of
            the user's has to run).
        data: source, fingerprint, how it was split, hashes of the splits, how often test was read.
        inputs, outputs: ``{"name", "shape", "dtype"}`` of the float network.
        shipped: the id of the engine that `load` takes.
        files: every file of the bundle but the manifest, by relative name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    version: int = MANIFEST_VERSION
    edgeml_version: str
    created: str
    name: str
    parent: str | None = None
    model: dict[str, Any]
    recipe: dict[str, Any]
    data: dict[str, Any]
    seed: int
    tools: dict[str, str]
    machine: dict[str, Any]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    engines: list[EngineEntry]
    shipped: str | None
    reference_files: list[str] = Field(default_factory=list)
    random_calibration: bool = False
    files: dict[str, FileRecord] = Field(default_factory=dict)
