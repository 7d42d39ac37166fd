import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.prune.groups import Group, find_groups
from compress.prune.importance import score_channels

WEIGHTS = torch.tensor([1.0, -3.0, 2.0])
READS = torch.tensor([[1.0, 0.5, -2.0], [0.0, 0.5, 1.0]])


def two_layers(*, norm: bool = False) -> nn.Sequential:
    """Three channels: made from one by 1x1 weights, read by a linear layer of two outputs."""
    first, last = nn.Conv2d(1, 3, 1, bias=False), nn.Linear(3, 2)
    with torch.no_grad():
        first.weight.copy_(WEIGHTS.view(3, 1, 1, 1))
        last.weight.copy_(READS)
    middle = [nn.BatchNorm2d(3)] if norm else []
    return nn.Sequential(first, *middle, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


def group_of(network: nn.Sequential) -> Group:
    (group,) = find_groups(network.eval(), torch.randn(1, 1, 2, 2)).groups
    return group


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    return [(torch.randn(8, 1, 2, 2) + 1, torch.randint(0, 2, (8,))) for _ in range(3)]


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("l1", [1 + 1, 3 + 1, 2 + 3]),
        ("l2", [1 + 1, 9 + 0.5, 4 + 5]),
        ("fpgm", [4 + 1, 4 + 5, 1 + 5]),
    ],
)
def test_magnitudes_by_hand(criterion: str, expected: list[float]) -> None:
    network = two_layers()
    group = group_of(network)
    scores = score_channels(network, [group], criterion, batches)[group.name]  # type: ignore[arg-type]
    wanted = torch.tensor(expected, dtype=torch.float32)
    assert torch.allclose(scores, wanted / wanted.mean())


def test_lamp_by_hand() -> None:
    network = two_layers()
    group = group_of(network)
    scores = score_channels(network, [group], "lamp", batches)[group.name]
    assert torch.allclose(scores, torch.tensor([2 / 20.5, 1.0, 9 / 18.5]))


def test_batchnorm_scales_by_hand() -> None:
    network = two_layers(norm=True)
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -1.5, 1.0]))
    group = group_of(network)
    scores = score_channels(network, [group], "batchnorm", batches)[group.name]
    assert torch.allclose(scores, torch.tensor([0.5, 1.5, 1.0]))


@pytest.mark.parametrize("norm", [False, True])
def test_taylor_is_the_loss_s_change(norm: bool) -> None:
    """Against what the loss does when a channel is scaled down a little."""
    network = two_layers(norm=norm)
    group, tiny = group_of(network), 1e-3
    scores = score_channels(network, [group], "taylor", batches)[group.name]
    last = network[-1]
    assert isinstance(last, nn.Linear)
    expected = torch.zeros(3)
    for channel in range(3):
        for inputs, labels in batches():
            with torch.no_grad():
                before = F.cross_entropy(network.double()(inputs.double()), labels)
                last.weight[:, channel] *= 1 - tiny
                after = F.cross_entropy(network(inputs.double()), labels)
                last.weight[:, channel] /= 1 - tiny
            expected[channel] += float((before - after) / tiny) ** 2 / 3
    network.float()
    assert torch.allclose(scores, expected, rtol=0.02)


def test_hessian_by_hand() -> None:
    network = two_layers()
    group = group_of(network)
    scores = score_channels(network, [group], "hessian", batches)[group.name]
    last = network[-1]
    assert isinstance(last, nn.Linear)
    expected = torch.zeros(3)
    for inputs, labels in batches():
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(inputs), labels), [last.weight])
        expected += (READS * gradient).square().sum(0) / 2 / 3
    assert torch.allclose(scores, expected)


def test_activation_is_what_the_reader_is_given() -> None:
    network = two_layers()
    group = group_of(network)
    scores = score_channels(network, [group], "activation", batches)[group.name]
    means = torch.stack(
        [F.relu(x * WEIGHTS.view(1, 3, 1, 1)).mean((0, 2, 3)) for x, _ in batches()]
    ).sum(0)
    assert torch.allclose(scores, means / means.mean(), atol=1e-6)


@pytest.mark.parametrize("seed", [1, 2])
def test_random_follows_its_seed(seed: int) -> None:
    network = two_layers()
    group = group_of(network)
    scores = score_channels(network, [group], "random", batches, seed=seed)[group.name]
    drawn = torch.rand(3, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(scores, drawn / drawn.mean())
