"""The demo's network: a ResNet-20 for digits, big enough that speed is real, trained in under a minute."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..artifact.preprocess import ImagePreprocess
from ..artifact.tensor_spec import TensorSpec
from .batches import ArrayBatches, shift_crop
from .open_task import open_data
from .settings import TrainSettings
from .training_loop import FitResult, fit
from .zoo.resnet import ResNet, resnet

# MNIST's mean and standard deviation over its training pixels, in [0, 1].
PREPROCESS = {"resize": 32, "color": "L", "mean": [0.1307], "std": [0.3081]}

# Six epochs: 98.0-98.7 % on the 2,000 other images (two seeds), 27 s on two quiet cores.
SETTINGS = TrainSettings(
    epochs=6,
    batch=64,
    optimizer="sgd",
    lr=0.1,
    nesterov=True,
    weight_decay=5e-4,
    warmup_epochs=1,
)


def build() -> ResNet:
    """ResNet-20 for one-channel images. [N, 1, 32, 32] -> [N, 10]."""
    return resnet(20, channels=1)


def train_demo_network(seed: int, log: Callable[[str], None]) -> tuple[ResNet, FitResult]:
    """Train on the `train` split of `mnist5k` (3,000 images).

    Returns:
        The module in eval mode, and how it went.
    """
    opened = open_data(
        "mnist5k",
        TensorSpec("x", (None, 1, 32, 32), "float32"),
        preprocess=ImagePreprocess.from_values(PREPROCESS),
    )
    samples = list(opened.task.samples("train"))
    images = np.stack([inputs["x"] for inputs, _ in samples])
    labels = np.asarray([target for _, target in samples], np.int64)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = build()
    data = ArrayBatches({"x": images}, labels, SETTINGS.batch, augment=shift_crop(2))
    return module, fit(module, data, SETTINGS.model_copy(update={"seed": seed}), log=log)
