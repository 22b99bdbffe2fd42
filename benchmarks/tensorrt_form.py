"""EfficientNet-Lite0 in TensorRT's INT8 form, with ModelOpt and without: what it loses, and that it is legal.

    EDGEML_DATA=… python benchmarks/tensorrt_form.py [--ways "without ModelOpt,ModelOpt"]

Each way's method is chosen on imagenet1k-calib500 alone: calibrated on its first half, compared on its second.
The chosen one is scored once on imagenet1k-val1300, in ONNX Runtime at BASIC optimisation (what runs are the Q/DQ
that were written), with Tango's interval of the paired change; asked: no worse than −1.0 point. TensorRT-RTX builds
the file; its INT8 speed is not measured here: that needs the GPU.

Writes benchmarks/results/tensorrt_form.json and .md; `--ways` keeps the other way's row.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from edgeml.artifact.machine import describe_machine
from edgeml.compress.calibration import Calibration
from edgeml.compress.quantize_modelopt import QuantizeModelopt
from edgeml.compress.quantize_modelopt_onnx import QuantizeModeloptOnnx
from edgeml.compress.quantize_tensorrt_form import QuantizeTensorrtForm
from edgeml.compress.step import apply
from edgeml.errors import EdgemlError
from edgeml.export.lint_graph import HEAVY, LintGraph
from edgeml.export.qdq_lint import lint
from edgeml.export.tensorrt_plan import build_engine, profiles_from_shapes
from edgeml.runtime.onnxruntime_engine import DISABLED_OPTIMIZERS
from edgeml.train.paired_interval import tango_interval
from lite0 import load_images
from lite0_model import data_root, export, torch_model

RESULTS = Path(__file__).parent / "results"
SAMPLES = 100
WAYS = ("without ModelOpt", "ModelOpt")
COLUMNS = (
    *(
        "way",
        "method",
        "fp32",
        "INT8",
        "change, points (95 %)",
        "lost / won",
        "MACs in Q/DQ",
        "lint 10.3",
    ),
    *("legal", "on hardware"),
)
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def right(model: Path, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each image's top-1 is its label."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    # One of BASIC's passes rounds the biases of layers between Q/DQ, which are floats in the file.
    session = ort.InferenceSession(
        str(model),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=DISABLED_OPTIMIZERS,
    )
    name = session.get_inputs()[0].name
    hits = [session.run(None, {name: x[i : i + 20]})[0].argmax(1) for i in range(0, len(x), 20)]
    return np.concatenate(hits) == labels


def covered(model: Path) -> float:
    """Share of multiply-accumulates whose two inputs are dequantized int8."""
    graph = LintGraph.read(model)
    macs = {id(n): graph.macs(n) for n in graph.nodes if n.op_type in HEAVY}
    done = sum(
        macs[id(n)]
        for n in graph.nodes
        if id(n) in macs and all(graph.dequantizer(name) is not None for name in n.input[:2])
    )
    return done / sum(macs.values())


def steps(way: str) -> list[Any]:
    """The methods of a way, the fast ones first."""
    if way == "without ModelOpt":
        return [QuantizeTensorrtForm(m) for m in ("minmax", "percentile", "entropy")]
    module = torch_model()
    return [
        QuantizeModelopt(module, "max"),
        QuantizeModelopt(module, "smoothquant"),
        QuantizeModeloptOnnx("max"),
        QuantizeModeloptOnnx("entropy"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ways", default=",".join(WAYS))
    wanted = parser.parse_args().ways.split(",")
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    file = RESULTS / "tensorrt_form.json"
    rows = json.loads(file.read_text()).get("rows", {}) if file.is_file() else {}
    with tempfile.TemporaryDirectory() as scratch:
        original = export(Path(scratch, "lite0.onnx"))
        for way in wanted:
            rows[way] = measure(way, original, Path(scratch))
            write(file, {name: rows[name] for name in WAYS if name in rows})


def measure(way: str, original: Path, scratch: Path) -> dict[str, Any]:
    root = data_root()
    calibration, labels = load_images(next((root / "imagenet1k-calib500").glob("*.csv")))
    half = len(calibration) // 2
    kept = right(original, calibration[half:], labels[half:])
    tried = []
    for step in steps(way):
        folder = scratch / step.route.replace(" ", "-")
        folder.mkdir()
        stream = Calibration(lambda: ({"input": x} for x in calibration[:half]), SAMPLES)
        started = time.perf_counter()
        result = apply(step, original, stream, folder)
        seconds = time.perf_counter() - started
        hits = right(result.path, calibration[half:], labels[half:])
        tried.append((int(hits.sum()) - int(kept.sum()), step.route, result.path, seconds))
        print(
            f"{step.route}: {hits.mean():.2%} of {len(hits)}, original {kept.mean():.2%}, "
            f"{seconds:.0f} s",
            flush=True,
        )
    _, method, path, seconds = max(tried, key=lambda row: (row[0], -row[3]))
    x, labels = load_images(next((root / "imagenet1k-val1300").glob("*.csv")))
    before, after = right(original, x, labels), right(path, x, labels)
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    low, high = tango_interval(won, lost, len(x))
    shapes = {"input": (1, 3, 224, 224)}
    try:
        built = build_engine(path, None, "tensorrt_rtx", profiles_from_shapes(path, {}, shapes, {}))
        legal = f"TensorRT-RTX {built.version}: built, {built.layers} layers"
    except EdgemlError as e:
        legal = str(e)
    return {
        "method": method,
        "calibration_samples": SAMPLES,
        "choice": [
            {"method": m, "change_images": change, "of": half, "seconds": round(s, 1)}
            for change, m, _, s in tried
        ],
        "n": len(x),
        "top1_fp32": float(before.mean()),
        "top1_int8": float(after.mean()),
        "change_points": 100 * float(after.mean() - before.mean()),
        "interval_points": [100 * low, 100 * high],
        "lost": lost,
        "won": won,
        "macs_in_qdq": covered(path),
        "lint_10.3": [finding.line for finding in lint(path, "10.3", shapes=["input"]).findings],
        "legal": legal,
        "run_on_hardware": "not run on hardware",
    }


def write(file: Path, rows: dict[str, dict[str, Any]]) -> None:
    record = {
        "rows": rows,
        "versions": {name: version(name) for name in ("onnxruntime", "nvidia-modelopt", "torch")},
        "machine": describe_machine(),
    }
    n = next(iter(rows.values()))["n"]
    table, choices = [], []
    for way, row in rows.items():
        low, high = row["interval_points"]
        table.append(
            f"| {way} | {row['method']} | {row['top1_fp32']:.2%} | {row['top1_int8']:.2%} "
            f"| {row['change_points']:+.2f} ({low:+.2f} … {high:+.2f}) | {row['lost']} / {row['won']} "
            f"| {row['macs_in_qdq']:.1%} | {len(row['lint_10.3'])} findings | {row['legal']} "
            "| not run on hardware |"
        )
        choices += [
            f"| {way} | {c['method']} | {c['change_images']:+d} of {c['of']} | {c['seconds']} |"
            for c in row["choice"]
        ]
    newline = "\n"
    text = f"""# EfficientNet-Lite0, INT8 in TensorRT's form

{SAMPLES} calibration images; each way's method chosen on imagenet1k-calib500 (calibrated on one half, compared on
the other). Scored once on {n} images of imagenet1k-val1300, ONNX Runtime {record["versions"]["onnxruntime"]} at BASIC.
Made by `python benchmarks/tensorrt_form.py`.

{HEAD}
{newline.join(table)}

| way | method | images won on the other half | quantizing, s |
|---|---|---|---|
{newline.join(choices)}
"""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n")
    file.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
