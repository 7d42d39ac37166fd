"""Quantised modules: one module to calibrate, to train, to simulate and to export.

While torch.onnx exports them they emit QuantizeLinear and DequantizeLinear; otherwise they compute
the same numbers in float. So the accuracy seen in PyTorch is the exported file's.
Activations are uint8 with one scale a tensor, weights int8 with one scale an output channel,
biases int32 with the product of both scales: what ONNX Runtime's integer kernels take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.quantize.ranges import LEVELS, Statistics, affine

QMAX_ACTIVATION = LEVELS - 1
QMAX_WEIGHT = 127
QMAX_WEIGHT_REDUCED = 63
"""7-bit weights: two products of them with uint8 fit into the int16 of chips without VNNI."""
QMAX_BIAS = 2**30
"""A bit below int32's largest, to leave room for the products added to it."""
TINIEST_SCALE = 1e-8
BARRIER = 1e30
"""ONNX Runtime would quantise the weights (per tensor!) of a float layer between a DequantizeLinear
and a QuantizeLinear. A clip that clips nothing keeps it from that."""
OPSET = 18
CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators; their version is 1."""
QUICK_GELU, GELU = f"{CONTRIB}::QuickGelu", f"{CONTRIB}::Gelu"

Mode = Literal["float", "observe", "round"]
"""Compute in float; likewise, and note the ranges; or round to the levels."""


def round_through(x: Tensor) -> Tensor:
    """Rounds half to even, as ONNX does; the gradient passes as if nothing had happened."""
    return x + (torch.round(x) - x).detach()


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to 256 levels, after an activation function that clips and scales.

    The levels cannot leave `lowest`..`highest`, so Relu, Relu6 and the clipping in HardSigmoid cost
    nothing: no operator for them is exported.

    Args:
        lowest: smaller inputs become this.
        highest: larger inputs become this.
        gain: the clipped input is multiplied by it.
    """

    zero_point: Tensor

    def __init__(
        self, *, lowest: float = -math.inf, highest: float = math.inf, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.lowest, self.highest, self.gain = lowest, highest, gain
        self.mode: Mode = "round"
        self.statistics: Statistics | None = None
        """To be set before observing."""
        self.scale = nn.Parameter(torch.tensor(1.0), requires_grad=False)
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` clipped, scaled and rounded to the levels, float of the same shape."""
        if torch.compiler.is_exporting():
            into = (x, self.step(), self.zero_point)
            levels = _emit("QuantizeLinear", into, torch.uint8, x.shape)
            out = (levels, self.scale, self.zero_point)
            return _emit("DequantizeLinear", out, torch.float32, x.shape)
        if self.mode == "round":
            scale = self._learned_scale(x) if self.scale.requires_grad else self.scale
            zero_point = self.zero_point.float()
            levels = round_through(x / (scale / self.gain)) + zero_point
            return (torch.clamp(levels, 0, QMAX_ACTIVATION) - zero_point) * scale
        if self.lowest > -math.inf or self.highest < math.inf:
            x = torch.clamp(x, self.lowest, self.highest)
        x = x * self.gain if self.gain != 1 else x
        if self.mode == "observe":
            assert self.statistics is not None
            self.statistics.update(x.detach())
        return x

    def affine_in(self) -> Affine:
        """Returns distance between levels and zero point as the operator before sees them."""
        return self.step(), self.zero_point.float()

    def affine_out(self) -> Affine:
        """Returns distance between levels and zero point as its readers see them."""
        return self.scale, self.zero_point.float()

    def step(self) -> Tensor:
        """Returns the distance between two levels before the gain."""
        return self.scale / self.gain

    def set_range(self, low: float, high: float) -> None:
        """Sets scale and zero point so that the levels span `low`..`high` (after the gain)."""
        low, high = max(low, self.lowest * self.gain), min(high, self.highest * self.gain)
        scale, zero_point = affine(low, high)
        self.scale.data.fill_(scale)
        self.zero_point.fill_(zero_point)

    def _learned_scale(self, x: Tensor) -> Tensor:
        # A larger scale would let the levels pass the activation's bound.
        largest = self.highest * self.gain / QMAX_ACTIVATION
        positive = torch.clamp(self.scale, TINIEST_SCALE, largest)
        return dampened(positive, x[0].numel() * QMAX_ACTIVATION)


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


Affine = tuple[Tensor, Tensor]
"""Scale and zero point."""


class Add(nn.Module):
    """Sum of two quantised tensors of broadcastable shapes.

    Once `link`ed it rounds exactly as ONNX Runtime's kernel, which has its own way with ties and
    float32: a deep network would amplify the difference.

    Args:
        sources: names of the modules that quantise the inputs.
    """

    def __init__(self, sources: tuple[str, str]) -> None:
        super().__init__()
        self.sources = sources
        self.affines: tuple[Callable[[], Affine], ...] = ()

    def link(self, *affines: Callable[[], Affine]) -> None:
        """Tells how left input, right input and output are quantised, from then on for good."""
        self.affines = affines

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Returns `left + right`, on the output's levels if linked."""
        if torch.compiler.is_exporting() or not self.affines:
            return left + right
        (s_left, z_left), (s_right, z_right), (scale, zero) = (get() for get in self.affines)
        by_left, by_right = s_left / scale, s_right / scale
        fixed = zero - _fused(by_left, z_left, by_right * z_right)
        right_part = _fused(torch.round(right / s_right) + z_right, by_right, fixed)
        levels = torch.round(_fused(torch.round(left / s_left) + z_left, by_left, right_part))
        return (levels - zero) * scale


class Multiply(Add):
    """Product of two quantised tensors of broadcastable shapes; see `Add`."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Returns `left * right`, on the output's levels if linked."""
        if torch.compiler.is_exporting() or not self.affines:
            return left * right
        (s_left, _), (s_right, _), (scale, zero) = (get() for get in self.affines)
        product = torch.round(left / s_left) * torch.round(right / s_right)
        levels = torch.round(_fused(product, s_left * s_right / scale, zero))
        return (levels - zero) * scale


class AddConstant(nn.Module):
    """Adds a number to a quantised tensor; exported so that the addition runs on integers."""

    level: Tensor
    constant: Tensor
    zero_point: Tensor

    def __init__(self, constant: float) -> None:
        super().__init__()
        self.register_buffer("constant", torch.tensor(constant), persistent=False)
        self.register_buffer("level", torch.tensor(1, dtype=torch.uint8), persistent=False)
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.uint8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x + constant`."""
        if torch.compiler.is_exporting():
            inputs = (self.level, self.constant, self.zero_point)
            return x + _emit("DequantizeLinear", inputs, torch.float32, ())
        return x + self.constant


class FloatActivation(nn.Module):
    """SiLU or GELU, exported as one operator of ONNX Runtime's own.

    Between a DequantizeLinear and a QuantizeLinear it is faster than the integer kernels for a
    sigmoid and a product. The exported file defines the operator as a function of standard ones,
    for other runtimes.
    """

    def __init__(self, kind: Literal["silu", "gelu"]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Returns the function's values, of the same shape."""
        if not torch.compiler.is_exporting():
            return F.silu(x) if self.kind == "silu" else F.gelu(x)
        if self.kind == "gelu":
            return _emit(GELU, (x,), torch.float32, x.shape)
        return _emit(QUICK_GELU, (x,), torch.float32, x.shape, alpha=1.0)


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
        """Name of the module that quantises its input; None keeps the layer in float."""
        bias = torch.zeros(len(weight)) if bias is None else bias.detach()
        self.reads_levels = False
        """Whether a float layer's input is quantised all the same."""
        self.frozen = False
        """Whether the weights are integers."""
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.clone())

    @classmethod
    def conv(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Sequence[Any] = ((1, 1), (0, 0), (1, 1), 1),
    ) -> Layer:
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

    def place(self, source: str) -> None:
        """Makes it an int8 layer whose input the named module quantises."""
        self.source = source
        scale = weight_scale(self.weight.detach(), self.qmax)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps the layer's (quantised) input to its output, float32."""
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
            input_scale: of the quantiser named `source`.
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
        # As ONNX Runtime does it: one product with a float32 factor, then rounded. The quantiser
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


def dampened(scale: Tensor, count: int) -> Tensor:
    """Returns the scale with its gradient divided by `sqrt(count)`.

    A scale gathers the gradients of all values it rounds; LSQ (Esser et al., arXiv 1902.08153,
    section 2.2) balances them against the weights' with `count` = values times levels.
    """
    factor = 1 / math.sqrt(count)
    return scale * factor + (scale * (1 - factor)).detach()


def _dequantize(levels: Tensor, *affine: Tensor) -> Tensor:
    """Emits a DequantizeLinear with a scale (and a zero point) for each output channel."""
    inputs = (levels, *affine)
    return _emit("DequantizeLinear", inputs, torch.float32, levels.shape, axis=0)


def _fused(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Returns `x * y + z` rounded to float32 once, as a processor's fused operation is."""
    return (x.double() * y.double() + z.double()).float()


def _emit(
    operator: str,
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    shape: Sequence[int | torch.SymInt],
    **attributes: float,
) -> Tensor:
    """Returns a tensor that the exporter writes as the named ONNX operator."""
    version = 1 if operator.startswith(CONTRIB) else OPSET
    return torch.onnx.ops.symbolic(
        operator, inputs, dict(attributes), dtype=dtype, shape=shape, version=version
    )
