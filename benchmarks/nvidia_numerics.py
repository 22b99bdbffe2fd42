"""Does the exported Q/DQ graph compute what ModelOpt's fake-quantized module does, on real inputs?

    EDGEML_DATA=… EDGEML_BENCH_MODELS=… python benchmarks/nvidia_numerics.py [--only resnet20]

ResNet-20 (published weights, CIFAR-10 test images) and EfficientNet-Lite0 (imagenet1k-val1300), 256 images each,
calibrated on others; INT8 by max and SmoothQuant, FP8. Asked: top-1 agreement of 99 % or more and a relative
L2 difference of 1 % or less between torch and ONNX Runtime at BASIC optimisation. Two things differ by rights: ModelOpt
multiplies by 127 / amax where ONNX divides by amax / 127, and sums of products come in another order; a value beside
a rounding border then falls the other way, and the layers behind multiply that. The control shows how much: the
same module in torch on inputs larger by a millionth. Writes benchmarks/results/nvidia_numerics.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgeml.artifact.machine import describe_machine
from edgeml.compress.modelopt_export import export_quantized
from edgeml.compress.quantize_modelopt import quantize_module
from edgeml.export.onnx_graph import forward_inputs
from nvidia_architectures import run

RESULTS = Path(__file__).parent / "results"
IMAGES, CALIBRATION = 256, 64
# Of the inputs, for the control: how far the fake-quantized module is then from itself.
NUDGE = 1e-6
METHODS = ("max", "smoothquant", "fp8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="resnet20,lite0")
    wanted = parser.parse_args().only.split(",")
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    file = RESULTS / "nvidia_numerics.json"
    rows = json.loads(file.read_text())["rows"] if file.is_file() else []
    for name in wanted:
        rows = [row for row in rows if row["network"] != name] + measure(name)
        write(file, rows)


def measure(name: str) -> list[dict[str, Any]]:
    module, calibration, x = resnet20() if name == "resnet20" else lite0()
    [parameter] = forward_inputs(module)
    rows = []
    for method in METHODS:
        started = time.perf_counter()
        samples = [{parameter: a[None]} for a in calibration]
        ready, notes = quantize_module(module, samples, method)
        with tempfile.TemporaryDirectory() as scratch:
            done = export_quantized(ready, {parameter: calibration[:8]}, Path(scratch, "q.onnx"))
            batches = [x[i : i + 16] for i in range(0, len(x), 16)]
            got = np.concatenate([run(done.path, parameter, batch) for batch in batches])
        with torch.no_grad():
            fake = np.concatenate([ready(torch.from_numpy(b)).numpy() for b in batches])
            nudged = np.concatenate(
                [ready(torch.from_numpy(b * np.float32(1 + NUDGE))).numpy() for b in batches]
            )
            fp32 = np.concatenate([module(torch.from_numpy(b)).numpy() for b in batches])
        row = {
            "network": name,
            "method": method,
            "n": len(x),
            "agreement": float((got.argmax(1) == fake.argmax(1)).mean()),
            "relative_l2": float(np.linalg.norm(got - fake) / np.linalg.norm(fake)),
            "relative_l2_nudged": float(np.linalg.norm(nudged - fake) / np.linalg.norm(fake)),
            "agreement_with_fp32": float((got.argmax(1) == fp32.argmax(1)).mean()),
            "relative_l2_to_fp32": float(np.linalg.norm(got - fp32) / np.linalg.norm(fp32)),
            "quantizers": done.quantizers,
            "notes": notes,
            "seconds": round(time.perf_counter() - started, 1),
        }
        print(row, flush=True)
        rows.append(row)
    return rows


def resnet20() -> tuple[torch.nn.Module, np.ndarray, np.ndarray]:
    from edgeml.train.model_source import open_model
    from resnet_cifar_scores import data_root, test_task

    root = data_root()
    weights = root / "models/cifar10-resnet/resnet20.safetensors"
    module = open_model("zoo:resnet20", weights).module
    # Spread over the set, which is sorted by class; every fifth calibrates.
    step = 10_000 // (IMAGES + CALIBRATION)
    x = np.stack([s["x"] for s, _ in islice(test_task(root).samples("test"), 0, None, step)])
    fifth = np.arange(len(x)) % 5 == 4
    return module.eval(), x[fifth][:CALIBRATION], x[~fifth][:IMAGES]


def lite0() -> tuple[torch.nn.Module, np.ndarray, np.ndarray]:
    from lite0 import load_images
    from lite0_model import data_root, torch_model

    root = data_root()
    calibration, _ = load_images(next((root / "imagenet1k-calib500").glob("*.csv")), CALIBRATION)
    x, _ = load_images(next((root / "imagenet1k-val1300").glob("*.csv")), IMAGES)
    return torch_model(), calibration, x


def control(row: dict[str, Any]) -> str:
    return f"{row['relative_l2_nudged']:.2%}" if "relative_l2_nudged" in row else "not measured"


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    from importlib.metadata import version

    names = ("onnxruntime", "nvidia-modelopt", "torch", "onnxscript")
    record = {
        "rows": rows,
        "versions": {name: version(name) for name in names},
        "machine": describe_machine(),
    }
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")
    table = "\n".join(
        f"| {r['network']} | {r['method']} | {r['n']} | {r['agreement']:.2%} | {r['relative_l2']:.2%} "
        f"| {control(r)} | {r['agreement_with_fp32']:.1%} | {r['relative_l2_to_fp32']:.1%} |"
        for r in rows
    )
    file.with_suffix(
        ".md"
    ).write_text(f"""# ModelOpt's fake-quantized module and the exported Q/DQ graph

Real images; ONNX Runtime {record["versions"]["onnxruntime"]} at BASIC optimisation against torch. Made by
`python benchmarks/nvidia_numerics.py`. Asked: agreement ≥ 99 %, relative L2 ≤ 1 %.

Control: the fake-quantized module on inputs larger by a millionth, against itself.

| network | method | images | top-1 agreement | relative L2 | control, L2 | with fp32: agreement | L2 |
|---|---|---|---|---|---|---|---|
{table}
""")


if __name__ == "__main__":
    main()
