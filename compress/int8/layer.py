"""Convolutions and linear layers, in float or with int8 weights."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.int8.fake_quantize import MIN_SCALE, Mode, round_ste, scale_gradient
from compress.int8.onnx_operators import dequantize_channels

QMAX_WEIGHT = 127
QMAX_WEIGHT_REDUCED = 63
"""7-bit weights: the sum of two products with uint8 fits into the int16 of CPUs without VNNI."""
QMAX_BIAS = 2**30
"""One bit below int32's maximum, to leave room for the products that are added."""
BARRIER = 1e30
"""ONNX Runtime would quantize the weights (per tensor!) of a float layer between a DequantizeLinear
and a QuantizeLinear. A clip that clips nothing prevents that."""

NO_PAD = (0, 0, 0, 0)


def padded_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    pad: tuple[int, int, int, int],
    **geometry: Any,
) -> Tensor:
    """Pads with `pad` zeros (left, right, top, bottom), unevenly as TensorFlow does, and convolves.

    In a file, no quantizer is between the two, so ONNX Runtime makes them one int8 operator.
    """
    return F.conv2d(x if pad == NO_PAD else F.pad(x, pad), weight, bias, **geometry)


class Layer(nn.Module):
    """A convolution or a linear layer; int8 once it has an `input_quantizer`.

    The weights start in float: calibration leaves them alone, and training updates them while each
    forward pass fake-quantizes them. `convert` turns them into integers.

    Args:
        weight: float `[out, in, ...]`.
        bias: float `[out]`, or None.
        operation: maps input, weight, and bias to the output.
        groups: number of groups of a convolution.
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
        self.mode: Mode = "fake_quantize"
        self.qmax = QMAX_WEIGHT
        self.input_quantizer: str | None = None
        """Name of the module that quantizes the input; None keeps the layer in float."""
        self.output_scale: Callable[[], Tensor] | None = None
        """After conversion: returns the scale of the quantizer that reads the output."""
        self.saturate: Callable[[Tensor, Tensor], Tensor] | None = None
        """Emulates other CPUs: maps exact sums and input levels to the sums they compute."""
        self.has_quantized_input = False
        """Whether the input of a float layer is quantized anyway."""
        self.converted = False
        """Whether the weights are integers."""
        bias = torch.zeros(len(weight)) if bias is None else bias.detach()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.clone())

    @classmethod
    def conv(cls, weight: Tensor, bias: Tensor | None, geometry: Sequence[Any]) -> Self:
        """Returns a convolution over `[N, C, H, W]`.

        Args:
            weight: float `[out, in / groups, height, width]`.
            bias: float `[out]`, or None.
            geometry: stride, padding, dilation, and groups, in the forms that `F.conv2d` takes.
        """
        stride, padding, dilation, groups = geometry
        operation = partial(
            padded_conv2d,
            pad=NO_PAD,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
        return cls(weight, bias, operation, groups=groups)

    @classmethod
    def linear(cls, weight: Tensor, bias: Tensor | None) -> Self:
        """Returns a linear layer over `[N, in]`."""
        return cls(weight, bias, F.linear)

    @property
    def is_convolution(self) -> bool:
        """False for a linear layer."""
        return self.operation is not F.linear

    @property
    def is_int8(self) -> bool:
        """Whether the layer is quantized, or about to be."""
        return self.input_quantizer is not None

    @property
    def channels(self) -> tuple[int, int]:
        """Numbers of input and output channels."""
        return self.weight.shape[1] * self.groups, self.weight.shape[0]

    def quantize(self, input_quantizer: str) -> None:
        """Makes this an int8 layer whose input is quantized by the named module."""
        self.input_quantizer = input_quantizer
        scale = weight_scale(self.weight.detach(), self.qmax)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps the layer's (quantized) input to its output, float32."""
        if self.converted:
            return self._forward_int8(x)
        if self.is_int8 and self.mode == "fake_quantize":
            return self.operation(x, self.fake_quantized_weight(), self.bias)
        if self.has_quantized_input and torch.compiler.is_exporting():
            x = torch.clamp(x, -BARRIER, BARRIER)
        return self.operation(x, self.weight, self.bias)

    def fake_quantized_weight(self) -> Tensor:
        """Returns the float weight rounded to its levels; gradients reach weight and scale."""
        scale: Tensor = self.weight_scale
        if scale.requires_grad:
            scale = scale_gradient(scale.clamp_min(MIN_SCALE), self.weight[0].numel() * self.qmax)
        scale = per_channel(scale, self.weight)
        return torch.clamp(round_ste(self.weight / scale), -self.qmax, self.qmax) * scale

    @torch.no_grad()
    def convert(self, input_scale: Tensor) -> None:
        """Replaces the float weights with integers, in place, given the input quantizer's scale."""
        # A nearly dead channel has a tiny scale, at which its bias would overflow int32.
        smallest = self.bias.abs() / (input_scale * QMAX_BIAS)
        scale = torch.maximum(self.weight_scale.clamp_min(MIN_SCALE), smallest)
        levels = torch.round(self.weight / per_channel(scale, self.weight))
        self.register_buffer("weight_int8", levels.clamp(-self.qmax, self.qmax).to(torch.int8))
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.register_buffer("bias_scale", scale * input_scale)
        self.register_buffer("bias_int32", torch.round(self.bias / self.bias_scale).int())
        del self.weight, self.bias
        self.converted = True

    def _forward_int8(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            zero = torch.zeros(len(self.weight_int8), dtype=torch.int8)
            weight = dequantize_channels(self.weight_int8, self.weight_scale, zero)
            bias = dequantize_channels(self.bias_int32, self.bias_scale)
            return self.operation(x, weight, bias)
        # Sums of integers are exact in float32 up to 2**24, in any order.
        levels = torch.round(x / (self.bias_scale[0] / self.weight_scale[0]))
        sums = self.operation(levels, self.weight_int8.float(), None)
        if self.saturate is not None:
            sums = self.saturate(sums, levels)
        shape = (1, -1, 1, 1) if self.is_convolution else (1, -1)
        sums = sums + self.bias_int32.float().view(shape)
        if self.output_scale is None:
            return sums * self.bias_scale.view(shape)
        # As ONNX Runtime does it: one product with a float32 factor, then rounded. The quantizer
        # that follows finds values that are on its levels already.
        scale = self.output_scale()
        return torch.round(sums * (self.bias_scale / scale).view(shape)) * scale


def weight_scale(weight: Tensor, qmax: int) -> Tensor:
    """Returns the scale per output channel, `[out]`: the largest magnitude becomes `qmax`."""
    return (weight.flatten(1).abs().amax(1) / qmax).clamp_min(MIN_SCALE)


def mse_weight_scale(weight: Tensor, qmax: int) -> Tensor:
    """Returns the scale per output channel with the least mean squared rounding error, `[out]`.

    Searches from half the largest magnitude up to all of it, in steps of 2%.
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
    """Returns `[out]` reshaped to broadcast over a weight's output channels."""
    return scale.view(-1, *([1] * (weight.ndim - 1)))
