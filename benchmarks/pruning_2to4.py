"""2:4 sparsity on ResNet-20: what it costs after fine-tuning, and that every covered weight of the ONNX is 2:4.

    EDGEML_DATA=… python benchmarks/pruning_2to4.py [EPOCHS]

Published CIFAR-10 weights, JPEG images, flips and crops. A control has the same epochs without masks.
The test split is read at the end, once a network. Speed needs an NVIDIA GPU and is not measured.
Resumable: epochs are kept under benchmarks/results/pruning_2to4.part. Writes
benchmarks/results/pruning_2to4.json and .md.
"""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
from resnet_cifar_scores import PREPROCESS, RESULTS, data_root

PART = RESULTS / "pruning_2to4.part"


def main() -> None:
    from edgeml.artifact.machine import describe_machine
    from edgeml.compress.sparsity_2to4 import (
        covered_layers,
        finish_2to4,
        sparse_layers_of,
        sparsify_2to4,
    )
    from edgeml.export import to_onnx
    from edgeml.train.checkpoint import Checkpoint
    from edgeml.train.model_source import open_model
    from edgeml.train.settings import TrainSettings
    from edgeml.train.training_data import open_training_data
    from edgeml.train.training_loop import fit
    from edgeml.train.training_run import TrainingRequest

    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    root = data_root()
    weights = root / "models/cifar10-resnet/resnet20.safetensors"
    settings = TrainSettings(
        epochs=epochs, batch=128, optimizer="sgd", lr=0.02, weight_decay=1e-4, nesterov=True
    )
    request = TrainingRequest(
        model="resnet20",
        weights=str(weights),
        data=f"imagefolder:{root / 'cifar10/cifar10.zip'}",
        preprocess=PREPROCESS,
        augment=("flip", "crop"),
        settings=settings,
    )
    PART.mkdir(parents=True, exist_ok=True)
    data = open_training_data(request, PART)
    train = data.batches("train", settings.batch, request.augment)
    loss = data.loss(settings)
    published = open_model("zoo:resnet20", weights).module
    result = {"epochs": epochs, "published": accuracy(data, published, loss)}
    sparse = sparsify_2to4(published)
    result["covered"] = covered_layers(sparse)
    result["2:4, before fine-tuning"] = accuracy(data, sparse, loss)
    for name, network in (("2:4", sparse), ("control without masks", published)):
        identity = {"network": name, "settings": settings.model_dump(mode="json")}
        checkpoint = Checkpoint(
            PART / f"{name.split()[0].replace(':', 'to')}.safetensors", identity
        )
        fit(network, train, settings, loss=loss, checkpoint=checkpoint, log=print)
        if name == "2:4":
            network = finish_2to4(network)
            onnx = PART / "resnet20.onnx"
            to_onnx(network.float().eval(), {"x": np.zeros((2, 3, 32, 32), np.float32)}, onnx)
            stored = [layer.is_2to4 for layer in sparse_layers_of(onnx)]
            result["2:4 weights in the ONNX"], result["weights in the ONNX"] = (
                sum(stored),
                len(stored),
            )
            if sum(stored) < len(result["covered"]):
                sys.exit("failed: a covered weight of the ONNX file is not 2:4")
        result[name] = accuracy(data, network, loss)
        print(name, result[name], flush=True)
    result["machine"] = describe_machine()
    write(result)
    shutil.rmtree(PART)


def accuracy(data, module, loss) -> float:
    """Top-1 in per cent over the test split."""
    return 100 * data.score(module.eval(), "test", loss).accuracy


def write(result: dict) -> None:
    stem = RESULTS / "pruning_2to4"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    rows = ("published", "2:4, before fine-tuning", "2:4", "control without masks")
    lines = [
        f"# 2:4 sparsity, ResNet-20, {result['epochs']} epochs",
        "",
        "10,000 CIFAR-10 JPEG test images. `python benchmarks/pruning_2to4.py`",
        "",
        "| network | top-1 % |",
        "|---|---|",
        *(f"| {name} | {result[name]:.2f} |" for name in rows),
        "",
        f"{len(result['covered'])} layers are covered; of the {result['weights in the ONNX']} weights of the "
        f"exported ONNX {result['2:4 weights in the ONNX']} are 2:4. Speed: not measured (needs an NVIDIA GPU).",
    ]
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
