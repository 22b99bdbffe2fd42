"""`edgeml export --to tensorrt…`: a typed graph, its engine, and what a runner must know of them.

In OUT lie ``model.onnx`` (the graph the engine is built from; ship this), the engine, and ``engine.json``. A plan
is executable code for one TensorRT version, GPU architecture and OS: elsewhere it is rebuilt from the ONNX.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.atomic_file import write_json
from ..artifact.bundle import open_bundle
from ..artifact.content_hash import hash_file
from ..artifact.preprocess import ImagePreprocess
from ..artifact.tensorrt_versions import VERSIONS, TensorRTVersion, find_version
from ..errors import BuildError, InputError
from ..export.lint_finding import Finding
from ..export.model_files import model_files
from ..export.onnx_check import inspect_onnx
from ..export.qdq_lint import lint
from ..export.tensorrt_plan import (
    MODULES,
    build_engine,
    build_record,
    engine_name,
    profiles_from_shapes,
    require,
    trtexec_line,
)
from ..runtime.built_plans import note_plan
from .calibration import Calibration
from .target_graph import GRAPH, write_typed_graph

PRECISIONS = ("fp16", "int8")
SHOWN = 5  # findings listed


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


def export_tensorrt(
    model: str | Path,
    out: str | Path | None,
    to: str = "tensorrt",
    *,
    tensorrt: str | None = None,
    precision: str | None = None,
    data: str | None = None,
    preprocess: dict[str, Any] | None = None,
    samples: int = 300,
    min_shapes: Mapping[str, Sequence[int]] | None = None,
    opt_shapes: Mapping[str, Sequence[int]] | None = None,
    max_shapes: Mapping[str, Sequence[int]] | None = None,
    workspace_mib: int | None = None,
    compute_capability: str | None = None,
    build: bool = True,
) -> Exported:
    """Write the graph for a TensorRT version and build its engine, or name the command that does.

    Args:
        model: an ONNX file, or a bundle, whose float ``model.onnx`` is taken.
        out: the directory to write, which must not exist; None with ``build=False`` and no
            `precision` writes nothing.
        to: ``tensorrt`` or ``tensorrt-rtx``.
        tensorrt: the version; None takes the installed one (RTX has one only).
        precision: ``fp16`` or ``int8`` (with FP16 around it from TensorRT 10 on); None leaves the
            graph's types.
        data: real samples: calibration and the check of FP16. A bundle's reference inputs do for fp16.
        preprocess: fields of `artifact.preprocess.ImagePreprocess`; a bundle has its own.
        min_shapes, opt_shapes, max_shapes: the optimisation profile by input name.
        workspace_mib: the most scratch memory on the GPU.
        compute_capability: ``SM75 … SM121``, TensorRT-RTX only.
        build: False stops at the graph and the command.

    Raises:
        InputError: anything that does not fit, or is not installed.
        BuildError: lint found errors, or the builder refuses the graph.
    """
    if to not in MODULES:
        raise InputError(f"--to {to!r} is unknown; known: {', '.join(MODULES)}")
    if compute_capability and to != "tensorrt-rtx":
        raise InputError(
            "--compute-capability is for --to tensorrt-rtx; TensorRT builds for this GPU"
        )
    module = MODULES[to]
    if build:
        require(module)
    version = _version(to, tensorrt)
    onnx, stored, parent = _source(Path(model))
    if precision is None and not build and out is None:
        return _command_only(onnx, version, min_shapes, opt_shapes, max_shapes, workspace_mib)
    if out is None:
        raise InputError("no output: say where the engine and its graph go, as in -o out")
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists; name another directory")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out} cannot be written: there is no folder {out.absolute().parent}")
    profiles = profiles_from_shapes(onnx, min_shapes or {}, opt_shapes or {}, max_shapes or {})
    if precision is not None:
        _check_precision(precision, version, onnx)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        stream = _samples(onnx, data, preprocess, stored) if precision else None
        lines = _write_graph(onnx, part, version, precision, stream, samples)
        graph = part / GRAPH
        report = lint(graph, version, shapes=profiles)
        if report.errors:
            more = f" and {len(report.errors) - 1} more" if len(report.errors) > 1 else ""
            raise BuildError(
                f"{model}: {report.errors[0].line}{more}; edgeml lint --fix may mend it"
            )
        lines += _shown(report.findings)
        int8 = _is_quantized(graph)
        command = None
        if not version.rtx:
            plan = engine_name("model", module, version.name, "SMxx").replace("-smxx", "")
            command = trtexec_line(
                out / GRAPH,
                out / plan,
                version,
                profiles,
                int8=int8,
                fp16=precision is not None,
                workspace_mib=workspace_mib,
            )
        record: dict[str, Any] = {
            "schema_version": 1,
            "model": {"reference": str(model), "parent": parent, "sha256": hash_file(onnx)},
            "graph": {"file": GRAPH, "sha256": hash_file(graph)},
            "tensorrt": version.name,
            "precision": precision,
            "profiles": {n: [p.minimum, p.optimum, p.maximum] for n, p in profiles.items()},
            "command": command,
            "engine": None,
            "state": "written",
        }
        if build:
            made = part / "model.plan"
            built = build_engine(
                graph,
                made,
                module,
                profiles,
                compute_capability=compute_capability,
                workspace_mib=workspace_mib,
                timing_cache=part / "timing.cache" if module == "tensorrt" else None,
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
        write_json(part / "engine.json", record)
        os.replace(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return Exported(out, record, command, lines)


def _version(to: str, word: str | None) -> TensorRTVersion:
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


def _source(model: Path) -> tuple[Path, Path | None, str | None]:
    """The float ONNX, the bundle it lies in, and that bundle's hash."""
    if not model.is_dir():
        inspect_onnx(model)
        return model, None, None
    bundle = open_bundle(model)
    return bundle.file(GRAPH), bundle.root, bundle.hash


def _command_only(
    onnx: Path,
    version: TensorRTVersion,
    minimum: Mapping[str, Sequence[int]] | None,
    optimum: Mapping[str, Sequence[int]] | None,
    maximum: Mapping[str, Sequence[int]] | None,
    workspace_mib: int | None,
) -> Exported:
    profiles = profiles_from_shapes(onnx, minimum or {}, optimum or {}, maximum or {})
    plan = onnx.with_name(
        engine_name(onnx.stem, version.module, version.name, "SMxx").replace("-smxx", "")
    )
    line = trtexec_line(
        onnx,
        plan,
        version,
        profiles,
        int8=_is_quantized(onnx),
        fp16=version.typing == "weak",
        workspace_mib=workspace_mib,
    )
    findings = lint(onnx, version, shapes=profiles).findings
    return Exported(None, {"command": line}, line, _shown(findings))


def _shown(findings: Sequence[Finding]) -> list[str]:
    """The first few findings; `edgeml lint` lists all."""
    more = len(findings) - SHOWN
    rest = [f"and {more} more; edgeml lint lists them"] if more > 0 else []
    return [finding.line for finding in findings[:SHOWN]] + rest


def _is_quantized(onnx: Path) -> bool:
    return "QuantizeLinear" in inspect_onnx(onnx).op_counts


def _check_precision(precision: str, version: TensorRTVersion, onnx: Path) -> None:
    if precision not in PRECISIONS:
        raise InputError(
            f"--precision {precision} cannot be made here; known: {', '.join(PRECISIONS)} (fp8 needs "
            "ModelOpt)"
        )
    operators = inspect_onnx(onnx).op_counts
    if "QuantizeLinear" in operators:
        raise InputError(f"{onnx} is quantized already; leave --precision out")
    if precision == "int8" and version.rtx and "Conv" in operators:
        raise InputError(
            "TensorRT-RTX runs INT8 for weights of products only (its support matrix), not for "
            "convolutions; give --fp16 (fp8, on Ada and Blackwell, needs ModelOpt)"
        )


def _samples(
    onnx: Path, data: str | None, preprocess: dict[str, Any] | None, bundle: Path | None
) -> Any:
    """A function that opens the stream of inputs, arrays without the batch axis."""
    from ..train.open_task import open_data

    if data is not None:
        declared = ImagePreprocess.from_values(preprocess) if preprocess is not None else None
        if declared is None and bundle is not None and (bundle / "preprocess.json").is_file():
            declared = ImagePreprocess.from_file(bundle / "preprocess.json")
        spec = inspect_onnx(onnx).inputs[0]
        return open_data(data, spec, calibration_data=data, preprocess=declared).calibration
    reference = bundle / "reference.safetensors" if bundle else None
    if reference is None or not reference.is_file():
        raise InputError("--precision needs real samples: give --data")

    def stored() -> Iterator[dict[str, np.ndarray]]:
        from safetensors.numpy import load_file

        tensors = load_file(reference)
        for key in sorted({name.partition(".")[0] for name in tensors}):
            head = f"{key}.input."
            batch = {n.removeprefix(head): a for n, a in tensors.items() if n.startswith(head)}
            yield {name: array[0] for name, array in batch.items()}

    return stored


def _write_graph(
    onnx: Path,
    part: Path,
    version: TensorRTVersion,
    precision: str | None,
    stream: Any,
    samples: int,
) -> list[str]:
    """Write the graph for the version as `part`/model.onnx; what was done, a line each."""
    lines: list[str] = []
    source = onnx
    if precision == "int8":
        from .quantize_tensorrt_form import QuantizeTensorrtForm
        from .step import apply

        result = apply(QuantizeTensorrtForm(), onnx, Calibration(stream, samples), part)
        lines.append(f"INT8: {result.quantizers} quantizers by {QuantizeTensorrtForm().route}")
        source = result.path
    samples_again = Calibration(stream, samples) if stream else ()
    typed = write_typed_graph(
        source, part, version, precision is not None, samples_again, numerics=False
    )
    lines += typed.notes
    if source != onnx:
        for file in model_files(source):
            file.unlink()
    return lines
