"""What of a bundle may go to a device: engines that can be built there, references, samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from ..artifact.bundle import Bundle
from ..artifact.content_hash import hash_file
from ..artifact.onnx_file import external_files
from ..artifact.onnx_skeleton import read_skeleton
from ..errors import BundleError
from .reference_outputs import reference_file

FLOAT_MODEL = "model.onnx"


@dataclass(frozen=True)
class Candidate:
    """One engine that a device can make of an ONNX file in the bundle.

    Attributes:
        id: of its row; unique in the package.
        runtime: tensorrt or onnxruntime.
        model: the ONNX file's name in the bundle.
        names: the model's files, the ONNX first, as names in the bundle.
        reference_model: the ONNX whose outputs in ONNX Runtime it is held against: its own, but for
            FP16 the float network (ONNX Runtime computes no FP16 on a CPU, so its own would tell
            nothing more).
        reference: the bundle's file of inputs and the outputs expected of this engine, or None.
        flags: a graph for TensorRT 8.x, whose builder chooses the types.
    """

    id: str
    runtime: str
    precision: str
    execution: str
    model: str
    names: tuple[str, ...]
    reference_model: str
    threads: int | None = None
    route: str | None = None
    reference: str | None = None
    flags: bool = False


@dataclass
class Package:
    """A bundle made ready, for all devices of a run.

    Attributes:
        shapes: the static input shapes, batch included.
        skipped: (engine, why) of what no device can take.
        files: sha256 → file, of everything that may be sent.
        references: candidate → sha256 of the tensor file it is checked by.
        samples: sha256 of the tensor files to score on, in order.
        images: sha256 of encoded images for end to end; `preprocess` that of its description.
    """

    bundle: Bundle
    candidates: list[Candidate]
    shapes: dict[str, list[int]]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    preprocess: str | None = None

    def hashes(self, candidate: Candidate) -> dict[str, str]:
        """File name in the model's folder → sha256."""
        folder = PurePosixPath(candidate.model).parent
        files = self.bundle.manifest.files
        return {
            str(PurePosixPath(name).relative_to(folder)): files[name].sha256
            for name in candidate.names
        }

    def size_bytes(self, candidate: Candidate) -> int:
        """Of the candidate's files."""
        return sum(self.bundle.manifest.files[name].size_bytes for name in candidate.names)

    def add(self, path: Path) -> str:
        """Put a file in; its hash."""
        digest = hash_file(path)
        self.files[digest] = path
        return digest


def pack(bundle: Bundle) -> Package:
    """The engines that devices can make of a bundle, their references and one set of shapes.

    Raises:
        BundleError: it has no ONNX, or no reference inputs.
    """
    candidates, skipped = _candidates(bundle)
    if not candidates:
        raise BundleError(
            f"{bundle.root} has no ONNX to build an engine from"
            + (f" ({skipped[0][1]})" if skipped else "")
        )
    references = [name for name in bundle.manifest.reference_files if name.endswith(".safetensors")]
    if not references:
        raise BundleError(
            f"{bundle.root} has no reference inputs to check a device by; compress it again"
        )
    inputs = bundle.file(references[0])
    package = Package(bundle, candidates, _shapes(inputs), skipped)
    for candidate in candidates:
        for name in candidate.names:
            package.files[bundle.manifest.files[name].sha256] = bundle.file(name)
        stored = bundle.file(candidate.reference) if candidate.reference else None
        if stored is None or not _has_outputs(stored):
            model = candidate.reference_model
            digest = bundle.manifest.files[model].sha256
            stored = reference_file(bundle.file(model), digest, inputs)
        package.references[candidate.id] = package.add(stored)
    return package


def _candidates(bundle: Bundle) -> tuple[list[Candidate], list[tuple[str, str]]]:
    found: dict[tuple[str, str, str], Candidate] = {}
    skipped = []
    has_float = FLOAT_MODEL in bundle.manifest.files
    first = next(iter(bundle.manifest.reference_files), None)
    for entry in bundle.manifest.engines:
        model = entry.files[0]
        if not model.endswith(".onnx"):
            skipped.append(
                (entry.id, f"{entry.id} is an {entry.runtime} file, which no device here runs")
            )
            continue
        # An ONNX written for TensorRT runs in ONNX Runtime as well, where a device has no TensorRT.
        runtimes = ("tensorrt", "onnxruntime") if entry.runtime == "tensorrt" else (entry.runtime,)
        for runtime in runtimes:
            plain = f"{runtime}-{entry.precision}"
            candidate = Candidate(
                entry.id if runtime == entry.runtime else plain,
                runtime,
                entry.precision,
                entry.execution,
                model,
                tuple(entry.files),
                FLOAT_MODEL if entry.precision == "fp16" and has_float else model,
                entry.threads,
                entry.route,
                entry.reference or (first if entry.id == bundle.manifest.shipped else None),
                entry.build is not None and entry.build.form == "flags",
            )
            # An engine for ONNX Runtime goes before TensorRT's form of it under the same name.
            if all(c.id != candidate.id for c in found.values()):
                found.setdefault((runtime, entry.precision, entry.execution), candidate)
    if has_float:
        names = _with_external(bundle, FLOAT_MODEL)
        for runtime, precision in (("tensorrt", "fp16"), ("onnxruntime", "fp32")):
            if not any(key[:2] == (runtime, precision) for key in found):
                candidate = Candidate(
                    f"{runtime}-{precision}",
                    runtime,
                    precision,
                    precision,
                    FLOAT_MODEL,
                    names,
                    FLOAT_MODEL,
                )
                found[runtime, precision, precision] = candidate
    return list(found.values()), skipped


def _with_external(bundle: Bundle, name: str) -> tuple[str, ...]:
    path = bundle.file(name)
    beside = external_files(read_skeleton(path), path)
    return (name, *(file.relative_to(bundle.root).as_posix() for file in beside))


def _has_outputs(file: Path) -> bool:
    from safetensors import safe_open

    with safe_open(file, "numpy") as tensors:
        return any(".output." in key for key in tensors.keys())  # noqa: SIM118 - no mapping


def _shapes(file: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(file, "numpy") as tensors:
        return {
            key.removeprefix("000.input."): list(np.shape(tensors.get_tensor(key)))
            for key in tensors.keys()  # noqa: SIM118 - no mapping
            if key.startswith("000.input.")
        }
