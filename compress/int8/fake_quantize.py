"""Building blocks of fake quantization: rounding with a gradient, and exact float32 arithmetic."""

import math
from typing import Literal

import torch
from torch import Tensor

MIN_SCALE = 1e-8

Mode = Literal["float", "observe", "fake_quantize"]
"""Compute in float; compute in float and record ranges; or round to quantization levels."""


def round_ste(x: Tensor) -> Tensor:
    """Rounds half to even, as ONNX does, with a straight-through estimator: the gradient is 1."""
    return x + (torch.round(x) - x).detach()


def scale_gradient(scale: Tensor, count: int) -> Tensor:
    """Returns the scale with its gradient divided by `sqrt(count)`.

    A scale accumulates the gradients of all values it rounds; LSQ (Esser et al., arXiv 1902.08153,
    section 2.2) balances them against those of the weights, with `count` = values times levels.
    """
    factor = 1 / math.sqrt(count)
    return scale * factor + (scale * (1 - factor)).detach()


def fused_multiply_add(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Returns `x * y + z`, rounded to float32 once, as a CPU's FMA instruction does."""
    return (x.double() * y.double() + z.double()).float()
