import numpy as np
import pytest
import torch

from compress.int8.fake_quantize import fused_multiply_add, round_ste, scale_gradient


def test_the_straight_through_estimator_rounds_half_to_even_with_gradient_one() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.2], requires_grad=True)
    rounded = round_ste(x)
    rounded.sum().backward()
    assert rounded.tolist() == [0.0, 2.0, 2.0, 0.0, -1.0]
    assert x.grad is not None
    assert x.grad.tolist() == [1.0] * 5


def test_only_the_gradient_of_a_scale_is_divided() -> None:
    scale = torch.tensor(0.25, requires_grad=True)
    scaled = scale_gradient(scale, 16)
    scaled.backward()
    assert scaled.item() == pytest.approx(0.25)
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(1 / 4)


def test_a_fused_multiply_add_rounds_once() -> None:
    """(1 + e)^2 - 1 - 2e is e^2, which float32 loses when it rounds the product first."""
    e = np.float32(2.0**-23)
    x, z = torch.tensor(1 + e), torch.tensor(-1 - 2 * e)
    assert fused_multiply_add(x, x, z).item() == 2.0**-46
    assert (x * x + z).item() == 0.0
