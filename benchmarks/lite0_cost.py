"""What edgeml's own work costs: `edgeml.compress.quantize` beside a bare NNCF script, and `run` overhead.

    EDGEML_DATA=… python benchmarks/lite0_cost.py [--runs 5]

Both quantize the same ONNX file on the same 300 images in a process of their own, in turn; wall time and
peak memory by the operating system's accounting. Then `engine.run` against the raw OpenVINO request on
MobileNetV2 (random weights) and on a one-layer network; then `edgeml --help` against importing click.

Writes benchmarks/results/cost.json and cost.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from lite0_model import data_root, export

HERE = Path(__file__).resolve().parent
THREADS = len(os.sched_getaffinity(0))


def run_measured(command: list[str]) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of a process.

    The peak is VmHWM, read until the end: `ru_maxrss` starts at what this process held when it
    forked, and gave both sides this process's own size.
    """
    began = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        status, peak = Path(f"/proc/{child.pid}/status"), 0
        while child.poll() is None:
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peak = max(peak, int(line.split()[1]) * 1024)
            time.sleep(0.01)
        wall = time.perf_counter() - began
        if child.returncode != 0:
            log.seek(0)
            sys.exit(f"{command} failed:\n{log.read().decode()[-2000:]}")
    return wall, peak


def quantize_cost(runs: int) -> dict:
    data = data_root()
    scratch = Path(tempfile.mkdtemp(prefix="edgeml-cost-"))
    onnx = export(scratch / "lite0.onnx")
    # A folder of 300, so that both sides read the same ones and all of them.
    images = scratch / "images"
    images.mkdir()
    for file in sorted((data / "imagenet1k-calib500" / "images").iterdir())[:300]:
        shutil.copyfile(file, images / file.name)
    sides: dict[str, list] = {"bare": [], "edgeml": []}
    scripts = {"bare": "bare_nncf.py", "edgeml": "edgeml_quantize.py"}
    for i in range(runs + 1):
        for side, script in scripts.items():
            out = scratch / f"{side}{i}"
            taken = run_measured(
                [sys.executable, str(HERE / script), str(onnx), str(images), str(out)]
            )
            if i:  # the first of each warms the file cache
                sides[side].append(taken)
    wall = {s: [w for w, _ in v] for s, v in sides.items()}
    memory = {s: [m for _, m in v] for s, v in sides.items()}
    return {
        "runs": runs,
        "wall_s": wall,
        "peak_bytes": memory,
        "wall_ratio": statistics.median(
            a / b for a, b in zip(wall["edgeml"], wall["bare"], strict=True)
        ),
        "memory_ratio": statistics.median(
            a / b for a, b in zip(memory["edgeml"], memory["bare"], strict=True)
        ),
    }


def one_layer(path: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )
    return path


def mobilenet(path: Path) -> Path:
    """MobileNetV2 of the zoo (width 1, 224×224), random weights."""
    from edgeml.export import to_onnx
    from edgeml.train.zoo.mobilenetv2 import mobilenetv2

    to_onnx(mobilenetv2(classes=1000), {"x": np.zeros((1, 3, 224, 224), np.float32)}, path)
    return path


def run_overhead(onnx: Path, rounds: int, calls: int) -> dict:
    """Median time of `engine.run` and of the raw request, in alternating blocks of one process."""
    import openvino as ov
    from edgeml.runtime.engine import EngineOptions, load_file

    engine = load_file(onnx, "openvino", EngineOptions(threads=THREADS))
    model = ov.convert_model(onnx)
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": THREADS,
    }
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    shape = engine.input_specs[0].shape
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    sides = {
        "edgeml": lambda: engine.run({"x": x}),
        "raw": lambda: request.infer({"x": x}, share_inputs=True),
    }
    times: dict[str, list[list[float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            block = []
            for k in range(calls):
                begin = time.perf_counter()
                call()
                if k >= 5:
                    block.append(time.perf_counter() - begin)
            times[name].append(block)
    medians = {name: [statistics.median(b) for b in blocks] for name, blocks in times.items()}
    differences = [(a - b) * 1e6 for a, b in zip(medians["edgeml"], medians["raw"], strict=True)]
    ratios = [a / b for a, b in zip(medians["edgeml"], medians["raw"], strict=True)]
    return {
        "edgeml_us": statistics.median(medians["edgeml"]) * 1e6,
        "raw_us": statistics.median(medians["raw"]) * 1e6,
        "difference_us": statistics.median(differences),
        "ratio": statistics.median(ratios),
        "rounds": rounds,
        "calls": calls,
    }


def help_cost(runs: int) -> dict:
    edgeml = str(Path(sys.executable).with_name("edgeml"))
    ratios, ours = [], []
    for _ in range(runs):
        help_s, _ = run_measured([edgeml, "--help"])
        click_s, _ = run_measured([sys.executable, "-c", "import click"])
        ratios.append(help_s / click_s)
        ours.append(help_s)
    return {"runs": runs, "help_s": statistics.median(ours), "ratio": statistics.median(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    from edgeml.artifact.machine import describe_machine

    scratch = Path(tempfile.mkdtemp(prefix="edgeml-cost-"))
    record = {
        "machine": describe_machine(),
        "help": help_cost(20),
        "one_layer": run_overhead(one_layer(scratch / "one.onnx"), 60, 300),
        "mobilenetv2": run_overhead(mobilenet(scratch / "mobilenet.onnx"), 60, 60),
        "quantize": quantize_cost(args.runs),
        "own_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    results = HERE / "results"
    (results / "cost.json").write_text(json.dumps(record, indent=2) + "\n")
    one, mobile, q = record["one_layer"], record["mobilenetv2"], record["quantize"]
    text = "\n".join(
        [
            "# What edgeml costs beside the bare libraries",
            "",
            f"{record['machine']['cpu']}, {THREADS} threads. Made by `python benchmarks/lite0_cost.py`.",
            "",
            "| what | edgeml | bare | difference | asked |",
            "|---|---|---|---|---|",
            f"| quantize Lite0, wall s (median of {q['runs']}) | {statistics.median(q['wall_s']['edgeml']):.1f} "
            f"| {statistics.median(q['wall_s']['bare']):.1f} | {q['wall_ratio']:.2f} × | ≤ 1.3 × |",
            f"| the same, peak MB | {statistics.median(q['peak_bytes']['edgeml']) / 1e6:.0f} "
            f"| {statistics.median(q['peak_bytes']['bare']) / 1e6:.0f} | {q['memory_ratio']:.2f} × | ≤ 1.3 × |",
            f"| run, one layer, µs | {one['edgeml_us']:.1f} | {one['raw_us']:.1f} "
            f"| {one['difference_us']:+.1f} µs | ≤ 20 µs |",
            f"| run, MobileNetV2, µs | {mobile['edgeml_us']:.0f} | {mobile['raw_us']:.0f} "
            f"| {mobile['ratio']:.3f} × | ≤ 1.03 × |",
            f"| `edgeml --help`, s | {record['help']['help_s']:.3f} | import click "
            f"| {record['help']['ratio']:.2f} × | ≤ 3 × |",
            "",
        ]
    )
    (results / "cost.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
