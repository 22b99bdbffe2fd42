"""ResNet in the CIFAR form of He et al. 2015 (arXiv:1512.03385, section 4.2).

Three stages of `blocks` basic blocks with widths w, 2w, 4w; option-A shortcuts without parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InputError


class SubsampleAndPad(nn.Module):
    """Option-A shortcut: every second pixel, zero channels around (no parameters).

    [N, channels, H, W] -> [N, width, ceil(H/2), ceil(W/2)]. Pruning either side leaves the other as
    it is (`keep_channels`): what is gone on the way in comes out as zeros.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        before = (width - channels) // 2
        after = width - channels - before
        self.in_channels = channels
        # For each channel that comes out: the one it copies, or -1 for zeros.
        self.source = [-1] * before + list(range(channels)) + [-1] * after

    @property
    def out_channels(self) -> int:
        return len(self.source)

    def keep_channels(self, axis: str, kept: list[int]) -> None:
        """Keep these channels of the input (``in``) or of the output (``out``)."""
        if axis == "out":
            self.source = [self.source[i] for i in kept]
        else:
            place = {old: new for new, old in enumerate(kept)}
            self.source = [place.get(i, -1) for i in self.source]
            self.in_channels = len(kept)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, ::2, ::2]
        copied = [i for i in self.source if i >= 0]
        if not copied:
            return torch.zeros_like(x[:, :1]).expand(-1, self.out_channels, -1, -1)
        before, first, count = self.source.index(copied[0]), copied[0], len(copied)
        after = self.out_channels - before - count
        run = [-1] * before + list(range(first, first + count)) + [-1] * after
        if self.source == run:  # no gather: as it is before any pruning
            return F.pad(x[:, first : first + count], (0, 0, 0, 0, before, after))
        x = F.pad(x, (0, 0, 0, 0, 0, 1))  # the last channel is zero: index -1
        index = [i % x.shape[1] for i in self.source]
        return x[:, index]

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}"


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut. [N, C, H, W] -> [N, width, H/stride, W/stride]."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity() if stride == 1 else SubsampleAndPad(channels, width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """See `resnet`. [N, channels, H, W] float32 -> [N, classes] logits."""

    def __init__(self, blocks: tuple[int, int, int], width: int, classes: int, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(blocks[0], width, width, 1)
        self.layer2 = _stage(blocks[1], width, 2 * width, 2)
        self.layer3 = _stage(blocks[2], 2 * width, 4 * width, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * width, classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(self.pool(x), 1))


def _stage(blocks: int, channels: int, width: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))


def resnet(
    depth: int = 20,
    *,
    width: int = 16,
    blocks: int | tuple[int, int, int] | None = None,
    classes: int = 10,
    channels: int = 3,
) -> ResNet:
    """A CIFAR ResNet.

    Args:
        depth: 6n + 2 with n blocks a stage (20, 32, 44, 56 …).
        width: channels of the first stage; the others have twice and four times as many.
        blocks: instead of `depth`: blocks a stage, one number or three.

    Raises:
        InputError: `depth` is not 6n + 2, or a number is below 1.

    >>> sum(p.numel() for p in resnet(20).parameters())
    269722
    """
    if blocks is None:
        if depth < 8 or (depth - 2) % 6:
            raise InputError(f"a CIFAR ResNet has 6n + 2 layers (20, 32, 44, 56 …), not {depth}")
        blocks = (depth - 2) // 6
    stages = (blocks,) * 3 if isinstance(blocks, int) else tuple(blocks)
    if len(stages) != 3 or min(*stages, width, classes, channels) < 1:
        raise InputError(
            f"blocks {blocks}, width {width}, classes {classes}, channels {channels}: "
            "give three stages and numbers from 1 on"
        )
    return ResNet(stages, width, classes, channels)
