"""A plain convolutional network, as in tutorials."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import CompressError


class PlainCNN(nn.Module):
    """3x3 convolutions, each followed by ReLU and 2x2 max pooling, then one hidden linear layer.

    At 32 px, widths 64, 64 and hidden 256 give linear layers 4096 -> 256 -> classes.

    Args:
        classes: number of classes.
        channels: image channels.
        size: image side in pixels.
        widths: channels of each convolution.
        hidden: width of the hidden layer.
        dropout: probability before the last layer.
    """

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: int,
        widths: Sequence[int],
        hidden: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        side = size >> len(widths)
        if not widths or side < 1:
            raise CompressError(
                f"a plain CNN with {len(widths)} convolutions, each halving the side, does not fit "
                f"{size} px images; use 1 to {size.bit_length() - 1} widths"
            )
        layers: list[nn.Module] = []
        for before, width in zip((channels, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(widths[-1] * side * side, hidden)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, channels, size, size]` to logits `[N, classes]`."""
        x = F.relu(self.hidden(self.features(x).flatten(1)))
        return self.fc(self.dropout(x))  # type: ignore[no-any-return]
