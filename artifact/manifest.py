"""What a bundle says of itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MANIFEST_VERSION = 1


class FileRecord(BaseModel):
    """One file of a bundle: its sha256 (damage, not forgery) and size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size_bytes: int


class TensorRTBuild(BaseModel):
    """How an engine entry's ONNX file becomes a TensorRT engine on the device.

    Attributes:
        tensorrt: the row of `artifact.tensorrt_versions` that the graph was written for.
        form: ``typed`` (types lie in the graph: 10 and later, built strongly typed) or ``flags`` (8.x: an
            fp32 graph at opset 17, the builder chooses by `flags`).
        flags: of trtexec, that decide precisions; the same by the Python API's names.
        profiles: input name → its smallest, usual and largest shape.
        needs: the oldest compute capability that executes the precision, ``SM89`` for fp8.
        plan: the engine's file name; a plan runs only on the GPU architecture and version in it.
        command: the line that builds it beside the bundle, from within it (also in ``build.sh``).
        state: ``written``, or ``legal`` where NVIDIA's parser and builder took the graph; never ``run``.
        stand_in: what took it, as in ``TensorRT-RTX 1.7.1.116 for SM86``; None where nothing did.
        fp32_nodes: node → why it stays in fp32 between FP16.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensorrt: str
    form: Literal["typed", "flags"]
    flags: list[str]
    profiles: dict[str, tuple[list[int], list[int], list[int]]]
    needs: str
    plan: str
    command: str
    state: Literal["written", "legal"] = "written"
    stand_in: str | None = None
    fp32_nodes: dict[str, str] = Field(default_factory=dict)


class EngineEntry(BaseModel):
    """One engine in a bundle, and how it was compiled when it was measured.

    Attributes:
        files: relative names; the first is the one its runtime loads.
        input_shapes: the static shapes, batch included, by input name.
        reference: the file of real inputs and the outputs expected of this engine; None: the bundle's first
            reference file.
        build: how it is built on the device; None where `files` are loaded as they are.
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
    reference: str | None = None
    build: TensorRTBuild | None = None


class Manifest(BaseModel):
    """Where a bundle came from, what is in it, what ships.

    Attributes:
        parent: sha256 of the bundle it was made from, or None.
        model: kind, reference, sha256, `user_code` ({file, text, sha256 and, where it has them,
            neighbours and module: `train.kept_code`}, or None when nothing of the user's has to run).
        data: source, fingerprint, how it was split, hashes of the splits, how often test was read.
        inputs, outputs: ``{"name", "shape", "dtype"}`` of the float network.
        shipped: the id of the engine that `load` takes.
        target: the `artifact.target.Target` that it was made for, as plain values; None: this machine.
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
    target: dict[str, Any] | None = None
    reference_files: list[str] = Field(default_factory=list)
    random_calibration: bool = False
    files: dict[str, FileRecord] = Field(default_factory=dict)
