"""EfficientNet-Lite0 in TensorRT's INT8 form, without ModelOpt: what it loses, and that it is legal.

    EDGEML_DATA=… python benchmarks/tensorrt_form.py [--methods minmax,percentile,entropy]

Method and samples are chosen on imagenet1k-calib500 alone: calibrated on its first half, compared on its
second. The chosen one is scored once on imagenet1k-val1300, in ONNX Runtime at BASIC optimisation (what
runs are the Q/DQ that were written), with Tango's interval of the paired change. TensorRT-RTX builds the
file; its INT8 speed is not measured here: that needs the GPU.

Writes benchmarks/results/tensorrt_form.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from edgeml.artifact.machine import describe_machine
from edgeml.compress.calibration import Calibration
from edgeml.compress.quantize_tensorrt_form import QuantizeTensorrtForm
from edgeml.compress.step import apply
from edgeml.export.lint_graph import HEAVY, LintGraph
from edgeml.export.qdq_lint import lint
from edgeml.export.tensorrt_plan import build_engine, profiles_from_shapes
from edgeml.train.paired_interval import tango_interval
from lite0 import load_images
from lite0_model import data_root, export

RESULTS = Path(__file__).parent / "results"
SAMPLES = 100


def right(model: Path, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each image's top-1 is its label."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", default="minmax,percentile,entropy")
    methods = parser.parse_args().methods.split(",")
    root = data_root()
    scratch = Path(tempfile.mkdtemp())
    original = export(scratch / "lite0.onnx")
    calibration, labels = load_images(next((root / "imagenet1k-calib500").glob("*.csv")))
    half = len(calibration) // 2
    kept = right(original, calibration[half:], labels[half:])
    rows = []
    for method in methods:
        folder = scratch / method
        folder.mkdir()
        stream = Calibration(lambda: ({"input": x} for x in calibration[:half]), SAMPLES)
        started = time.perf_counter()
        result = apply(QuantizeTensorrtForm(method), original, stream, folder)
        seconds = time.perf_counter() - started
        hits = right(result.path, calibration[half:], labels[half:])
        rows.append((int(hits.sum()) - int(kept.sum()), method, result.path, seconds))
        print(
            f"{method}: {hits.mean():.2%} of {len(hits)}, original {kept.mean():.2%}, {seconds:.0f} s",
            flush=True,
        )
    _, method, path, seconds = max(rows, key=lambda row: (row[0], -row[3]))
    x, labels = load_images(next((root / "imagenet1k-val1300").glob("*.csv")))
    before, after = right(original, x, labels), right(path, x, labels)
    low, high = tango_interval(int((~before & after).sum()), int((before & ~after).sum()), len(x))
    findings = lint(path, "10.3", shapes=["input"]).findings
    try:
        built = build_engine(path, None, "tensorrt_rtx", profiles_from_shapes(path, {}, {}, {}))
        legal = f"TensorRT-RTX {built.version}: built, {built.layers} layers"
    except Exception as e:
        legal = str(e)
    record = {
        "method": method,
        "calibration_samples": SAMPLES,
        "choice": [
            {"method": m, "change_images": change, "of": half, "seconds": round(s, 1)}
            for change, m, _, s in rows
        ],
        "n": len(x),
        "top1_fp32": float(before.mean()),
        "top1_int8": float(after.mean()),
        "change_points": 100 * float(after.mean() - before.mean()),
        "interval_points": [100 * low, 100 * high],
        "lost": int((before & ~after).sum()),
        "won": int((~before & after).sum()),
        "macs_in_qdq": covered(path),
        "lint_10.3": [finding.line for finding in findings],
        "legal": legal,
        "run_on_hardware": "not run on hardware",
        "versions": {"onnxruntime": ort.__version__},
        "machine": describe_machine(),
    }
    interval = f"{100 * low:+.2f} … {100 * high:+.2f}"
    cells = [
        f"{before.mean():.2%}",
        f"{after.mean():.2%}",
        f"{record['change_points']:+.2f} ({interval})",
        f"{record['lost']} / {record['won']}",
        f"{record['macs_in_qdq']:.1%}",
        f"{len(findings)} findings",
        legal,
        "not run on hardware",
    ]
    methods_rows = "".join(f"| {m} | {change:+d} | {s:.1f} |\n" for change, m, _, s in rows)
    text = f"""# EfficientNet-Lite0, INT8 in TensorRT's form, without ModelOpt

`{method}`, {SAMPLES} calibration images, chosen on imagenet1k-calib500 (calibrated on one half, compared on
the other). Scored once on {len(x)} images of imagenet1k-val1300, ONNX Runtime {ort.__version__} at BASIC.
Made by `python benchmarks/tensorrt_form.py`.

| fp32 | INT8 | change, points (95 %) | lost / won | MACs in Q/DQ | lint 10.3 | legal | on hardware |
|---|---|---|---|---|---|---|---|
| {" | ".join(cells)} |

| method | images won on the other half ({half}) | quantizing, s |
|---|---|---|
{methods_rows}"""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tensorrt_form.json").write_text(json.dumps(record, indent=2) + "\n")
    (RESULTS / "tensorrt_form.md").write_text(text)


if __name__ == "__main__":
    main()
