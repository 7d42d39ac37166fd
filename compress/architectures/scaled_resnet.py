"""A residual network that scales down to kilobytes: the default student."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import CompressError

STAGE_CHANNELS = (64, 128, 256, 512)
"""Channels of the four stages at width 1, as in ResNet-18."""
MAX_DEPTH = 100
"""Most blocks per stage; ResNet-152 has up to 36."""
CHANNEL_MULTIPLE = 8
"""ONNX Runtime's kernels process 8 or 16 channels at a time."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, arXiv 1512.03385, figure 2)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, in_channels, H, W]` to `[N, channels, H / stride, W / stride]`."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ScaledResNet(nn.Module):
    """ResNet-18's design with fewer channels and blocks.

    Args:
        classes: number of classes.
        channels: image channels.
        width: factor for `STAGE_CHANNELS`; results are rounded to multiples of 8.
        depths: blocks per stage, for one to four stages.
        small_stem: 3x3 without stride instead of 7x7 with stride 2; both are followed by pooling.
    """

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        width: float = 0.25,
        depths: Sequence[int] = (1, 1, 1, 1),
        small_stem: bool,
    ) -> None:
        super().__init__()
        if not 0 < width <= 4:
            raise CompressError(f"scaled_resnet: width must be in (0, 4], got {width}")
        if not 1 <= len(depths) <= 4 or not all(1 <= depth <= MAX_DEPTH for depth in depths):
            raise CompressError(
                f"scaled_resnet: depths must be 1 to 4 positive counts up to {MAX_DEPTH}, got "
                f"{depths}"
            )
        widths = [
            max(CHANNEL_MULTIPLE, round(width * full / CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE)
            for full in STAGE_CHANNELS
        ]
        kernel, stride = (3, 1) if small_stem else (7, 2)
        self.conv1 = nn.Conv2d(channels, widths[0], kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.pool = nn.MaxPool2d(3, 2, 1)
        blocks: list[nn.Module] = []
        previous = widths[0]
        for stage, depth in enumerate(depths):
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(ResidualBlock(previous, widths[stage], stride))
                previous = widths[stage]
        self.blocks = nn.Sequential(*blocks)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(previous, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, channels, H, W]` to logits `[N, classes]`."""
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        return self.fc(self.average(self.blocks(x)).flatten(1))  # type: ignore[no-any-return]
