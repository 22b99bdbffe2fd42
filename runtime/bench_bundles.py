"""`bench` for bundles and engine files: one table, one comparison, everything measured here and now."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.bundle import MANIFEST
from ..artifact.content_hash import hash_file
from ..artifact.machine import cpu_times, describe_machine, noise_warning, usable_threads
from ..artifact.measurement import not_measured
from ..artifact.preprocess import ImagePreprocess, decode
from ..artifact.result_row import EngineRow, ResultTable
from ..errors import EdgemlError, InputError, one_line
from .bench_energy import add_energy, engine_energy
from .bench_gpu import fit_or_say, gpu_state, gpu_times
from .engine import Engine, EngineOptions, is_tensorrt_export, load
from .latency import BenchResult, batch_of, bench, compare, percentile_intervals, throughputs
from .measurement_file import keep_measurement
from .memory import measure_in_own_process


@dataclass
class Subject:
    """One path at one batch, loaded, with what it is sold as.

    Attributes:
        files: the engine's, for its size.
        source: what a process of its own loads.
        bundle_hash: sha256 of the bundle's manifest; None for a bare file.
    """

    path: Path
    engine: Engine
    inputs: dict[str, np.ndarray]
    precision: str
    route: str | None
    files: list[Path]
    source: Path
    bundle_hash: str | None
    preprocess: ImagePreprocess | None = None


def bench_bundles(
    paths: Sequence[Path],
    *,
    duration_s: float = 2.0,
    iterations: int | None = None,
    warmup: int | None = None,
    threads: int | None = None,
    batch: int | Sequence[int] | None = None,
    percentiles: Sequence[float] = (50, 90, 99),
    raw_images: Sequence[bytes] | None = None,
    energy: bool = False,
    trust_plan: str | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> ResultTable:
    """Time engines in interleaved blocks, their throughput in turns, and each by itself for the rest.

    What was measured of a bundle is kept in its ``measurements`` too.

    Args:
        paths: bundles, TensorRT exports or engine files (`.xml`, `.onnx`, `.plan`); the first is what
            others are compared with.
        duration_s: of each engine's timing, a window of throughput and of end-to-end alike.
        iterations: exactly so many timed inferences an engine instead of a duration.
        batch: several make a row each.
        raw_images: encoded images; given, decode, preprocess, infer and postprocess are timed apart.
        energy: measure joules with this machine's meter, or say why there is none.
        trust_plan: sha256 of a TensorRT plan that was not built here and may run.

    Returns:
        A row a path and batch. `settings["comparisons"]` holds a verdict an engine after the first,
        `settings["end_to_end"]` the stages' times, `settings["gpu"]` a GPU's parts, memory and state.

    Raises:
        InputError: a path is no engine, shapes stay open, or a bundle is damaged.
        EdgemlError: out of GPU memory; the batch that fits is told.
    """
    noise = cpu_times()
    batches = [batch] if batch is None or isinstance(batch, int) else list(batch)
    with ExitStack() as stack:
        subjects: dict[str, Subject] = {}
        for path, size in itertools.product(paths, batches):
            suffix = f" (batch {size})" if len(batches) > 1 else ""
            name = _unique(f"{path}{suffix}", subjects)
            log(f"loading {name}")
            subject = _open(path, threads, size, trust_plan)
            stack.enter_context(subject.engine)
            if raw_images is not None:
                subject.preprocess = _preprocess(path, subject.engine)
            subjects[name] = subject
        engines = {name: s.engine for name, s in subjects.items()}
        inputs = {name: s.inputs for name, s in subjects.items()}
        log(f"timing {len(engines)} engine{'s' * (len(engines) > 1)}, {duration_s:g} s each")
        result = bench(
            engines,
            inputs,
            duration_s=duration_s,
            iterations=iterations,
            warmup=warmup,
            reference=next(iter(engines)),
        )
        log("throughput, in turns")
        rates = throughputs(engines, inputs, duration_s)
        settings: dict[str, Any] = {
            "duration_s": duration_s,
            "iterations": iterations,
            "threads": [e.options.threads for e in engines.values()],
            "batch": [batch_of(feed) for feed in inputs.values()],
            # What was measured: the hash of a bundle is that of its manifest.
            "bundles": {name: s.bundle_hash for name, s in subjects.items() if s.bundle_hash},
            "percentiles": {name: _percentiles(result, name, percentiles) for name in engines},
        }
        rows = []
        for name, subject in subjects.items():
            row = _row(name, subject, result)
            row.throughput_per_s = rates[name]
            log(f"{name}: loading, memory")
            _add_own_process(row, subject, trust_plan)
            if subject.engine.device == "cuda":
                gpu = settings.setdefault("gpu", {})
                gpu[name] = _gpu(row, subject, duration_s, log)
            if energy:
                reading = engine_energy(
                    subject.engine, subject.inputs, log=lambda line, n=name: log(f"{n}: {line}")
                )
                add_energy(row, reading)
            rows.append(row)
        lines = _compare(result, list(engines), settings)
        if raw_images is not None:
            settings["end_to_end"] = {
                name: _end_to_end(name, s.engine, s.preprocess, raw_images, duration_s, log)
                for name, s in subjects.items()
            }
    warnings = result.warnings or list(filter(None, [noise_warning(noise, cpu_times())]))
    absent = {row.energy["reason"] for row in rows if row.energy.get("reason")}
    warnings += [f"energy not measured: {reason}" for reason in sorted(absent)]
    table = ResultTable(
        command="bench",
        rows=sorted(rows, key=lambda row: row.latency_p50_ms.value),
        verdict_line="; ".join(lines) or None,
        machine=describe_machine(),
        settings=settings,
        warnings=warnings,
    )
    _keep(table, {s.path for s in subjects.values() if s.bundle_hash}, log)
    return table


def _open(path: Path, threads: int | None, batch: int | None, trust_plan: str | None) -> Subject:
    """Load it, with one input for timing."""

    def make(batch: int | None) -> Engine:
        return load(path, _options(path, threads, batch), trust_plan)

    engine = fit_or_say(make, batch) if batch else make(None)
    try:
        if batch is not None and all(s.shape[:1] != (batch,) for s in engine.input_specs):
            raise InputError(
                f"{path} is fixed to input {engine.input_specs[0]}; --batch {batch} needs an open batch axis"
            )
        precision, route, files = _sold_as(path, engine)
        source = path if engine.device == "cuda" else files[0]
        digest = hash_file(path / MANIFEST) if (path / MANIFEST).is_file() else None
        inputs = reference_inputs(path, engine)
        return Subject(path, engine, inputs, precision, route, files, source, digest)
    except BaseException:
        engine.close()
        raise


def _options(path: Path, threads: int | None, batch: int | None) -> EngineOptions | None:
    """None leaves a bundle's engine as it was measured; flags replace what they name."""
    from .bundle_engine import bundle_options

    own = path.is_dir() and not is_tensorrt_export(path)
    base = bundle_options(path) if own else EngineOptions(threads=usable_threads(None))
    if threads is None and batch is None:
        return base
    shapes = base.input_shapes
    if batch is not None and shapes:
        shapes = tuple((name, (batch, *shape[1:])) for name, shape in shapes)
    return replace(
        base,
        threads=usable_threads(threads) if threads else base.threads,
        batch=batch or base.batch,
        input_shapes=shapes,
    )


def reference_inputs(path: Path, engine: Engine) -> dict[str, np.ndarray]:
    """The bundle's first reference input, repeated to the engine's batch; zeros for a bare file.

    Raises:
        InputError: an axis of the input stays open.
    """
    stored = path / "reference.safetensors"
    tensors: dict[str, np.ndarray] = {}
    if path.is_dir() and stored.is_file():
        from safetensors.numpy import load_file

        tensors = load_file(stored)
    inputs = {}
    for spec in engine.input_specs:
        if None in spec.shape:
            raise InputError(f"{path}: input {spec} has open axes; bench a bundle, or give --batch")
        array = tensors.get(f"000.input.{spec.name}")
        if array is None:
            array = np.zeros(spec.shape, spec.dtype)
        inputs[spec.name] = np.resize(array, spec.shape).astype(spec.dtype, copy=False)
    return inputs


def _row(name: str, subject: Subject, result: BenchResult) -> EngineRow:
    timing, engine = result[name], subject.engine
    return EngineRow(
        id=name,
        runtime=engine.runtime,
        precision=subject.precision,
        execution=engine.options.execution,
        route=subject.route,
        latency_p50_ms=timing.p50_ms,
        latency_p90_ms=timing.p90_ms,
        latency_p99_ms=timing.p99_ms,
        speedup=timing.speedup,
        size_bytes=sum(f.stat().st_size for f in subject.files),
    )


def _add_own_process(row: EngineRow, subject: Subject, trust_plan: str | None) -> None:
    engine = subject.engine
    try:
        own = measure_in_own_process(
            subject.source, engine.runtime, engine.options, subject.inputs, trust_plan=trust_plan
        )
    except EdgemlError as e:
        row.warnings.append(str(e))
        row.peak_memory_bytes = not_measured("bytes", str(e))
    else:
        row.load_ms, row.first_inference_ms = own.load_ms, own.first_inference_ms
        row.peak_memory_bytes = own.peak_memory_bytes


def _gpu(
    row: EngineRow, subject: Subject, duration_s: float, log: Callable[[str], None]
) -> dict[str, Any]:
    """Parts by CUDA events, memory, and the GPU's state before and after."""
    log(f"{row.id}: parts by CUDA events")
    before = gpu_state()
    times = gpu_times(subject.engine, subject.inputs, duration_s)
    row.gpu_compute_ms = times.get("compute")
    return {
        "times_ms": {k: m.model_dump(mode="json", exclude_none=True) for k, m in times.items()},
        "memory_bytes": subject.engine.gpu_memory_bytes(),
        "before": before,
        "after": gpu_state(),
    }


def _keep(table: ResultTable, bundles: set[Path], log: Callable[[str], None]) -> None:
    """The table into each bundle's ``measurements``; a bundle that cannot be written stays without."""
    for path in sorted(bundles):
        try:
            file = keep_measurement(path, "bench", table.model_dump(mode="json"))
        except (OSError, EdgemlError) as e:
            log(f"not kept in {path}: {one_line(e)}")
        else:
            log(f"kept as {file}")


def _sold_as(path: Path, engine: Engine) -> tuple[str, str | None, list[Path]]:
    """Precision, route and files of what is benched."""
    if engine.runtime.startswith("tensorrt"):
        from .tensorrt_engine import plan_precision, read_record

        return plan_precision(path), None, [read_record(path)[0]]
    if not path.is_dir():
        companion = [path.with_suffix(".bin")] if path.suffix == ".xml" else []
        return _stored_precision(path), None, [path, *companion]
    from ..artifact.bundle import open_bundle

    bundle = open_bundle(path)
    entry = bundle.engine()
    return entry.precision, entry.route, [bundle.file(name) for name in entry.files]


def _stored_precision(path: Path) -> str:
    """What a bare file is, by its graph."""
    if path.suffix == ".xml":
        return "int8" if b'type="FakeQuantize"' in path.read_bytes() else "fp32"
    from ..artifact.onnx_file import read_onnx, stored_precision

    return stored_precision(read_onnx(path))


def _percentiles(
    result: BenchResult, name: str, percentiles: Sequence[float]
) -> dict[str, dict[str, Any]]:
    found = percentile_intervals(result[name].blocks_ms, percentiles, np.random.default_rng(0))
    return {
        f"p{p:g}": m.model_dump(mode="json", exclude_none=True)
        for p, m in zip(percentiles, found, strict=True)
    }


def _compare(result: BenchResult, names: list[str], settings: dict[str, Any]) -> list[str]:
    """Verdicts against the first: faster, slower, or no difference shown."""
    comparisons = {name: compare(result, name, names[0]) for name in names[1:]}
    settings["comparisons"] = {
        name: {"against": names[0], "verdict": c.verdict, "ratio": c.ratio.model_dump(mode="json")}
        for name, c in comparisons.items()
    }
    return [c.text for c in comparisons.values()]


def _preprocess(path: Path, engine: Engine) -> ImagePreprocess:
    """How the bundle declares that images become its inputs."""
    stored = path / "preprocess.json"
    if not stored.is_file():
        raise InputError(
            f"{path} declares no preprocessing; --end-to-end needs a bundle made from images"
        )
    if engine.input_specs[0].shape[0] != 1:
        raise InputError(f"{path}: --end-to-end times one frame at a time; leave out --batch")
    return ImagePreprocess.from_file(stored)


def _end_to_end(
    engine_id: str,
    engine: Engine,
    preprocess: ImagePreprocess,
    raw: Sequence[bytes],
    duration_s: float,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Decode, preprocess, infer and postprocess apart."""
    from .end_to_end import bench_end_to_end

    name, output = engine.input_specs[0].name, engine.output_specs[0].name
    log(f"{engine_id}: end to end over {len(raw)} images")
    stages = bench_end_to_end(
        engine,
        list(raw),
        decode=decode,
        preprocess=lambda image: {name: preprocess.apply(image)[None]},
        postprocess=lambda outputs: int(outputs[output].argmax()),
        duration_s=duration_s,
    )
    return {stage: m.model_dump(mode="json", exclude_none=True) for stage, m in stages.items()}


def _unique(name: str, taken: dict[str, Any]) -> str:
    """The same bundle may be given twice (an A/A comparison shows the machine's own noise)."""
    names = [name, *(f"{name}#{k}" for k in range(2, len(taken) + 2))]
    return next(n for n in names if n not in taken)
