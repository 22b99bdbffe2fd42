"""Published ResNet-20 and ResNet-56 weights score the same in torch, OpenVINO and ONNX Runtime.

    EDGEML_DATA=… python benchmarks/resnet_cifar_scores.py

The whole CIFAR-10 JPEG test set (10,000 images) through the project's own sources, preprocessing and
`evaluate`; asked: 81.0 and 83.2 % (± 0.2) in torch, the engines within ± 0.1 of that. Writes
benchmarks/results/resnet_cifar_scores.json and .md.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
EXPECTED = {"resnet20": 81.0, "resnet56": 83.2}
# How the weights were trained (akamaster/pytorch_resnet_cifar10): ImageNet's statistics.
PREPROCESS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def data_root() -> Path:
    root = os.environ.get("EDGEML_DATA")
    if not root or not Path(root, "cifar10", "cifar10.zip").is_file():
        sys.exit("skipped: EDGEML_DATA names no folder with cifar10/cifar10.zip")
    return Path(root)


def test_task(root: Path):
    """All 10,000 test images as one split."""
    from edgeml.artifact.preprocess import ImagePreprocess
    from edgeml.train.classification import Classification
    from edgeml.train.data_source import open_source
    from edgeml.train.sample_stream import SampleStream
    from edgeml.train.splits import Splits

    source = open_source(f"imagefolder:{root / 'cifar10/cifar10.zip'}")
    test = np.array([i for i, split in enumerate(source.splits) if split == "test"])
    splits = Splits({"test": test}, 0, 0, "the whole test set")
    preprocess = ImagePreprocess.from_values(PREPROCESS)
    return Classification(SampleStream(source, splits, preprocess, {"x": "float32"}), 10)


def main() -> None:
    from edgeml.artifact.machine import describe_machine
    from edgeml.export import to_onnx
    from edgeml.runtime.engine import EngineOptions, load_file
    from edgeml.runtime.torch_engine import TorchEngine
    from edgeml.train.evaluate import evaluate
    from edgeml.train.model_source import open_model

    root = data_root()
    task = test_task(root)
    rows = []
    options = EngineOptions(threads=len(os.sched_getaffinity(0)), batch=None)
    for name, expected in EXPECTED.items():
        (weights,) = sorted((root / "models/cifar10-resnet").glob(f"*{name}*.safetensors"))
        module = open_model(f"zoo:{name}", weights).module
        example = {"x": np.zeros((100, 3, 32, 32), np.float32)}
        with tempfile.TemporaryDirectory() as scratch:
            onnx = Path(scratch, "model.onnx")
            to_onnx(module, example, onnx)
            engines = {
                "torch": TorchEngine(module, example, options=options),
                "openvino fp32": load_file(onnx, "openvino", options),
                "onnxruntime fp32": load_file(onnx, "onnxruntime", options),
            }
            begin = time.perf_counter()
            evaluation = evaluate(engines, task, "test", batch=100, reference_id="torch")
            seconds = time.perf_counter() - begin
            for engine_id, engine in engines.items():
                accuracy = 100 * evaluation.metrics(engine_id)["accuracy"]
                rows.append(
                    {
                        "network": name,
                        "engine": engine_id,
                        "accuracy": accuracy,
                        "expected": expected,
                        "n": evaluation.n,
                    }
                )
                engine.close()
        print(name, f"{seconds:.0f} s", [f"{r['engine']} {r['accuracy']:.2f}" for r in rows[-3:]])
    torch_of = {r["network"]: r["accuracy"] for r in rows if r["engine"] == "torch"}
    holds = all(
        abs(r["accuracy"] - r["expected"]) <= 0.2
        and abs(r["accuracy"] - torch_of[r["network"]]) <= 0.1
        for r in rows
    )
    machine = describe_machine()
    RESULTS.mkdir(exist_ok=True)
    record = {"machine": machine, "rows": rows, "holds": holds}
    (RESULTS / "resnet_cifar_scores.json").write_text(json.dumps(record, indent=2) + "\n")
    lines = [
        "# Published CIFAR-10 ResNets score the same everywhere",
        "",
        f"{machine['cpu']}. Made by `python benchmarks/resnet_cifar_scores.py`. Top-1 on the whole "
        f"JPEG test set (n = {rows[0]['n']:,}); asked: ± 0.2 of the published figure on this set in "
        f"torch, engines within ± 0.1 of torch: {'holds' if holds else 'does NOT hold'}.",
        "",
        "| network | engine | top-1 % | expected % |",
        "|---|---|---|---|",
        *(
            f"| {r['network']} | {r['engine']} | {r['accuracy']:.2f} | {r['expected']} |"
            for r in rows
        ),
        "",
    ]
    (RESULTS / "resnet_cifar_scores.md").write_text("\n".join(lines))
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
