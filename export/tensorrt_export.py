"""A directory with a graph, the TensorRT engine built from it, and what a runner must know of them.

In it lie ``model.onnx`` (ship this), the engine, ``engine.json`` and, by TensorRT, ``timing.cache``, which makes the
next build the same. A plan is executable code for one TensorRT version, GPU architecture and OS: elsewhere it is
built again from the ONNX.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..artifact.atomic_file import write_json
from ..artifact.content_hash import hash_file
from ..artifact.onnx_file import read_onnx, stored_precision
from ..artifact.tensorrt_versions import VERSIONS, TensorRTVersion, find_version
from ..errors import BuildError, InputError
from ..runtime.built_plans import note_plan
from .lint_finding import Finding, grouped
from .model_files import model_files
from .onnx_check import inspect_onnx
from .qdq_lint import lint
from .tensorrt_plan import (
    MODULES,
    build_engine,
    build_record,
    engine_name,
    profiles_from_shapes,
    require,
    trtexec_line,
)

GRAPH, RECORD, TIMING_CACHE = "model.onnx", "engine.json", "timing.cache"
SHOWN = 5  # findings listed
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        directory: None where only a command was asked for.
        record: the content of ``engine.json``.
        command: the trtexec line; None for TensorRT-RTX.
        lines: what the user should read.
    """

    directory: Path | None
    record: dict[str, Any]
    command: str | None
    lines: list[str]


def to_tensorrt(
    model: str | Path,
    out: str | Path,
    to: str = "tensorrt",
    *,
    tensorrt: str | None = None,
    min_shapes: Shapes | None = None,
    opt_shapes: Shapes | None = None,
    max_shapes: Shapes | None = None,
    workspace_mib: int | None = None,
    compute_capability: str | None = None,
    timing_cache: Path | None = None,
    fp16: bool = False,
    build: bool = True,
    about: Mapping[str, Any] | None = None,
) -> Exported:
    """Build an ONNX file as it is, with the types it has, into the directory `out`.

    ``edgeml export`` casts or quantizes a graph first, and `edgeml.compress.compress` with a target writes
    ones that are typed already.

    Args:
        model: the ONNX file.
        out: the directory to write, which must not exist.
        to: ``tensorrt`` or ``tensorrt-rtx``.
        tensorrt: the version; None takes the installed one (RTX has one only).
        min_shapes, opt_shapes, max_shapes: the optimisation profile by input name.
        workspace_mib: the most scratch memory on the GPU, MiB.
        compute_capability: ``SM75 … SM121``, TensorRT-RTX only.
        timing_cache: of an earlier build; copied, read and extended (TensorRT only).
        fp16: what is not quantized may run in FP16 (TensorRT 8.x; later ones take the graph's types).
        build: False stops at the graph and the command.
        about: fields for ``engine.json``.

    Raises:
        InputError: anything that does not fit, or is not installed.
        BuildError: lint found errors, or the builder refuses the graph.
    """
    model, out = Path(model), Path(out)
    require_out(out)
    module = module_of(to, build)
    version = version_of(to, tensorrt)
    if build:
        refuse_other_installed(to, version)
    profiles = profiles_from_shapes(model, min_shapes or {}, opt_shapes or {}, max_shapes or {})
    report = lint(model, version, shapes=profiles)
    if report.errors:
        first, *others = grouped(report.errors)
        more = f" and {len(others)} more" if others else ""
        raise BuildError(f"{model}: {first}{more}; edgeml lint --fix may mend it")
    lines = shown(report.findings)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        for file in model_files(model):
            shutil.copyfile(file, part / (GRAPH if file == model else file.name))
        keeps_cache = module == "tensorrt"
        if timing_cache is not None and keeps_cache:
            shutil.copyfile(timing_cache, part / TIMING_CACHE)
        command = None
        if not version.rtx:
            plan = engine_name("model", module, version.name, "SMxx").replace("-smxx", "")
            command = trtexec_line(
                out / GRAPH,
                out / plan,
                version,
                profiles,
                int8=is_quantized(model),
                fp16=fp16,
                workspace_mib=workspace_mib,
                timing_cache=out / TIMING_CACHE,
            )
        record: dict[str, Any] = {
            "schema_version": 1,
            "model": {"reference": str(model), "parent": None, "sha256": hash_file(model)},
            "graph": {"file": GRAPH, "sha256": hash_file(part / GRAPH)},
            "tensorrt": version.name,
            "precision": None,
            "profiles": {n: [p.minimum, p.optimum, p.maximum] for n, p in profiles.items()},
            "command": command,
            "engine": None,
            "state": "written",
            **(about or {}),
        }
        if record["precision"] is None:
            found = stored_precision(read_onnx(model))
            record["precision"] = "fp16" if fp16 and found == "fp32" else found
        if build:
            made = part / "model.plan"
            built = build_engine(
                part / GRAPH,
                made,
                module,
                profiles,
                compute_capability=compute_capability,
                workspace_mib=workspace_mib,
                timing_cache=part / TIMING_CACHE if keeps_cache else None,
                version=version,
                fp16=fp16,
                int8=is_quantized(model),
            )
            name = engine_name("model", module, built.version, built.compute_capability)
            made.rename(part / name)
            engine = build_record(built, module)
            record["engine"] = {"file": name, "sha256": hash_file(part / name), **engine}
            note_plan(record["engine"]["sha256"])
            record["state"] = engine["state"]
            lines.append(
                f"{name}: {built.size_bytes:,} bytes, {built.layers} layers, built in "
                f"{built.seconds:.1f} s by {to} {built.version}: legal, not run on hardware"
            )
        write_json(part / RECORD, record)
        os.replace(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return Exported(out, record, command, lines)


def module_of(to: str, build: bool) -> str:
    """The Python package that builds.

    Raises:
        InputError: `to` is unknown.
        MissingPart: it is to build and is not installed.
    """
    if to not in MODULES:
        raise InputError(f"--to {to!r} is unknown; known: {', '.join(MODULES)}")
    if build:
        require(MODULES[to])
    return MODULES[to]


def version_of(to: str, word: str | None) -> TensorRTVersion:
    """The row of the table for what was asked for, else for what is installed.

    Raises:
        InputError: the two do not go together, or no version is known.
    """
    if to == "tensorrt-rtx":
        if word is not None and not find_version(word).rtx:
            raise InputError(f"--tensorrt {word} is not RTX; leave it out, or export --to tensorrt")
        return VERSIONS["rtx"]
    if word is not None:
        version = find_version(word)
        if version.rtx:
            raise InputError("--tensorrt rtx is exported --to tensorrt-rtx")
        return version
    try:
        return find_version(import_module("tensorrt").__version__)
    except ImportError as e:
        raise InputError(
            f"TensorRT is not installed here; name its version: --tensorrt {', '.join(VERSIONS)}"
        ) from e


def refuse_other_installed(to: str, version: TensorRTVersion) -> None:
    """Refuse to build for another TensorRT than the one that is here: its graph has another form.

    Raises:
        InputError: it is installed in another version.
    """
    if to != "tensorrt":
        return
    here = import_module("tensorrt").__version__
    if find_version(here).name != version.name:
        raise InputError(
            f"--tensorrt {version.name}: the TensorRT installed here is {here}, and builds no engine for it; "
            "leave --tensorrt out, or --command prints the line for the other machine"
        )


def require_out(out: Path) -> None:
    """Refuse a directory that is there, or whose parent is not."""
    if out.exists():
        raise InputError(f"{out} exists; name another directory")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out} cannot be written: there is no folder {out.absolute().parent}")


def shown(findings: Sequence[Finding]) -> list[str]:
    """The first few findings; `edgeml lint` lists all."""
    lines = grouped(findings)
    more = len(lines) - SHOWN
    rest = [f"and {more} more; edgeml lint lists them"] if more > 0 else []
    return lines[:SHOWN] + rest


def is_quantized(onnx: Path) -> bool:
    return "QuantizeLinear" in inspect_onnx(onnx).op_counts
