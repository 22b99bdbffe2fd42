"""TensorRT on your GPU: fp32, FP16, INT8 and FP8 engines of known networks, latency and energy.

    python benchmarks/tensorrt_gpu.py [--to tensorrt|tensorrt-rtx] [--networks resnet50,vit] [--energy]

Each network is written in TensorRT's typed form (FP16 outside Q/DQ; INT8 by the route tensorrt-form, FP8 by ModelOpt),
built, loaded and timed, all engines of one network in interleaved blocks of one process. Times are by
CUDA events and by the host's wall clock; joules by NVML's counter over windows of 10 s and more.

Without a GPU, or without the library, every row says `not run on hardware` and how far the graph came: `written`, or
`legal` where TensorRT-RTX took it. Weights are random but sane (nvidia_models.py): speed does not depend on them,
accuracy is not told here. A row of hardware names the GPU, driver, clocks and power limit.

Writes benchmarks/results/tensorrt_gpu.json and .md; a run of some networks keeps the others' rows.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from edgeml.artifact.atomic_file import write_json, write_text
from edgeml.artifact.boards import precisions_of
from edgeml.artifact.machine import describe_machine
from edgeml.artifact.tensorrt_versions import VERSIONS
from edgeml.compress.calibration import Calibration
from edgeml.compress.quantize_modelopt import QuantizeModelopt
from edgeml.compress.quantize_tensorrt_form import QuantizeTensorrtForm
from edgeml.compress.step import apply
from edgeml.compress.target_candidates import NO_INT8_CONVOLUTIONS
from edgeml.compress.target_graph import write_typed_graph
from edgeml.errors import EdgemlError, MissingPart
from edgeml.export.onnx_check import inspect_onnx
from edgeml.export.onnx_graph import to_onnx
from edgeml.export.tensorrt_export import to_tensorrt
from edgeml.runtime import load
from edgeml.runtime.bench_energy import engine_energy
from edgeml.runtime.bench_gpu import gpu_state, gpu_times
from edgeml.runtime.device.cuda_runtime import CudaRuntime
from edgeml.runtime.latency import bench
from nvidia_models import ARCHITECTURES, build

RESULTS = Path(__file__).parent / "results"
PRECISIONS = ("fp32", "fp16", "int8", "fp8")
NOT_RUN = "not run on hardware"
SECONDS = 5.0
COLUMNS = ("network", "precision", "state", "p50 ms", "compute ms", "× fp16", "mJ", "note")


def graph(name: str, precision: str, folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """The typed graph of a network, and one input."""
    module, x = build(name)
    key = next(iter(_parameters(module)))
    onnx = folder / "float.onnx"
    to_onnx(module, {key: x[:2]}, onnx)
    samples = Calibration(lambda: iter([{key: sample} for sample in x]), len(x))
    step: Any = {
        "int8": lambda: QuantizeTensorrtForm("minmax"),
        "fp8": lambda: QuantizeModelopt(module, "fp8"),
    }.get(precision)
    source = onnx
    if step is not None:
        (folder / "quantized").mkdir()
        source = apply(step(), onnx, samples, folder / "quantized").path
    version = VERSIONS["10.16"]
    typed = write_typed_graph(source, folder, version, precision != "fp32", samples, numerics=False)
    return typed.path, {key: x[:1]}


def _parameters(module: Any) -> list[str]:
    from edgeml.export.onnx_graph import forward_inputs

    return forward_inputs(module)


def one(name: str, precision: str, to: str, capability: str | None, folder: Path) -> dict[str, Any]:
    """Write and build; the row, with the engine's folder where it can be loaded."""
    row: dict[str, Any] = {"network": name, "precision": precision, "state": "failed"}
    try:
        path, feed = graph(name, precision, folder)
        row["state"] = "written"
        if to == "tensorrt-rtx" and precision == "int8" and "Conv" in inspect_onnx(path).op_counts:
            return {**row, "note": NO_INT8_CONVOLUTIONS}
        # TensorRT itself builds for the GPU that is there; TensorRT-RTX without one for Ada.
        where = (capability or "SM89") if to == "tensorrt-rtx" else None
        done = to_tensorrt(path, folder / "out", to, compute_capability=where)
        row |= {"state": "legal", "engine": done.record["engine"]}
        return {**row, "folder": done.directory, "feed": feed}
    except EdgemlError as e:
        return {**row, "note": str(e)}


def run_here(rows: list[dict[str, Any]], energy: bool) -> None:
    """Load and time the engines of one network on this GPU, into their rows."""
    engines: dict[str, Any] = {}
    for row in rows:
        if "folder" in row:
            try:
                engines[row["precision"]] = load(row["folder"])
            except EdgemlError as e:
                row["note"] = str(e)
    if not engines:
        return
    feed = next(row["feed"] for row in rows if row["precision"] in engines)
    reference = "fp16" if "fp16" in engines else next(iter(engines))
    result = bench(engines, feed, duration_s=SECONDS, reference=reference)
    for row in rows:
        if row["precision"] not in engines:
            continue
        engine, timing = engines[row["precision"]], result[row["precision"]]
        row |= {
            "state": "run on hardware",
            "latency_p50_ms": timing.p50_ms.model_dump(mode="json"),
            "latency_p99_ms": timing.p99_ms.model_dump(mode="json"),
            "speedup": timing.speedup.model_dump(mode="json") if timing.speedup else None,
            "gpu_ms": {
                part: m.model_dump(mode="json")
                for part, m in gpu_times(engine, feed, SECONDS).items()
            },
        }
        if energy:
            row["energy"] = engine_energy(engine, feed).as_json()
    for engine in engines.values():
        engine.close()


def gpu() -> tuple[str | None, str]:
    """The compute capability of the GPU here, or None and why there is none."""
    try:
        return CudaRuntime().capability(), ""
    except MissingPart as e:
        return None, str(e)


def table(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    lines = [
        "# TensorRT on a GPU",
        "",
        f"Command: `python benchmarks/tensorrt_gpu.py`. Library: {about['library']}. GPU: "
        f"{about['gpu'] or NOT_RUN + ' (' + about['why'] + ')'}.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    for row in rows:
        ran = row["state"] == "run on hardware"
        joules = (row.get("energy") or {}).get("gross_mj")
        cells = [
            row["network"],
            row["precision"],
            row["state"] if ran else f"{row['state']}, {NOT_RUN}",
            f"{row['latency_p50_ms']['value']:.3f}" if ran else NOT_RUN,
            f"{row['gpu_ms']['compute']['value']:.3f}" if ran and row["gpu_ms"] else NOT_RUN,
            f"{row['speedup']['value']:.2f}" if ran and row["speedup"] else NOT_RUN,
            f"{joules:.2f}" if joules is not None else NOT_RUN,
            row.get("note", ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    usual = "tensorrt" if find_spec("tensorrt") else "tensorrt-rtx"
    parser.add_argument("--to", choices=["tensorrt", "tensorrt-rtx"], default=usual)
    parser.add_argument("--networks", default=",".join(ARCHITECTURES))
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--energy", action="store_true")
    given = parser.parse_args()
    capability, why = gpu()
    about = {
        "library": given.to,
        "gpu": capability,
        "why": why,
        "conditions": gpu_state() if capability else None,
        "machine": describe_machine(),
    }
    file = RESULTS / "tensorrt_gpu.json"
    old = json.loads(file.read_text())["rows"] if file.exists() else []
    for name in given.networks.split(","):
        with tempfile.TemporaryDirectory(prefix="edgeml-gpu-") as scratch:
            rows = []
            for precision in given.precisions.split(","):
                if capability and precision not in precisions_of(capability):
                    continue
                folder = Path(scratch, precision)
                folder.mkdir()
                rows.append(one(name, precision, given.to, capability, folder))
            if capability:
                run_here(rows, given.energy)
        for row in rows:
            row.pop("folder", None), row.pop("feed", None)
        done = {(row["network"], row["precision"]) for row in rows}
        old = [row for row in old if (row["network"], row["precision"]) not in done] + rows
        write_json(file, {"schema_version": 1, **about, "rows": old})
        write_text(RESULTS / "tensorrt_gpu.md", table(old, about))
        for row in rows:
            print(row["network"], row["precision"], row["state"], row.get("note", ""), flush=True)


if __name__ == "__main__":
    main()
