"""Does the exported Q/DQ graph compute what ModelOpt's fake-quantized module does, on real inputs?

    EDGEML_DATA=… EDGEML_BENCH_MODELS=… python benchmarks/nvidia_numerics.py [--only resnet20] [--methods max]

ResNet-20 (published weights, CIFAR-10 test images) and EfficientNet-Lite0 (imagenet1k-val1300), 256 images each,
calibrated on others; INT8 by max and SmoothQuant, FP8. Asked: top-1 agreement of 99 % or more and a relative
L2 difference of 1 % or less between torch and ONNX Runtime at BASIC optimisation. Two columns tell an error of the
export from the order in which products are summed:

- *control*: the same module in torch, its convolutions computed by torch itself instead of oneDNN;
- *layer alone*: each layer of the graph given the module's own tensors (`compress.modelopt_parity`), the worst of all.

Writes benchmarks/results/nvidia_numerics.json and .md after each method.
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
from nvidia_layers import layers

RESULTS = Path(__file__).parent / "results"
IMAGES, CALIBRATION = 256, 64
AGREEMENT, RELATIVE_L2 = 0.99, 0.01  # asked of the whole network
ALONE = 8  # images for the comparison by layer
METHODS = ("max", "smoothquant", "fp8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="resnet20,lite0")
    parser.add_argument("--methods", default=",".join(METHODS))
    arguments = parser.parse_args()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    file = RESULTS / "nvidia_numerics.json"
    rows = json.loads(file.read_text())["rows"] if file.is_file() else []
    order = [(name, method) for name in ("resnet20", "lite0") for method in METHODS]
    for name in arguments.only.split(","):
        images = resnet20() if name == "resnet20" else lite0()
        for method in arguments.methods.split(","):
            rows = [r for r in rows if (r["network"], r["method"]) != (name, method)]
            rows.append({"network": name, **measure(method, *images)})
            rows.sort(key=lambda r: order.index((r["network"], r["method"])))
            print(rows[-1], flush=True)
            write(file, rows)


def measure(
    method: str, module: torch.nn.Module, calibration: np.ndarray, x: np.ndarray
) -> dict[str, Any]:
    started = time.perf_counter()
    [parameter] = forward_inputs(module)
    samples = [{parameter: a[None]} for a in calibration]
    ready, notes = quantize_module(module, samples, method)
    batches = [x[i : i + 16] for i in range(0, len(x), 16)]
    with tempfile.TemporaryDirectory() as scratch:
        done = export_quantized(ready, {parameter: calibration[:8]}, Path(scratch, "q.onnx"))
        got = np.concatenate([run(done.path, parameter, batch) for batch in batches])
        by_layer = layers(done.path, parameter, ready, x[:ALONE])
    fake, fp32 = torch_outputs(ready, batches), torch_outputs(module, batches)
    with torch.backends.mkldnn.flags(enabled=False):
        other = torch_outputs(ready, batches)
    return {
        "method": method,
        "n": len(x),
        **compared(got, fake),
        "control": compared(other, fake),
        "with_fp32": compared(got, fp32),
        "layer_alone": max(row["alone"] for row in by_layer),
        "layers": by_layer,
        "quantizers": done.quantizers,
        "notes": notes,
        "seconds": round(time.perf_counter() - started, 1),
    }


def torch_outputs(module: torch.nn.Module, batches: list[np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return np.concatenate([module(torch.from_numpy(batch)).numpy() for batch in batches])


def compared(got: np.ndarray, want: np.ndarray) -> dict[str, float]:
    return {
        "agreement": float((got.argmax(1) == want.argmax(1)).mean()),
        "relative_l2": float(np.linalg.norm(got - want) / np.linalg.norm(want)),
    }


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
        f"| {r['network']} | {r['method']} | {r['n']} | {both(r)} | {both(r['control'])} "
        f"| {r['layer_alone']:.0e} | {both(r['with_fp32'])} | {reached(r)} |"
        for r in rows
    )
    file.with_suffix(
        ".md"
    ).write_text(f"""# ModelOpt's fake-quantized module and the exported Q/DQ graph

Real images; ONNX Runtime {record["versions"]["onnxruntime"]} at BASIC optimisation against torch. Made by
`python benchmarks/nvidia_numerics.py`. Asked: agreement ≥ 99 %, relative L2 ≤ 1 %; where that is missed, the control
tells how far torch is from itself.

Two figures a cell: top-1 agreement, relative L2. Control: the fake-quantized module in torch against itself,
its convolutions computed by torch instead of oneDNN. Layer alone: relative L2 of the worst layer when each layer of the
graph is given the module's own tensors ({ALONE} images).

| network | method | images | ONNX Runtime | control | layer alone | ONNX Runtime with fp32 | as asked |
|---|---|---|---|---|---|---|---|
{table}
""")


def reached(row: dict[str, Any]) -> str:
    """Which of the two figures asked for are missed."""
    missed = ["agreement"] if row["agreement"] < AGREEMENT else []
    missed += ["relative L2"] if row["relative_l2"] > RELATIVE_L2 else []
    return f"**missed**: {' and '.join(missed)}" if missed else "yes"


def both(figures: dict[str, float]) -> str:
    return f"{figures['agreement']:.2%}, {figures['relative_l2']:.2%}"


if __name__ == "__main__":
    main()
