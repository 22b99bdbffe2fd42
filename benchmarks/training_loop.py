"""A CIFAR-10 ResNet-20 epoch through `edgeml.train.fit` beside a bare PyTorch loop, same settings.

    EDGEML_DATA=… python benchmarks/training_loop.py [--samples 50000] [--repeats 3]

Both read the same decoded uint8 images, normalise batch by batch, and take bf16 and the memory format
that edgeml measured to be faster; epochs alternate. Decoding once is timed apart. Writes
benchmarks/results/training_loop.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from edgeml.artifact.machine import describe_machine
from edgeml.train import fit
from edgeml.train.settings import TrainSettings
from edgeml.train.training_data import open_training_data
from edgeml.train.training_run import TrainingRequest
from edgeml.train.zoo.resnet import resnet

BATCH = 128
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def bare_epoch(x: torch.Tensor, y: torch.Tensor, execution) -> float:
    """Seconds of one epoch as one would write it by hand."""
    torch.manual_seed(0)
    torch.set_num_threads(execution.threads)
    model = resnet(20).train()
    if execution.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, -(-len(y) // BATCH))
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    start = time.perf_counter()
    order = torch.randperm(len(y))
    for first in range(0, len(y), BATCH):
        rows = order[first : first + BATCH]
        images = ((x[rows].float() / 255 - mean) / std).permute(0, 3, 1, 2)
        if not execution.channels_last:
            images = images.contiguous()
        with torch.autocast("cpu", torch.bfloat16, enabled=execution.precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(model(images).float(), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    settings = TrainSettings(
        epochs=1, batch=BATCH, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4
    )
    request = TrainingRequest(
        model="resnet20",
        data=f"imagefolder:{Path(os.environ['EDGEML_DATA']) / 'cifar10/cifar10.zip'}",
        preprocess={"mean": MEAN, "std": STD},
        settings=settings,
    )
    start = time.perf_counter()
    data = open_training_data(request, None)
    decode_s = time.perf_counter() - start
    inputs, y = data.arrays["train"]
    x, y = inputs["x"][: given.samples], y[: given.samples]
    data.arrays["train"] = {"x": x}, y
    ours, bare = [], []
    for _ in range(given.repeats):
        torch.manual_seed(0)
        result = fit(resnet(20), data.batches("train", BATCH), settings)
        ours.append(result.epochs[0].seconds)
        bare.append(bare_epoch(torch.from_numpy(x), torch.from_numpy(y), result.execution))
        print(f"ours {ours[-1]:.1f} s ({result.execution}), bare {bare[-1]:.1f} s", flush=True)
    record = {
        "samples": len(y),
        "ours_s": ours,
        "bare_s": bare,
        "ratio": float(np.median(ours) / np.median(bare)),
        "decode_once_s": decode_s,
        "decoded_mb": data.size_bytes / 2**20,
        "machine": describe_machine(),
    }
    print(json.dumps(record, indent=1))
    if given.samples >= 50_000 - 1000:
        results = Path(__file__).parent / "results"
        (results / "training_loop.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
