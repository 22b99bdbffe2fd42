"""Outlier channels planted in a trained ViT: INT8 by the largest magnitude collapses; is it caught, named, cured?

    EDGEML_DATA=… python benchmarks/vit_outliers.py --work DIR [--epochs 12]

1. Trains `build` on the CIFAR-10 images through `edgeml train` into DIR/vit (asked: 75 % on the test images).
   Killed, it goes on where it was; done, it is not trained again.
2. Plants outliers by a rescale that leaves the function as it is: the gain and bias of `CHANNELS` channels of every
   LayerNorm times `FACTOR`, the inputs of the Linear layers behind it divided by it.
3. Quantizes the planted network by the plain routes (asked: at least 20 points lost), names the layers that hurt, and
   cures it by SmoothQuant and by the bisection over ModelOpt's auto_quantize (asked: within 1 point).

Scored in ONNX Runtime at BASIC optimisation on the 10,000 test images; the bisection decides on 1,000 training
images. Writes benchmarks/results/vit_outliers.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

RESULTS = Path(__file__).parent / "results"
CHANNELS, FACTOR = 4, 256.0  # a power of two: the rescale is exact
CALIBRATION, DECISION = 128, 1000
BUDGET_POINTS = 1.0
MEAN_STD = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


class Block(nn.Module):
    """Attention and a two-layer network, norms first. [N, T, W] -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.query_key_value(self.norm1(x))
        parts = parts.reshape(n, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.project(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """A small vision transformer on 32×32 images, its patches made by convolutions, which learns in far fewer
    epochs (Xiao et al. 2021, arXiv:2106.14881). [N, 3, 32, 32] -> [N, 10]."""

    def __init__(self, width: int = 128, blocks: int = 4, heads: int = 4) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for before, after, stride in ((3, 32, 1), (32, 64, 2), (64, width, 2)):
            stages += [
                nn.Conv2d(before, after, 3, stride, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.patches = nn.Sequential(*stages, nn.Conv2d(width, width, 1))
        self.position = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def build() -> nn.Module:
    """What `edgeml train` trains."""
    return ViT()


def plant(module: ViT) -> None:
    """Outliers behind every LayerNorm of the blocks, in place; the function stays as it is."""
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for block in module.blocks:
            for norm, layer in ((block.norm1, block.query_key_value), (block.norm2, block.up)):
                channels = torch.from_numpy(rng.permutation(norm.weight.numel())[:CHANNELS])
                norm.weight[channels] *= FACTOR
                norm.bias[channels] *= FACTOR
                layer.weight[:, channels] /= FACTOR


def train(work: Path, epochs: int, data: str) -> Path:
    out = work / "vit"
    if not out.is_dir():
        command = [sys.executable, "-m", "edgeml", "train"]
        if out.with_name("vit.part").is_dir():
            command += ["--resume", str(out)]
        else:
            command += [f"{Path(__file__).resolve()}:build", "--data", data, "-o", str(out)]
            command += ["--epochs", str(epochs), "--batch", "128", "--optimizer", "adamw"]
            command += ["--lr", "0.001", "--weight-decay", "0.05", "--warmup", "1", "--clip", "1"]
            command += ["--label-smoothing", "0.1", "--augment", "flip", "--augment", "crop"]
            command += ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
        subprocess.run(command, check=True)
    return out / "weights.safetensors"


def images(split: str, count: int | None, offset: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Spread over a split, which is sorted by class; None takes all."""
    from edgeml.artifact.preprocess import ImagePreprocess
    from edgeml.train.classification import Classification
    from edgeml.train.data_source import open_source
    from edgeml.train.sample_stream import SampleStream
    from edgeml.train.splits import Splits

    source = open_source(f"imagefolder:{data_root() / 'cifar10/cifar10.zip'}")
    chosen = np.array([i for i, name in enumerate(source.splits) if name == split])
    if count is not None:
        chosen = chosen[offset :: len(chosen) // count][:count]
    splits = Splits({"test": chosen}, 0, 0, "those of this benchmark")
    preprocess = ImagePreprocess.from_values(MEAN_STD)
    task = Classification(SampleStream(source, splits, preprocess, {"x": "float32"}), 10)
    samples = list(islice(task.samples("test"), len(chosen)))
    return np.stack([s["x"] for s, _ in samples]), np.array([int(label) for _, label in samples])


def data_root() -> Path:
    root = os.environ.get("EDGEML_DATA")
    if not root or not Path(root, "cifar10", "cifar10.zip").is_file():
        sys.exit("skipped: EDGEML_DATA names no folder with cifar10/cifar10.zip")
    return Path(root).resolve()


def accuracy(path: Path, x: np.ndarray, labels: np.ndarray) -> float:
    """Percent, in ONNX Runtime at BASIC: what runs are the Q/DQ that were written."""
    import onnxruntime as ort
    from edgeml.runtime.onnxruntime_engine import DISABLED_OPTIMIZERS

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    session = ort.InferenceSession(
        str(path),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=DISABLED_OPTIMIZERS,
    )
    got = [session.run(None, {"x": x[i : i + 50]})[0].argmax(1) for i in range(0, len(x), 50)]
    return 100 * float((np.concatenate(got) == labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    root = data_root()
    arguments.work.mkdir(parents=True, exist_ok=True)
    weights = train(arguments.work, arguments.epochs, f"imagefolder:{root / 'cifar10/cifar10.zip'}")
    from safetensors.torch import load_file

    module = build().eval()
    module.load_state_dict(load_file(weights))
    write(examine(module))


def examine(module: nn.Module) -> dict[str, Any]:
    """All from the trained network on; the record."""
    import copy

    from edgeml.artifact.machine import describe_machine
    from edgeml.compress.auto_quantize import AutoQuantizeModelopt
    from edgeml.compress.calibration import Calibration
    from edgeml.compress.quantize_modelopt import QuantizeModelopt
    from edgeml.compress.quantize_tensorrt_form import QuantizeTensorrtForm
    from edgeml.compress.step import apply
    from edgeml.errors import EdgemlError
    from edgeml.export import to_onnx
    from edgeml.export.blame import worst_layers_onnx

    x, labels = images("test", None)
    calibration_x, _ = images("train", CALIBRATION)
    decision_x, decision_labels = images("train", DECISION, offset=7)
    planted = copy.deepcopy(module)
    plant(planted)
    with torch.no_grad():
        before = module(torch.from_numpy(x[:500])).numpy()
        after = planted(torch.from_numpy(x[:500])).numpy()
    rows: list[dict[str, Any]] = []
    worst: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch, "float.onnx")
        to_onnx(planted, {"x": x[:2]}, model)
        fp32 = accuracy(model, x, labels)
        decided = accuracy(model, decision_x, decision_labels)

        def lost(path: Path) -> float:
            return decided - accuracy(path, decision_x, decision_labels)

        clean = Path(scratch, "clean.onnx")
        to_onnx(module, {"x": x[:2]}, clean)
        plain = QuantizeTensorrtForm("minmax")
        steps: list[tuple[str, Path, Any]] = [
            ("without outliers", clean, QuantizeModelopt(module, "max")),
            ("plain", model, plain),
            ("plain", model, QuantizeModelopt(planted, "max")),
            ("cure", model, QuantizeModelopt(planted, "smoothquant")),
            ("cure", model, AutoQuantizeModelopt(planted, lost, BUDGET_POINTS / 2)),
            ("cure", model, QuantizeModelopt(planted, "fp8")),
        ]
        for kind, source, step in steps:
            folder = Path(scratch, f"{len(rows)}")
            folder.mkdir()
            calibration = Calibration(lambda: ({"x": a} for a in calibration_x), CALIBRATION)
            started = time.perf_counter()
            row = {"kind": kind, "route": step.route}
            try:
                result = apply(step, source, calibration, folder)
                row |= {"drop_points": fp32 - accuracy(result.path, x, labels)}
                row |= {"quantizers": result.quantizers, "notes": result.notes}
                if step is plain:
                    feeds = [{"x": a[None]} for a in decision_x[:32]]
                    worst = worst_layers_onnx(model, result.path, feeds)
            except EdgemlError as e:
                row["failed"] = str(e)
            row["seconds"] = round(time.perf_counter() - started, 1)
            print(row, flush=True)
            rows.append(row)
    return {
        "n": len(x),
        "fp32": fp32,
        "planted": {
            "channels_a_norm": CHANNELS,
            "factor": FACTOR,
            "max_rel": float(np.abs(after - before).max() / np.abs(before).max()),
        },
        "worst_layers_db": [[name, round(db, 1)] for name, db in worst],
        "rows": rows,
        "machine": describe_machine(),
    }


def write(record: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "vit_outliers.json").write_text(json.dumps(record, indent=1) + "\n")
    planted, rows = record["planted"], record["rows"]
    lines = [
        f"| {r['kind']} | {r['route']} | "
        + (f"{r['drop_points']:.2f}" if "drop_points" in r else f"failed: {r['failed']}")
        + f" | {'; '.join(r.get('notes', [])) or '—'} |"
        for r in rows
    ]
    named = ", ".join(f"`{name}` {db} dB" for name, db in record["worst_layers_db"])
    text = f"""# Outlier channels planted in a trained ViT

CIFAR-10 (JPEG), {record["n"]:,} test images, fp32 {record["fp32"]:.2f} %. Planted: {planted["channels_a_norm"]}
channels of every block's LayerNorms times {planted["factor"]:g}, undone behind them; the outputs change by
{planted["max_rel"]:.1e} of the largest. Scored in ONNX Runtime at BASIC. Made by `python benchmarks/vit_outliers.py`.

| | route | points lost | layers in float |
|---|---|---|---|
{chr(10).join(lines)}

Named by `export.blame` in the plain graph, worst first: {named}.
"""
    print(text)
    (RESULTS / "vit_outliers.md").write_text(text)


if __name__ == "__main__":
    main()
