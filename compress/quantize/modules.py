"""Quantised modules: one module to calibrate, to train, to simulate and to export.

While torch.onnx exports them they emit QuantizeLinear and DequantizeLinear; otherwise they compute
the same numbers in float. So the accuracy seen in PyTorch is the exported file's.
Activations are uint8 with one scale a tensor, weights int8 (-127..127) with one scale an output
channel, biases int32 with the product of both scales: what ONNX Runtime's integer kernels take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QMAX_ACTIVATION = 255
QMAX_WEIGHT = 127
QMAX_BIAS = 2**30
"""A bit below int32's largest, to leave room for the products added to it."""
TINIEST_RANGE = 1e-6
"""A range of zero has no scale."""
OPSET = 18


def round_through(x: Tensor) -> Tensor:
    """Rounds half to even, as ONNX does; the gradient passes as if nothing had happened."""
    return x + (torch.round(x) - x).detach()


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to 256 levels; while `observing` it only notes the range."""

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.observing = False
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.uint8))
        self.register_buffer("low", torch.tensor(0.0), persistent=False)
        self.register_buffer("high", torch.tensor(0.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` rounded to the levels, float of the same shape."""
        if torch.compiler.is_exporting():
            levels = _emit("QuantizeLinear", (x, self.scale, self.zero_point), torch.uint8, x.shape)
            return _emit(
                "DequantizeLinear", (levels, self.scale, self.zero_point), torch.float32, x.shape
            )
        if self.observing:
            self.low = torch.minimum(self.low, x.detach().amin())
            self.high = torch.maximum(self.high, x.detach().amax())
            return x
        zero_point = self.zero_point.float()
        levels = torch.clamp(round_through(x / self.scale) + zero_point, 0, QMAX_ACTIVATION)
        return (levels - zero_point) * self.scale

    def set_range(self, low: float, high: float) -> None:
        """Sets scale and zero point so that the levels span `low`..`high` and hit zero exactly.

        A range without negative numbers gets zero point 0, and ONNX Runtime drops the Relu
        before it.
        """
        low, high = min(low, 0.0), max(high, 0.0, low + TINIEST_RANGE)
        scale = (high - low) / QMAX_ACTIVATION
        self.scale.fill_(scale)
        self.zero_point.fill_(min(QMAX_ACTIVATION, round(-low / scale)))


class PixelInput(nn.Module):
    """The image's bytes as a quantised tensor: scale 1, and the zero point a mean grey."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, zero_point: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.uint8))

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps pixels 0..255 `[N, C, H, W]` to float32 `pixels - zero_point`."""
        if torch.compiler.is_exporting():
            inputs = (pixels, self.scale, self.zero_point)
            return _emit("DequantizeLinear", inputs, torch.float32, pixels.shape)
        return pixels.float() - self.zero_point.float()


class QuantizedLayer(nn.Module):
    """A convolution or a linear layer with int8 weights.

    It is born with float weights, which calibration leaves alone and training updates while each
    forward pass rounds them. `freeze` turns them into integers for good.

    Args:
        layer: gives weights and operation.
        source: name of the module that quantises its input; its scale sets the bias's.
    """

    weight_int8: Tensor
    weight_scale: Tensor
    bias_int32: Tensor
    bias_scale: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, *, source: str) -> None:
        super().__init__()
        self.observing = False
        self.source = source
        self.operation = _operation(layer)
        bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
        self.weight: nn.Parameter | None = nn.Parameter(layer.weight.detach().clone())
        self.bias: nn.Parameter | None = nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Maps the layer's (quantised) input to its output, float32."""
        if self.weight is None:
            return self.operation(x, *self._frozen_parameters())
        if self.observing:
            return self.operation(x, self.weight, self.bias)
        scale = _per_channel(weight_scale(self.weight.detach()), self.weight)
        levels = torch.clamp(round_through(self.weight / scale), -QMAX_WEIGHT, QMAX_WEIGHT)
        return self.operation(x, levels * scale, self.bias)

    @torch.no_grad()
    def freeze(self, input_scale: Tensor) -> None:
        """Replaces the float weights by integers, in place."""
        assert self.weight is not None
        assert self.bias is not None
        # An almost dead channel has a tiny scale, in which its bias would overflow int32.
        smallest = self.bias.abs() / (input_scale * QMAX_BIAS)
        scale = torch.maximum(weight_scale(self.weight), smallest)
        levels = torch.round(self.weight / _per_channel(scale, self.weight))
        self.register_buffer("weight_int8", levels.clamp(-QMAX_WEIGHT, QMAX_WEIGHT).to(torch.int8))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias_scale", scale * input_scale)
        self.register_buffer("bias_int32", torch.round(self.bias / self.bias_scale).int())
        self.weight = None
        self.bias = None

    def _frozen_parameters(self) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_exporting():
            zero = torch.zeros(len(self.weight_int8), dtype=torch.int8)
            weight = _emit(
                "DequantizeLinear",
                (self.weight_int8, self.weight_scale, zero),
                torch.float32,
                self.weight_int8.shape,
                axis=0,
            )
            bias = _emit(
                "DequantizeLinear",
                (self.bias_int32, self.bias_scale),
                torch.float32,
                self.bias_int32.shape,
                axis=0,
            )
            return weight, bias
        weight = self.weight_int8.float() * _per_channel(self.weight_scale, self.weight_int8)
        return weight, self.bias_int32.float() * self.bias_scale


class GlobalAveragePool(nn.Module):
    """Mean over height and width; exported as the operator that ONNX Runtime has in int8."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, C, H, W]` to `[N, C, 1, 1]`."""
        if torch.compiler.is_exporting():
            shape = (x.shape[0], x.shape[1], 1, 1)
            return _emit("GlobalAveragePool", (x,), torch.float32, shape)
        return x.mean((2, 3), keepdim=True)


def weight_scale(weight: Tensor) -> Tensor:
    """Returns the scale of each output channel, `[out]`: its largest magnitude becomes 127."""
    return weight.flatten(1).abs().amax(1).clamp_min(TINIEST_RANGE) / QMAX_WEIGHT


def _per_channel(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *([1] * (weight.ndim - 1)))


def _operation(layer: nn.Conv2d | nn.Linear) -> Callable[..., Tensor]:
    if isinstance(layer, nn.Linear):
        return F.linear
    return partial(
        F.conv2d,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )


def _emit(
    operator: str,
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    shape: Sequence[int | torch.SymInt],
    **attributes: int,
) -> Tensor:
    """Returns a tensor that the exporter writes as the named ONNX operator."""
    return torch.onnx.ops.symbolic(
        operator, inputs, dict(attributes), dtype=dtype, shape=shape, version=OPSET
    )
