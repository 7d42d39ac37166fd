"""Quantized modules: one module to calibrate, to train, to simulate and to export.

While torch.onnx exports them they emit QuantizeLinear and DequantizeLinear; otherwise they compute
the same numbers in float. So the accuracy seen in PyTorch is the exported file's.
Activations are uint8 with one scale a tensor, weights int8 with one scale an output channel,
biases int32 with the product of both scales: what ONNX Runtime's integer kernels take.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.int8.common import TINIEST_SCALE, Mode, dampened, emit, fused, round_through
from compress.int8.ranges import LEVELS, Statistics, affine
from compress.onnx_file import CONTRIB

QMAX_ACTIVATION = LEVELS - 1
QUICK_GELU, GELU = f"{CONTRIB}::QuickGelu", f"{CONTRIB}::Gelu"


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to 256 levels, after an activation function that clips and scales.

    The levels cannot leave `lowest`..`highest`, so Relu, Relu6 and the clipping in HardSigmoid cost
    nothing: no operator for them is exported.

    Args:
        lowest: smaller inputs become this; not above 0, for 0 is always a level.
        highest: larger inputs become this; not below 0.
        gain: the clipped input is multiplied by it.
    """

    zero_point: Tensor

    def __init__(
        self, *, lowest: float = -math.inf, highest: float = math.inf, gain: float = 1.0
    ) -> None:
        super().__init__()
        assert lowest <= 0 <= highest
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
            levels = emit("QuantizeLinear", into, torch.uint8, x.shape)
            out = (levels, self.scale, self.zero_point)
            return emit("DequantizeLinear", out, torch.float32, x.shape)
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

    def freeze(self) -> None:
        """Settles a learned scale for good, in place, as training saw it."""
        self.scale.requires_grad = False
        self.scale.copy_(self._bounded_scale())

    def _learned_scale(self, x: Tensor) -> Tensor:
        return dampened(self._bounded_scale(), x[0].numel() * QMAX_ACTIVATION)

    def _bounded_scale(self) -> Tensor:
        """A larger scale would let the levels pass the activation's bounds.

        Zero is a level. Between two bounds the outermost levels may therefore lie half a step
        beyond them: what `set_range` chose is always allowed.
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
        return torch.clamp(self.scale, TINIEST_SCALE, max(largest, TINIEST_SCALE))


class PixelInput(nn.Module):
    """The image's bytes as a quantized tensor: about normalized, with a mean gray as zero point.

    Were the scale 1, the first layer's weights would be so small that training at the others'
    learning rate destroys them.

    Args:
        scale: of a step in gray.
        zero_point: the gray that becomes 0.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.uint8))

    def forward(self, images: Tensor) -> Tensor:
        """Maps pixels 0..255 `[N, C, H, W]` to float32 `(pixels - zero_point) * scale`."""
        if torch.compiler.is_exporting():
            inputs = (images, self.scale, self.zero_point)
            return emit("DequantizeLinear", inputs, torch.float32, images.shape)
        return (images.float() - self.zero_point.float()) * self.scale


Affine = tuple[Tensor, Tensor]
"""Scale and zero point."""


class Add(nn.Module):
    """Sum of two quantized tensors of broadcastable shapes.

    Once `link`ed it rounds exactly as ONNX Runtime's kernel, which has its own way with ties and
    float32: a deep network would amplify the difference.

    Args:
        sources: names of the modules that quantize the inputs.
    """

    def __init__(self, sources: tuple[str, str]) -> None:
        super().__init__()
        self.sources = sources
        self.affines: tuple[Callable[[], Affine], ...] = ()

    def link(self, *affines: Callable[[], Affine]) -> None:
        """Tells how left input, right input and output are quantized, from then on for good."""
        self.affines = affines

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Returns `left + right`, on the output's levels if linked."""
        if torch.compiler.is_exporting() or not self.affines:
            return left + right
        (s_left, z_left), (s_right, z_right), (scale, zero) = (get() for get in self.affines)
        by_left, by_right = s_left / scale, s_right / scale
        fixed = zero - fused(by_left, z_left, by_right * z_right)
        right_part = fused(torch.round(right / s_right) + z_right, by_right, fixed)
        levels = torch.round(fused(torch.round(left / s_left) + z_left, by_left, right_part))
        return (levels - zero) * scale


class Multiply(Add):
    """Product of two quantized tensors of broadcastable shapes; see `Add`."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Returns `left * right`, on the output's levels if linked."""
        if torch.compiler.is_exporting() or not self.affines:
            return left * right
        (s_left, _), (s_right, _), (scale, zero) = (get() for get in self.affines)
        product = torch.round(left / s_left) * torch.round(right / s_right)
        levels = torch.round(fused(product, s_left * s_right / scale, zero))
        return (levels - zero) * scale


class AddConstant(nn.Module):
    """Adds a number to a quantized tensor; exported so that the addition runs on integers."""

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
            return x + emit("DequantizeLinear", inputs, torch.float32, ())
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
            return emit(GELU, (x,), torch.float32, x.shape)
        return emit(QUICK_GELU, (x,), torch.float32, x.shape, alpha=1.0)
