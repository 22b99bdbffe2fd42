"""A small convolutional network: conv 32, pool, conv 64, pool, conv 64, dense 64, dense."""

from __future__ import annotations

from torch import Tensor, nn

from ...errors import InputError

SMALLEST = 18  # below it the third convolution has no pixel left


class CNN(nn.Module):
    """See `cnn`. [N, channels, size, size] float32 -> [N, classes] logits."""

    def __init__(self, classes: int, channels: int, size: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(inplace=True),
        )
        side = ((size - 2) // 2 - 2) // 2 - 2
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * side * side, 64),
            nn.ReLU(inplace=True),
            nn.Linear(64, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def cnn(*, classes: int = 10, channels: int = 1, size: int = 28) -> CNN:
    """The network of many an introduction to image classification.

    Args:
        size: side of the square images, in pixels.

    Raises:
        InputError: the images are too small for three convolutions and two poolings.

    >>> sum(p.numel() for p in cnn().parameters())
    93322
    """
    if size < SMALLEST:
        raise InputError(f"the cnn takes images of at least {SMALLEST} pixels, not {size}")
    return CNN(classes, channels, size)
