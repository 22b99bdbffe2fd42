"""`edgeml export --to tensorrt…`: a typed graph, and its engine or the command that builds it.

A float network is cast or quantized on real samples first. A bundle that was compressed for a TensorRT target holds
typed graphs already: one of them is taken as it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.boards import precisions_of
from ..artifact.bundle import MEASUREMENTS, Bundle, open_bundle
from ..artifact.content_hash import hash_file
from ..artifact.manifest import EngineEntry
from ..artifact.preprocess import ImagePreprocess
from ..artifact.tensorrt_versions import TensorRTVersion
from ..errors import InputError
from ..export.onnx_check import inspect_onnx
from ..export.qdq_lint import lint
from ..export.tensorrt_export import (
    GRAPH,
    Exported,
    is_quantized,
    module_of,
    require_out,
    shown,
    to_tensorrt,
    version_of,
)
from ..export.tensorrt_plan import engine_name, profiles_from_shapes, trtexec_line
from .calibration import Calibration
from .target_candidates import NO_INT8_CONVOLUTIONS
from .target_graph import write_typed_graph

PRECISIONS = ("fp16", "int8")
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class _Source:
    """The graph to start from.

    Attributes:
        onnx: the file.
        bundle: where it lies in one.
        entry: the engine of the bundle whose typed graph it is; None for a float network.
    """

    onnx: Path
    bundle: Bundle | None = None
    entry: EngineEntry | None = None


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
    min_shapes: Shapes | None = None,
    opt_shapes: Shapes | None = None,
    max_shapes: Shapes | None = None,
    workspace_mib: int | None = None,
    compute_capability: str | None = None,
    build: bool = True,
) -> Exported:
    """Write the graph for a TensorRT version and build its engine, or name the command that does.

    Args:
        model: an ONNX file, or a bundle: its float ``model.onnx`` is taken or, where it was compressed for a
            TensorRT target, the typed graph that ships (or that of `precision`).
        out: the directory to write, which must not exist; None with ``build=False`` writes nothing, unless a
            graph has to be cast or quantized.
        to: ``tensorrt`` or ``tensorrt-rtx``.
        tensorrt: the version; None takes the bundle's, else the installed one (RTX has one only).
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
    module_of(to, build)
    if compute_capability and to != "tensorrt-rtx":
        raise InputError(
            "--compute-capability is for --to tensorrt-rtx; TensorRT builds for this GPU"
        )
    source = _source(Path(model), precision)
    entry = source.entry
    if entry is not None:
        precision = None  # its graph has its types
        if tensorrt is None and to == "tensorrt" and not build:
            tensorrt = entry.build.tensorrt
        if not (min_shapes or opt_shapes or max_shapes):
            shapes = entry.build.profiles.items()
            min_shapes, opt_shapes, max_shapes = ({n: p[i] for n, p in shapes} for i in range(3))
    version = version_of(to, tensorrt)
    if entry is not None:
        _check_entry(source, version, to, compute_capability)
    shapes = {"min_shapes": min_shapes, "opt_shapes": opt_shapes, "max_shapes": max_shapes}
    if precision is None and not build and out is None:
        return _command_only(source, version, shapes, workspace_mib)
    if out is None:
        raise InputError("no output: say where the engine and its graph go, as in -o out")
    out = Path(out)
    require_out(out)
    profiles_from_shapes(source.onnx, *(shape or {} for shape in shapes.values()))
    if precision is not None:
        _check_precision(precision, version, source.onnx)
    with tempfile.TemporaryDirectory(prefix="edgeml-export-") as scratch:
        graph, lines = source.onnx, []
        # 8.x wants its own form of any float graph; what is typed for it already has it.
        if precision is not None or (entry is None and not version.strong):
            stream = _samples(source, data, preprocess) if precision else None
            graph, lines = _write_graph(
                source.onnx, Path(scratch), version, precision, stream, samples
            )
        done = to_tensorrt(
            graph,
            out,
            to,
            tensorrt=version.name if to == "tensorrt" else None,
            **shapes,
            workspace_mib=workspace_mib,
            compute_capability=compute_capability,
            timing_cache=_timing_cache(source.bundle, version),
            fp16=precision is not None or _runs_fp16(entry),
            build=build,
            about={
                "model": {
                    "reference": str(model),
                    "parent": source.bundle.hash if source.bundle else None,
                    "sha256": hash_file(source.onnx),
                },
                "precision": entry.precision if entry else precision,
            },
        )
    return Exported(done.directory, done.record, done.command, lines + done.lines)


def _source(model: Path, precision: str | None) -> _Source:
    """What a user's MODEL stands for.

    Raises:
        InputError: it cannot be read, or a typed bundle holds no engine of `precision`.
    """
    if not model.is_dir():
        inspect_onnx(model)
        return _Source(model)
    # Only its graph is read: code that it names does not run.
    bundle = open_bundle(model, trust_code=True)
    typed = [entry for entry in bundle.manifest.engines if entry.build is not None]
    if not typed and GRAPH not in bundle.manifest.files:
        raise InputError(
            f"{model} holds weights and no graph: edgeml compress {model} --fp16 --target … -o OUT writes one for its "
            "TensorRT"
        )
    if not typed:
        return _Source(bundle.file(GRAPH), bundle)
    fitting = [entry for entry in typed if precision in (None, entry.precision)]
    if not fitting:
        known = ", ".join(entry.precision for entry in typed)
        raise InputError(f"{model} holds no {precision} graph; it has {known}")
    return _Source(bundle.file(fitting[0].files[0]), bundle, fitting[0])


def _check_entry(
    source: _Source, version: TensorRTVersion, to: str, compute_capability: str | None
) -> None:
    """Refuse a version whose form of graph is another than the bundle's, and a GPU without the precision."""
    entry, root = source.entry, source.bundle.root
    if (entry.build.form == "typed") != version.strong:
        raise InputError(
            f"{root} holds graphs for TensorRT {entry.build.tensorrt}, {version.name} takes another form: "
            f"edgeml compress --recipe {root}/recipe.yaml --tensorrt {version.name} -o NEW"
        )
    if to == "tensorrt-rtx":
        if entry.precision == "int8" and "Conv" in inspect_onnx(source.onnx).op_counts:
            raise InputError(NO_INT8_CONVOLUTIONS)
        _check_capability(entry.precision, compute_capability)


def _check_capability(precision: str | None, capability: str | None) -> None:
    if capability is None or precision is None:
        return
    try:
        known = precisions_of(capability)
    except ValueError as e:
        raise InputError(f"--compute-capability: {e}") from e
    if precision not in known:
        raise InputError(
            f"--precision {precision}: {capability} does not execute it; it has {', '.join(known)}"
        )


def _runs_fp16(entry: EngineEntry | None) -> bool:
    return entry is not None and entry.execution == "fp16"


def _timing_cache(bundle: Bundle | None, version: TensorRTVersion) -> Path | None:
    """The one that an earlier build on the device left with the bundle."""
    if bundle is None:
        return None
    kept = bundle.root / MEASUREMENTS / f"timing.trt{version.name}.cache"
    return kept if kept.is_file() else None


def _command_only(
    source: _Source,
    version: TensorRTVersion,
    shapes: Mapping[str, Shapes | None],
    workspace_mib: int | None,
) -> Exported:
    onnx, bundle = source.onnx, source.bundle
    profiles = profiles_from_shapes(onnx, *(shape or {} for shape in shapes.values()))
    # One more file in a bundle would make it refused: the plan goes beside it.
    place = onnx if bundle is None else bundle.root.absolute()
    stem = onnx.stem if bundle is None else f"{place.name}-{onnx.stem}"
    target = (bundle.manifest.target if bundle else None) or {}
    capability = target.get("compute_capability") or "SMxx"
    name = engine_name(stem, version.module, version.name, capability)
    plan = place.with_name(name.replace("-smxx", ""))
    line = trtexec_line(
        onnx.absolute() if bundle else onnx,
        plan,
        version,
        profiles,
        int8=is_quantized(onnx),
        # A float graph was not asked to run in FP16, and not checked for it.
        fp16=is_quantized(onnx) if source.entry is None else _runs_fp16(source.entry),
        workspace_mib=workspace_mib,
        timing_cache=_timing_cache(bundle, version),
    )
    findings = lint(onnx, version, shapes=profiles).findings
    return Exported(None, {"command": line}, line, shown(findings))


def _check_precision(precision: str, version: TensorRTVersion, onnx: Path) -> None:
    if precision not in PRECISIONS:
        raise InputError(
            f"--precision {precision} cannot be made here; known: {', '.join(PRECISIONS)} (fp8 needs "
            "ModelOpt: edgeml compress --precision fp8 --target jetson-thor or rtx)"
        )
    operators = inspect_onnx(onnx).op_counts
    if "QuantizeLinear" in operators:
        raise InputError(f"{onnx} is quantized already; leave --precision out")
    if precision == "int8" and version.rtx and "Conv" in operators:
        raise InputError(NO_INT8_CONVOLUTIONS)


def _samples(source: _Source, data: str | None, preprocess: dict[str, Any] | None) -> Any:
    """A function that opens the stream of inputs, arrays without the batch axis."""
    from ..train.open_task import open_data

    bundle = source.bundle.root if source.bundle else None
    if data is not None:
        declared = ImagePreprocess.from_values(preprocess) if preprocess is not None else None
        if declared is None and bundle is not None and (bundle / "preprocess.json").is_file():
            declared = ImagePreprocess.from_file(bundle / "preprocess.json")
        kept = bundle / "tokenizer.json" if bundle is not None else None
        opened = open_data(
            data,
            inspect_onnx(source.onnx).inputs,
            calibration_data=data,
            preprocess=declared,
            tokenizer=kept if kept is not None and kept.is_file() else None,
        )
        return opened.calibration
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
    scratch: Path,
    version: TensorRTVersion,
    precision: str | None,
    stream: Any,
    samples: int,
) -> tuple[Path, list[str]]:
    """The graph for the version, in a folder of its own; what was done, a line each."""
    lines: list[str] = []
    source = onnx
    if precision == "int8":
        from .quantize_tensorrt_form import QuantizeTensorrtForm
        from .step import apply

        made = scratch / "int8"
        made.mkdir()
        result = apply(QuantizeTensorrtForm(), onnx, Calibration(stream, samples), made)
        lines.append(f"INT8: {result.quantizers} quantizers by {QuantizeTensorrtForm().route}")
        source = result.path
    again = Calibration(stream, samples) if stream else ()
    typed = write_typed_graph(
        source, scratch, version, precision is not None, again, numerics=False
    )
    return typed.path, lines + typed.notes
