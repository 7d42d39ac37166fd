"""Muon optimizer: momentum orthogonalized by Newton-Schulz iteration."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Jordan's coefficients: small singular values grow fastest; large ones end near 1, not at 1."""
STEPS = 3
"""Newton-Schulz iterations; more are not worth their cost."""
RMS = 0.2
"""RMS of an update at learning rate 1, about AdamW's (Liu et al., arXiv 2502.16982, equation 4)."""


class Muon(torch.optim.Optimizer):
    """Orthogonalized Nesterov momentum with decoupled weight decay.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". A convolution
    kernel is a matrix with one row per output channel, a vector a matrix with one row.
    `torch.optim.Muon` supports 2-D parameters only.

    Args:
        groups: parameter groups, each with its `weight_decay`.
        lr: learning rate.
        momentum: Nesterov momentum.
        dtype: dtype of the large matrix products; bfloat16 is faster where native.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float, dtype: torch.dtype
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates all parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["average"] = torch.zeros_like(weight)
                average = state["average"].lerp_(weight.grad, 1 - momentum)
                ahead = weight.grad.lerp(average, momentum)
                matrix = ahead.flatten(1) if ahead.ndim > 1 else ahead.view(1, -1)
                size = RMS * math.sqrt(max(matrix.shape))
                update = orthogonalized(matrix, self.dtype).view(weight.shape)
                weight.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr * size)


def orthogonalized(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns approximately `U V^T` of `U S V^T`: all singular values are moved close to 1.

    Newton-Schulz: `X <- (a I + b X X^T + c (X X^T)^2) X`. The factors left of `X` commute, so they
    are multiplied on the small side of the matrix, and `X` itself enters only two products.
    Singular values above 1 % of the Frobenius norm end between 0.3 and 1.25.

    Args:
        matrix: float32 `[rows, columns]`.
        dtype: dtype of the two products that involve the large side.

    Returns:
        float32 `[rows, columns]`.
    """
    wide = len(matrix) <= matrix.shape[1]
    x = (matrix if wide else matrix.T).to(dtype)
    gram = (x @ x.T).float()
    norm = gram.trace().sqrt().clamp(min=1e-12)
    gram = gram / norm**2
    a, b, c = COEFFICIENTS
    product = None
    for _ in range(STEPS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        gram = factor @ gram @ factor
    assert product is not None
    result = ((product / norm).to(dtype) @ x).float()
    return result if wide else result.T
