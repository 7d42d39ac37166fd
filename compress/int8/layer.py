"""Convolutions and linear layers, in float or with int8 weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.int8.common import TINIEST_SCALE, Mode, dampened, emit, round_through

QMAX_WEIGHT = 127
QMAX_WEIGHT_REDUCED = 63
"""7-bit weights: two products of them with uint8 fit into the int16 of chips without VNNI."""
QMAX_BIAS = 2**30
"""A bit below int32's largest, to leave room for the products added to it."""
BARRIER = 1e30
"""ONNX Runtime would quantize the weights (per tensor!) of a float layer between a DequantizeLinear
and a QuantizeLinear. A clip that clips nothing keeps it from that."""


class Layer(nn.Module):
    """A convolution or a linear layer; with int8 weights once it has a `source`.

    It is born with float weights, which calibration leaves alone and training updates while each
    forward pass rounds them. `freeze` turns them into integers for good.

    Args:
        weight: float `[out, in, ...]`.
        bias: float `[out]`, or None.
        operation: from input, weight and bias to output.
        groups: of a convolution.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    weight_int8: Tensor
    bias_int32: Tensor
    bias_scale: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        operation: Callable[..., Tensor],
        *,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.operation, self.groups = operation, groups
        self.mode: Mode = "round"
        self.qmax = QMAX_WEIGHT
        self.sink: Callable[[], Tensor] | None = None
        """Once frozen: gives the distance between two levels of its output."""
        self.correction: Callable[[Tensor, Tensor], Tensor] | None = None
        """Emulates other chips: from exact sums and input levels to the chip's sums."""
        self.source: str | None = None
        """Name of the module that quantizes its input; None keeps the layer in float."""
        bias = torch.zeros(len(weight)) if bias is None else bias.detach()
        self.reads_levels = False
        """Whether a float layer's input is quantized all the same."""
        self.frozen = False
        """Whether the weights are integers."""
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.clone())

    @classmethod
    def conv(cls, weight: Tensor, bias: Tensor | None, geometry: Sequence[Any]) -> Layer:
        """Returns a convolution over `[N, C, H, W]`.

        Args:
            weight: float `[out, in / groups, height, width]`.
            bias: float `[out]`, or None.
            geometry: stride, padding, dilation and groups, as `F.conv2d` takes them.
        """
        stride, padding, dilation, groups = geometry
        operation = partial(
            F.conv2d, stride=stride, padding=padding, dilation=dilation, groups=groups
        )
        return cls(weight, bias, operation, groups=groups)

    @classmethod
    def linear(cls, weight: Tensor, bias: Tensor | None) -> Layer:
        """Returns a linear layer over `[N, in]`."""
        return cls(weight, bias, F.linear)

    @property
    def is_convolution(self) -> bool:
        """False for a linear layer."""
        return self.operation is not F.linear

    @property
    def channels(self) -> tuple[int, int]:
        """Numbers of input and output channels."""
        return self.weight.shape[1] * self.groups, self.weight.shape[0]

    def place(self, source: str) -> None:
        """Makes it an int8 layer whose input the named module quantizes."""
        self.source = source
        scale = weight_scale(self.weight.detach(), self.qmax)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps the layer's (quantized) input to its output, float32."""
        if self.frozen:
            return self._run_frozen(x)
        if self.source is None or self.mode != "round":
            if self.reads_levels and torch.compiler.is_exporting():
                x = torch.clamp(x, -BARRIER, BARRIER)
            return self.operation(x, self.weight, self.bias)
        return self.operation(x, self.rounded_weight(), self.bias)

    def rounded_weight(self) -> Tensor:
        """Returns the float weight rounded to its levels; gradients reach weight and scale."""
        scale: Tensor = self.weight_scale
        if scale.requires_grad:
            scale = dampened(scale.clamp_min(TINIEST_SCALE), self.weight[0].numel() * self.qmax)
        scale = per_channel(scale, self.weight)
        return torch.clamp(round_through(self.weight / scale), -self.qmax, self.qmax) * scale

    @torch.no_grad()
    def freeze(self, input_scale: Tensor) -> None:
        """Replaces the float weights by integers, in place.

        Args:
            input_scale: of the quantizer named `source`.
        """
        # An almost dead channel has a tiny scale, in which its bias would overflow int32.
        smallest = self.bias.abs() / (input_scale * QMAX_BIAS)
        scale = torch.maximum(self.weight_scale.clamp_min(TINIEST_SCALE), smallest)
        levels = torch.round(self.weight / per_channel(scale, self.weight))
        self.register_buffer("weight_int8", levels.clamp(-self.qmax, self.qmax).to(torch.int8))
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.register_buffer("bias_scale", scale * input_scale)
        self.register_buffer("bias_int32", torch.round(self.bias / self.bias_scale).int())
        del self.weight, self.bias
        self.frozen = True

    def _run_frozen(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            zero = torch.zeros(len(self.weight_int8), dtype=torch.int8)
            weight = _dequantize(self.weight_int8, self.weight_scale, zero)
            return self.operation(x, weight, _dequantize(self.bias_int32, self.bias_scale))
        # Sums of integers are exact in float32 up to 2**24, in whatever order they are added.
        levels = torch.round(x / (self.bias_scale[0] / self.weight_scale[0]))
        sums = self.operation(levels, self.weight_int8.float(), None)
        if self.correction is not None:
            sums = self.correction(sums, levels)
        shape = (1, -1, 1, 1) if self.is_convolution else (1, -1)
        sums = sums + self.bias_int32.float().view(shape)
        if self.sink is None:
            return sums * self.bias_scale.view(shape)
        # As ONNX Runtime does it: one product with a float32 factor, then rounded. The quantizer
        # that follows finds values that lie on its levels already.
        step = self.sink()
        return torch.round(sums * (self.bias_scale / step).view(shape)) * step


def weight_scale(weight: Tensor, qmax: int) -> Tensor:
    """Returns the scale of each output channel, `[out]`: its largest magnitude becomes `qmax`."""
    return (weight.flatten(1).abs().amax(1) / qmax).clamp_min(TINIEST_SCALE)


def mse_weight_scale(weight: Tensor, qmax: int) -> Tensor:
    """Returns the scale of each output channel with the least mean squared rounding error, `[out]`.

    Searched from half of the largest magnitude to all of it, in steps of 2 %.
    """
    flat, full = weight.flatten(1), weight_scale(weight, qmax)
    best, least = full, torch.full_like(full, math.inf)
    for percent in range(50, 102, 2):
        scale = full * (percent / 100)
        levels = torch.clamp(torch.round(flat / scale[:, None]), -qmax, qmax)
        error = (levels * scale[:, None] - flat).pow(2).mean(1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def per_channel(scale: Tensor, weight: Tensor) -> Tensor:
    """Returns `[out]` shaped so that it multiplies a weight's output channels."""
    return scale.view(-1, *([1] * (weight.ndim - 1)))


def _dequantize(levels: Tensor, *affine: Tensor) -> Tensor:
    """Emits a DequantizeLinear with a scale (and a zero point) for each output channel."""
    inputs = (levels, *affine)
    return emit("DequantizeLinear", inputs, torch.float32, levels.shape, axis=0)
