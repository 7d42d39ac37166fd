"""Quantizers: of activations between layers, and of the network's input.

The same module calibrates, trains, simulates, and exports. While torch.onnx exports it, it emits
QuantizeLinear and DequantizeLinear; otherwise it computes the same numbers in float, so the
accuracy seen in PyTorch is that of the exported file. Activations are uint8 with one scale per
tensor, weights int8 with one scale per output channel, and biases int32 with the product of both
scales: what ONNX Runtime's integer kernels take.
"""

import math

import torch
from torch import Tensor, nn

from compress.int8.fake_quantize import MIN_SCALE, Mode, round_ste, scale_gradient
from compress.int8.onnx_operators import dequantize_linear, quantize_linear
from compress.int8.ranges import LEVELS, Statistics, qparams_of

QMAX_ACTIVATION = LEVELS - 1

QParams = tuple[Tensor, Tensor]
"""Scale and zero point, float32 scalars."""


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to 256 levels, after an activation function that clips and scales.

    The levels stay within `lowest`..`highest`, so ReLU, ReLU6, and the clipping in HardSigmoid are
    free: no operator is exported for them.

    Args:
        lowest: smaller inputs become this; at most 0, since 0 is always a level.
        highest: larger inputs become this; at least 0.
        gain: factor for the clipped input.
    """

    zero_point: Tensor

    def __init__(
        self, *, lowest: float = -math.inf, highest: float = math.inf, gain: float = 1.0
    ) -> None:
        super().__init__()
        assert lowest <= 0 <= highest
        self.lowest, self.highest, self.gain = lowest, highest, gain
        self.mode: Mode = "fake_quantize"
        self.statistics: Statistics | None = None
        """Required in mode `observe`."""
        self.scale = nn.Parameter(torch.tensor(1.0), requires_grad=False)
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` clipped, scaled, and rounded to the levels, float of the same shape."""
        if torch.compiler.is_exporting():
            levels = quantize_linear(x, self.input_scale(), self.zero_point)
            return dequantize_linear(levels, self.scale, self.zero_point)
        if self.mode == "fake_quantize":
            scale: Tensor = self.scale
            if scale.requires_grad:  # learned
                scale = scale_gradient(self._bounded_scale(), x[0].numel() * QMAX_ACTIVATION)
            zero_point = self.zero_point.float()
            levels = round_ste(x / (scale / self.gain)) + zero_point
            return (torch.clamp(levels, 0, QMAX_ACTIVATION) - zero_point) * scale
        if self.lowest > -math.inf or self.highest < math.inf:
            x = torch.clamp(x, self.lowest, self.highest)
        x = x * self.gain if self.gain != 1 else x
        if self.mode == "observe":
            assert self.statistics is not None
            self.statistics.update(x.detach())
        return x

    def input_scale(self) -> Tensor:
        """Returns the distance between two levels before the gain."""
        return self.scale / self.gain

    def input_qparams(self) -> QParams:
        """Returns scale and zero point before the gain, for the operator that writes the input."""
        return self.input_scale(), self.zero_point.float()

    def output_qparams(self) -> QParams:
        """Returns scale and zero point after the gain, for the operators that read the output."""
        return self.scale, self.zero_point.float()

    def set_range(self, low: float, high: float) -> None:
        """Sets scale and zero point so that the levels span `low`..`high` (after the gain)."""
        low, high = max(low, self.lowest * self.gain), min(high, self.highest * self.gain)
        scale, zero_point = qparams_of(low, high)
        self.scale.data.fill_(scale)
        self.zero_point.fill_(zero_point)

    def convert(self) -> None:
        """Fixes a learned scale in place, bounded as in training."""
        self.scale.requires_grad = False
        self.scale.copy_(self._bounded_scale())

    def _bounded_scale(self) -> Tensor:
        """Bounds the scale so that the levels stay within the activation function's bounds.

        Zero is a level, so between two bounds the outermost levels may be half a step beyond them:
        whatever `set_range` chose is allowed.
        """
        lowest, highest = self.lowest * self.gain, self.highest * self.gain
        slack = 0.5 if lowest < 0 < highest else 0.0
        below = float(self.zero_point)
        above = QMAX_ACTIVATION - below
        largest = (highest - lowest) / QMAX_ACTIVATION
        if above > slack:
            largest = min(largest, highest / (above - slack))
        if below > slack:
            largest = min(largest, -lowest / (below - slack))
        return torch.clamp(self.scale, MIN_SCALE, max(largest, MIN_SCALE))


class ImageInput(nn.Module):
    """The uint8 image as a quantized tensor: roughly normalized, with a mean gray as zero point.

    With a scale of 1 the first layer's weights would be so small that training would destroy them
    at the learning rate of the others.

    Args:
        scale: scale of one gray level.
        zero_point: the gray level that becomes 0.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.uint8))

    def forward(self, images: Tensor) -> Tensor:
        """Maps images 0..255 `[N, C, H, W]` to float32 `(images - zero_point) * scale`."""
        if torch.compiler.is_exporting():
            return dequantize_linear(images, self.scale, self.zero_point)
        return (images.float() - self.zero_point.float()) * self.scale
