"""Muon against the singular value decomposition and updates computed by hand."""

import math

import pytest
import torch

from compress.train.muon import RMS, Muon, orthogonalized


@pytest.mark.parametrize("shape", [(8, 72), (72, 8), (16, 16), (1, 40)])
def test_singular_vectors_stay_and_singular_values_approach_one(shape: tuple[int, int]) -> None:
    rank = min(shape)
    u = torch.linalg.qr(torch.randn(shape[0], rank)).Q
    v = torch.linalg.qr(torch.randn(shape[1], rank)).Q
    values = torch.logspace(0, -1.5, rank)  # the smallest is above 1 % of the norm

    result = orthogonalized(u @ torch.diag(values) @ v.T)

    core = u.T @ result @ v
    torch.testing.assert_close(u @ core @ v.T, result, atol=1e-5, rtol=0)
    torch.testing.assert_close(core, torch.diag(core.diagonal()), atol=1e-5, rtol=0)
    assert core.diagonal().min() > 0.3
    assert core.diagonal().max() < 1.25


def test_bf16_products_change_little() -> None:
    matrix = torch.randn(64, 576)
    exact, rough = orthogonalized(matrix), orthogonalized(matrix, torch.bfloat16)
    assert (exact - rough).norm() < 0.02 * exact.norm()


def test_the_update_of_a_vector_does_not_depend_on_the_gradient_s_length() -> None:
    lengths = []
    for scale in (1e-3, 1.0, 1e3):
        weight = torch.nn.Parameter(torch.zeros(25))
        weight.grad = scale * torch.arange(25.0)
        Muon([{"params": [weight]}], lr=0.1, momentum=0.9, dtype=torch.float32).step()
        cosine = torch.cosine_similarity(-weight, weight.grad, dim=0)
        torch.testing.assert_close(cosine.item(), 1.0)
        lengths.append(weight.norm().item())
    assert lengths == pytest.approx([lengths[0]] * 3, rel=1e-4)
    # The polynomial takes a singular value of 1, all that a vector has, to 0.72 in three steps.
    assert lengths[0] == pytest.approx(0.1 * RMS * math.sqrt(25) * 0.7213, rel=1e-3)


def test_without_a_gradient_only_weight_decay_moves_a_matrix() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 6))
    weight.grad = torch.zeros(4, 6)
    groups = [{"params": [weight], "weight_decay": 0.5}]
    Muon(groups, lr=0.1, momentum=0.9, dtype=torch.float32).step()
    torch.testing.assert_close(weight, torch.full((4, 6), 1 - 0.1 * 0.5))


def test_frozen_parameters_stay() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 6))
    Muon([{"params": [weight]}], lr=0.1, momentum=0.9, dtype=torch.float32).step()
    assert torch.equal(weight, torch.ones(4, 6))
