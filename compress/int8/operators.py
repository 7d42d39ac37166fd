"""Operators without weights between quantized tensors."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.int8.fake_quantize import fused_multiply_add
from compress.int8.onnx_operators import dequantize_linear, emit
from compress.int8.quantizer import QParams
from compress.onnx_file import CONTRIB

QUICK_GELU, GELU = f"{CONTRIB}::QuickGelu", f"{CONTRIB}::Gelu"


class BinaryOperator(nn.Module):
    """Sum or product of two quantized tensors of broadcastable shapes.

    After `link` it rounds exactly like ONNX Runtime's kernel, including its
    treatment of ties and float32: a deep network would amplify any difference.

    Args:
        kind: operator, a sum or a product.
        sources: names of the modules that quantize the inputs.
    """

    def __init__(self, kind: Literal["add", "multiply"], sources: tuple[str, str]) -> None:
        super().__init__()
        self.kind, self.sources = kind, sources
        self.qparams: tuple[Callable[[], QParams], ...] = ()

    def link(self, *qparams: Callable[[], QParams]) -> None:
        """Sets how the left input, the right input, and the output are quantized."""
        self.qparams = qparams

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Returns the sum or product, on the output's levels if linked."""
        if torch.compiler.is_exporting() or not self.qparams:
            return left + right if self.kind == "add" else left * right
        qparams = [get() for get in self.qparams]
        if self.kind == "add":
            return _add_on_levels(left, right, *qparams)
        return _multiply_on_levels(left, right, *qparams)


def _add_on_levels(
    left: Tensor, right: Tensor, of_left: QParams, of_right: QParams, of_sum: QParams
) -> Tensor:
    (s_left, z_left), (s_right, z_right), (scale, zero) = of_left, of_right, of_sum
    by_left, by_right = s_left / scale, s_right / scale
    fixed = zero - fused_multiply_add(by_left, z_left, by_right * z_right)
    right_part = fused_multiply_add(torch.round(right / s_right) + z_right, by_right, fixed)
    left_levels = torch.round(left / s_left) + z_left
    levels = torch.round(fused_multiply_add(left_levels, by_left, right_part))
    return (levels - zero) * scale


def _multiply_on_levels(
    left: Tensor, right: Tensor, of_left: QParams, of_right: QParams, of_product: QParams
) -> Tensor:
    (s_left, _), (s_right, _), (scale, zero) = of_left, of_right, of_product
    product = torch.round(left / s_left) * torch.round(right / s_right)
    levels = torch.round(fused_multiply_add(product, s_left * s_right / scale, zero))
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
            return x + dequantize_linear(self.level, self.constant, self.zero_point)
        return x + self.constant


class FloatActivation(nn.Module):
    """SiLU or GELU, exported as one of ONNX Runtime's own operators.

    Between a DequantizeLinear and a QuantizeLinear that is faster than integer kernels for a
    sigmoid and a product. For other runtimes, the exported file defines the operator as a function
    of standard ones.
    """

    def __init__(self, kind: Literal["silu", "gelu"]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Returns the function's values, in the shape of `x`."""
        if not torch.compiler.is_exporting():
            return F.silu(x) if self.kind == "silu" else F.gelu(x)
        if self.kind == "gelu":
            return emit(GELU, (x,), torch.float32, x.shape)
        return emit(QUICK_GELU, (x,), torch.float32, x.shape, alpha=1.0)
