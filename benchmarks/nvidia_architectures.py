"""Seven architectures in TensorRT's forms: are they legal, how much of them is INT8, what stays in fp32?

    EDGEML_DATA=… EDGEML_BENCH_MODELS=… python benchmarks/nvidia_architectures.py [--only resnet20,vit]

INT8 by ModelOpt (torch), by ModelOpt's ONNX part and without an NVIDIA package:

- form (b), for TensorRT 10 and later: FP16 outside Q/DQ; lint for 10.3 and RTX, TensorRT-RTX's parser and
  builder, the share of multiply-accumulates whose two inputs are dequantized, the nodes that stay in fp32;
- form (a), for TensorRT 8.5 and 8.6: fp32 at opset 17, checked by onnx.checker, equal in ONNX Runtime.

FP8 by ModelOpt: what the builder says for SM89, SM120 and SM86 (which has none).

*Legal* means that NVIDIA's parser and builder take it; nothing here is run on a GPU. Writes
benchmarks/results/nvidia_architectures.json and .md after each architecture; `--only` keeps the other rows.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from edgeml.artifact.machine import describe_machine
from edgeml.artifact.tensorrt_versions import VERSIONS
from edgeml.compress.calibration import Calibration
from edgeml.compress.fp16_cast import cast_fp16
from edgeml.compress.quantize_modelopt import QuantizeModelopt
from edgeml.compress.quantize_modelopt_onnx import QuantizeModeloptOnnx
from edgeml.compress.quantize_tensorrt_form import QuantizeTensorrtForm
from edgeml.compress.step import apply
from edgeml.errors import EdgemlError
from edgeml.export import to_onnx
from edgeml.export.lint_fixes import mend
from edgeml.export.lint_graph import HEAVY, LintGraph, label
from edgeml.export.lint_proof import without_activation_quantizers
from edgeml.export.onnx_graph import forward_inputs
from edgeml.export.qdq_lint import lint
from edgeml.export.tensorrt_plan import build_engine, profiles_from_shapes
from edgeml.runtime.onnxruntime_engine import DISABLED_OPTIMIZERS
from nvidia_models import ARCHITECTURES, CONVOLUTIONAL, SAMPLES, build

RESULTS = Path(__file__).parent / "results"
EQUAL = 1e-5  # of the largest output
FP8 = ("resnet50", "mobilenetv2", "resnet20", "bert", "vit", "llama")
# What does arithmetic on floats; the rest moves, converts or computes shapes.
MOVES = {
    *(
        "Cast",
        "QuantizeLinear",
        "DequantizeLinear",
        "Constant",
        "ConstantOfShape",
        "Shape",
        "Range",
    ),
    *("Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split"),
    *("Squeeze", "Transpose", "Unsqueeze", "Where"),
}


COLUMNS = (
    *(
        "architecture",
        "route",
        "Q/DQ",
        "MACs in Q/DQ",
        "float nodes in fp32",
        "lint 10.3 + RTX",
        "legal",
    ),
    *("form (a)", "on hardware"),
)
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=",".join(ARCHITECTURES))
    wanted = parser.parse_args().only.split(",")
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    file = RESULTS / "nvidia_architectures.json"
    rows = json.loads(file.read_text())["rows"] if file.is_file() else []
    for name in wanted:
        with tempfile.TemporaryDirectory() as scratch:
            fresh = examine(name, Path(scratch))
        rows = [row for row in rows if row["architecture"] != name] + fresh
        rows.sort(key=lambda row: (ARCHITECTURES.index(row["architecture"]), row["route"]))
        write(file, rows)


def examine(name: str, scratch: Path) -> list[dict[str, Any]]:
    module, x = build(name)
    [parameter] = forward_inputs(module)
    model = scratch / "float.onnx"
    to_onnx(module, {parameter: x[:2]}, model)
    calibration = Calibration(lambda: ({parameter: a} for a in x), SAMPLES)
    steps: list[Any] = [
        QuantizeTensorrtForm("minmax"),
        QuantizeModelopt(module, "max"),
        QuantizeModelopt(module, "smoothquant"),
        QuantizeModeloptOnnx("entropy"),
    ]
    steps += [QuantizeModelopt(module, "fp8")] if name in FP8 else []
    rows = []
    for step in steps:
        folder = scratch / step.route.replace(" ", "-")
        folder.mkdir()
        started = time.perf_counter()
        row: dict[str, Any] = {"architecture": name, "route": step.route}
        row["precision"] = getattr(step, "precision", "int8")
        try:
            quantized = apply(step, model, calibration, folder)
            row["notes"] = quantized.notes
            row |= form_b(quantized.path, folder, parameter, x, row["precision"])
            if row["precision"] == "int8":
                row |= form_a(quantized.path, folder, parameter, x)
        except EdgemlError as e:
            row["failed"] = str(e)
        row["seconds"] = round(time.perf_counter() - started, 1)
        print({k: v for k, v in row.items() if k not in ("notes", "fp32_nodes")}, flush=True)
        rows.append(row)
    return rows


def form_b(path: Path, folder: Path, parameter: str, x: np.ndarray, precision: str) -> dict:
    """FP16 outside Q/DQ: legality, coverage, what stays in fp32."""
    samples = [{parameter: a[None]} for a in x[:8]]
    half = cast_fp16(path, folder / "half.onnx", samples)
    graph = LintGraph.read(half.path)
    macs = {id(n): graph.macs(n) for n in graph.nodes if n.op_type in HEAVY}
    done = sum(
        macs[id(n)]
        for n in graph.nodes
        if id(n) in macs and all(graph.dequantizer(i) is not None for i in n.input[:2])
    )
    types = {
        label(n): graph.elem_type(n.output[0])
        for n in graph.nodes
        if n.op_type not in MOVES and n.output
    }
    float32 = [name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT]
    floats = [
        n for n, kind in types.items() if kind in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    ]
    findings = {
        v: [f.line for f in lint(half.path, v, shapes=[parameter]).findings]
        for v in ("10.3", "rtx")
    }
    built = {}
    for capability in ("SM89", "SM120", "SM86") if precision == "fp8" else ("SM89",):
        profiles = profiles_from_shapes(half.path, {}, {parameter: (1, *x.shape[1:])}, {})
        try:
            engine = build_engine(
                half.path, None, "tensorrt_rtx", profiles, compute_capability=capability
            )
            built[capability] = f"TensorRT-RTX {engine.version}: {engine.layers} layers"
        except EdgemlError as e:
            built[capability] = f"refused: {e}".replace(str(folder), "")
    pairs = {n.input[0] for n in graph.nodes if n.op_type == "DequantizeLinear"}
    return {
        "quantizers": len(pairs),
        "macs_in_qdq": done / max(sum(macs.values()), 1),
        "float_nodes": len(floats),
        "fp32_nodes": {
            name: half.kept.get(name, "reads or makes one that is kept") for name in float32
        },
        "lint": findings,
        "legal": built,
        "run_on_hardware": "not run on hardware",
    }


def form_a(path: Path, folder: Path, parameter: str, x: np.ndarray) -> dict[str, Any]:
    """fp32 with Q/DQ at opset 17: the checker's word, and how far its outputs are from those at opset 20."""
    result = {}
    before = run(path, parameter, x[:4])
    for version in ("8.5.2", "8.6.2"):
        lowered = folder / f"{version}.onnx"
        try:
            onnx.save(mend(path, VERSIONS[version]).model, lowered)
            onnx.checker.check_model(str(lowered), full_check=True)
            opset = onnx.load(lowered, load_external_data=False).opset_import[0].version
            after = run(lowered, parameter, x[:4])
            result[version] = {
                "opset": opset,
                "max_rel": apart(after, before),
                # Beside a rounding border the seventh digit decides, and LayerNormalization by older operators has
                # another: the rewrite itself is shown where Q/DQ do not round.
                "max_rel_unrounded": apart(
                    *(unrounded(file, folder, parameter, x[:4]) for file in (lowered, path))
                ),
                "lint": [f.line for f in lint(lowered, version, shapes=[parameter]).findings],
            }
        except Exception as e:  # the reason is the result
            result[version] = {"failed": f"{type(e).__name__}: {str(e).splitlines()[0]}"}
    return {"form_a": result}


def unrounded(path: Path, folder: Path, parameter: str, x: np.ndarray) -> np.ndarray:
    """What the graph gives with the activations' Q/DQ taken out."""
    plain = folder / "unrounded.onnx"
    onnx.save(without_activation_quantizers(onnx.load(path)), plain)
    return run(plain, parameter, x)


def apart(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, of the largest value."""
    return float(np.abs(got - want).max() / np.abs(want).max())


def equal(row: dict[str, Any]) -> str:
    """The table's word for a graph at opset 17."""
    if row["max_rel"] <= EQUAL:
        return "equal"
    if row.get("max_rel_unrounded", 1) <= EQUAL:
        return f"equal but for rounding borders ({row['max_rel']:.1%})"
    return f"{row['max_rel']:.1e} apart"


def run(path: Path, parameter: str, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    # One of BASIC's passes rounds the biases of layers between Q/DQ, which are floats in the file.
    session = ort.InferenceSession(
        str(path),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=DISABLED_OPTIMIZERS,
    )
    return session.run(None, {parameter: x})[0]


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    from importlib.metadata import version

    names = ("onnxruntime", "nvidia-modelopt", "torch", "tensorrt-rtx-cu13", "transformers")
    record = {
        "rows": rows,
        "versions": {name: version(name) for name in names},
        "machine": describe_machine(),
    }
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")
    lines = []
    for row in rows:
        if "failed" in row:
            lines.append(
                f"| {row['architecture']} | {row['route']} | failed: {row['failed']} |||||||"
            )
            continue
        legal = ", ".join(
            f"{cc} {'refused' if word.startswith('refused') else 'yes'}"
            for cc, word in row["legal"].items()
        )
        lowered = ", ".join(
            f"{v} {equal(a)}" if "max_rel" in a else f"{v} failed"
            for v, a in row.get("form_a", {}).items()
        )
        kept = row["fp32_nodes"]
        some = f": {', '.join(list(kept)[:2])}{' …' if len(kept) > 2 else ''}" if kept else ""
        lines.append(
            f"| {row['architecture']} | {row['route']} | {row['quantizers']} "
            f"| {row['macs_in_qdq']:.1%} | {len(kept)} of {row['float_nodes']}{some} "
            f"| {sum(map(len, row['lint'].values()))} | {legal} | {lowered or '—'} | not run on hardware |"
        )
    table = "\n".join(lines)
    file.with_suffix(".md").write_text(f"""# Seven architectures in TensorRT's forms

Made by `python benchmarks/nvidia_architectures.py`. *Legal*: the parser and builder of TensorRT-RTX
{record["versions"]["tensorrt-rtx-cu13"]} take the graph with FP16 outside Q/DQ; nothing was run on a GPU.
Form (a): fp32 with Q/DQ at opset 17, passed by onnx.checker; equal: it differs from opset 20
in ONNX Runtime by at most 1e-5 of the largest output. *But for rounding borders*: so it is where activations are not
rounded; between Q and DQ a value beside a border fell the other way, and the outputs differ by the figure told.
Attention's own products stay in FP16, for TensorRT's fused kernel, and count against the share in Q/DQ;
route `tensorrt-form` quantizes them too. Convolutional: {", ".join(CONVOLUTIONAL)}.

{HEAD}
{table}
""")


if __name__ == "__main__":
    main()
