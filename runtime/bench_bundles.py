"""`bench` for bundles and engine files: one table, one comparison, everything measured here and now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.bundle import MANIFEST
from ..artifact.content_hash import hash_file
from ..artifact.machine import cpu_times, describe_machine, noise_warning, usable_threads
from ..artifact.measurement import not_measured
from ..artifact.preprocess import ImagePreprocess, decode
from ..artifact.result_row import EngineRow, ResultTable
from ..errors import EdgemlError, InputError
from .engine import Engine, EngineOptions, load
from .latency import BenchResult, batch_of, bench, compare, percentile_intervals, throughput
from .memory import measure_in_own_process

QUANTIZERS = {"DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}


def bench_bundles(
    paths: Sequence[Path],
    *,
    duration_s: float = 2.0,
    iterations: int | None = None,
    warmup: int | None = None,
    threads: int | None = None,
    batch: int | None = None,
    percentiles: Sequence[float] = (50, 90, 99),
    raw_images: Sequence[bytes] | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> ResultTable:
    """Time engines in interleaved blocks, and each by itself for throughput, loading and memory.

    Args:
        paths: bundles or engine files (`.xml`, `.onnx`); the first is what others are compared with.
        duration_s: of each engine's timing, a window of throughput and of end-to-end alike.
        iterations: exactly so many timed inferences an engine instead of a duration.
        raw_images: encoded images; given, decode, preprocess, infer and postprocess are timed apart.

    Returns:
        A row a path. `settings["comparisons"]` holds a verdict an engine after the first,
        `settings["end_to_end"]` the stages' times.

    Raises:
        InputError: a path is no engine, shapes stay open, or a bundle is damaged.
    """
    noise = cpu_times()
    with ExitStack() as stack:
        engines: dict[str, Engine] = {}
        inputs: dict[str, dict[str, np.ndarray]] = {}
        preprocesses: dict[str, ImagePreprocess] = {}
        for path in paths:
            name = _unique(str(path), engines)
            log(f"loading {name}")
            engine = stack.enter_context(load(path, _options(path, threads, batch)))
            if batch is not None and all(s.shape[:1] != (batch,) for s in engine.input_specs):
                raise InputError(
                    f"{path} is fixed to input {engine.input_specs[0]}; --batch {batch} needs an open batch axis"
                )
            engines[name] = engine
            inputs[name] = reference_inputs(path, engine)
            if raw_images is not None:
                preprocesses[name] = _preprocess(path, engine)
        log(f"timing {len(engines)} engine{'s' * (len(engines) > 1)}, {duration_s:g} s each")
        result = bench(
            engines,
            inputs,
            duration_s=duration_s,
            iterations=iterations,
            warmup=warmup,
            reference=next(iter(engines)),
        )
        rows = []
        for path, (name, engine) in zip(paths, engines.items(), strict=True):
            log(f"{name}: throughput, loading, memory")
            rows.append(_row(path, name, engine, inputs[name], result, duration_s))
        settings: dict[str, Any] = {
            "duration_s": duration_s,
            "iterations": iterations,
            "threads": [e.options.threads for e in engines.values()],
            "batch": [batch_of(feed) for feed in inputs.values()],
            # What was measured: the hash of a bundle is that of its manifest.
            "bundles": {
                name: hash_file(path / MANIFEST)
                for name, path in zip(engines, paths, strict=True)
                if path.is_dir()
            },
        }
        settings["percentiles"] = {
            name: _percentiles(result, name, percentiles) for name in engines
        }
        lines = _compare(result, list(engines), settings)
        if raw_images is not None:
            settings["end_to_end"] = {
                name: _end_to_end(name, engine, preprocesses[name], raw_images, duration_s, log)
                for name, engine in engines.items()
            }
    warnings = result.warnings or list(filter(None, [noise_warning(noise, cpu_times())]))
    return ResultTable(
        command="bench",
        rows=sorted(rows, key=lambda row: row.latency_p50_ms.value),
        verdict_line="; ".join(lines) or None,
        machine=describe_machine(),
        settings=settings,
        warnings=warnings,
    )


def _options(path: Path, threads: int | None, batch: int | None) -> EngineOptions | None:
    """None leaves a bundle's engine as it was measured; flags replace what they name."""
    from .bundle_engine import bundle_options

    base = bundle_options(path) if path.is_dir() else EngineOptions(threads=usable_threads(None))
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


def _row(
    path: Path,
    name: str,
    engine: Engine,
    inputs: dict[str, np.ndarray],
    result: BenchResult,
    duration_s: float,
) -> EngineRow:
    timing = result[name]
    precision, route, files = _sold_as(path)
    row = EngineRow(
        id=name,
        runtime=engine.runtime,
        precision=precision,
        execution=engine.options.execution,
        route=route,
        latency_p50_ms=timing.p50_ms,
        latency_p90_ms=timing.p90_ms,
        latency_p99_ms=timing.p99_ms,
        speedup=timing.speedup,
        size_bytes=sum(f.stat().st_size for f in files),
    )
    try:
        row.throughput_per_s = throughput(engine, inputs, duration_s)
    except NotImplementedError:
        row.throughput_per_s = not_measured(
            "1/s", f"{engine.runtime} has no parallel requests here"
        )
    try:
        own = measure_in_own_process(files[0], engine.runtime, engine.options, inputs)
    except EdgemlError as e:
        row.warnings.append(str(e))
        row.peak_memory_bytes = not_measured("bytes", str(e))
    else:
        row.load_ms, row.first_inference_ms = own.load_ms, own.first_inference_ms
        row.peak_memory_bytes = own.peak_memory_bytes
    return row


def _sold_as(path: Path) -> tuple[str, str | None, list[Path]]:
    """Precision, route and files of what is benched."""
    if not path.is_dir():
        companion = [path.with_suffix(".bin")] if path.suffix == ".xml" else []
        return _stored_precision(path), None, [path, *companion]
    from ..artifact.bundle import open_bundle

    bundle = open_bundle(path)
    entry = bundle.engine()
    return entry.precision, entry.route, [bundle.file(name) for name in entry.files]


def _stored_precision(path: Path) -> str:
    """What a bare file is: int8 where its graph holds quantizers, else fp32."""
    if path.suffix == ".xml":
        return "int8" if b'type="FakeQuantize"' in path.read_bytes() else "fp32"
    from ..artifact.onnx_file import nodes, read_onnx

    return "int8" if any(n.op_type in QUANTIZERS for n in nodes(read_onnx(path))) else "fp32"


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
