"""What quantized modules share: rounding with a gradient, and writing ONNX operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from compress.onnx_file import CONTRIB, OPSET

TINIEST_SCALE = 1e-8

Mode = Literal["float", "observe", "round"]
"""Compute in float; likewise, and note the ranges; or round to the levels."""


def round_through(x: Tensor) -> Tensor:
    """Rounds half to even, as ONNX does; the gradient passes as if nothing had happened."""
    return x + (torch.round(x) - x).detach()


def dampened(scale: Tensor, count: int) -> Tensor:
    """Returns the scale with its gradient divided by `sqrt(count)`.

    A scale gathers the gradients of all values it rounds; LSQ (Esser et al., arXiv 1902.08153,
    section 2.2) balances them against the weights' with `count` = values times levels.
    """
    factor = 1 / math.sqrt(count)
    return scale * factor + (scale * (1 - factor)).detach()


def fused(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Returns `x * y + z` rounded to float32 once, as a processor's fused operation is."""
    return (x.double() * y.double() + z.double()).float()


def emit(
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
