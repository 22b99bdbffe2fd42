"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381, table 2); state-dict keys as torchvision's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import InputError

# Expansion, channels, blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow. [N, C, H, W] -> [N, width, H/stride, W/stride]."""

    def __init__(self, channels: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        widen = [_conv(channels, inner, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *widen,
            _conv(inner, inner, 3, stride, groups=inner),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """See `mobilenetv2`. [N, channels, H, W] float32 -> [N, classes] logits."""

    def __init__(
        self, width: float, classes: int, channels: int, dropout: float, first_stride: int
    ) -> None:
        super().__init__()
        now = _eights(32 * width)
        blocks: list[nn.Module] = [_conv(channels, now, 3, first_stride)]
        for expansion, stage_width, count, stride in STAGES:
            for i in range(count):
                then = _eights(stage_width * width)
                blocks.append(InvertedResidual(now, then, stride if i == 0 else 1, expansion))
                now = then
        last = _eights(1280 * max(1.0, width))
        self.features = nn.Sequential(*blocks, _conv(now, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, classes))
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out")
            elif isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, 0, 0.01)
                nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.mean(self.features(x), dim=(2, 3)))


def _conv(channels: int, width: int, side: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, side, stride, side // 2, groups=groups, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU6(inplace=True),
    )


def _eights(channels: float) -> int:
    """The nearest multiple of 8 that loses no more than a tenth (as the authors' code rounds)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def mobilenetv2(
    *,
    width: float = 1.0,
    classes: int = 10,
    channels: int = 3,
    dropout: float = 0.2,
    size: int = 224,
) -> MobileNetV2:
    """MobileNetV2.

    Args:
        width: multiplies every number of channels.
        size: of the images it is meant for; below 64 the first stride is left out, or the last
            stages would see a single pixel.

    Raises:
        InputError: `width` is not positive.

    >>> sum(p.numel() for p in mobilenetv2(classes=1000).parameters())
    3504872
    """
    if not 0 < width < 16:
        raise InputError(f"width {width} is no multiplier; give one such as 0.5 or 1")
    return MobileNetV2(width, classes, channels, dropout, 1 if size < 64 else 2)
