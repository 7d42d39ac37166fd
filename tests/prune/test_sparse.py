import torch

from compress.architectures.build import build, example_input
from compress.data.dataset import Data
from compress.data.splits import View
from compress.prune.groups import find_groups
from compress.prune.sparse import growing_penalty
from compress.train.epoch import TrainBatch
from tests.conftest import student_spec


def step_of(data: Data, step: int) -> TrainBatch:
    raw = next(iter(data.train.batches(4)))
    return TrainBatch(
        images=raw.images.float(),
        targets=torch.nn.functional.one_hot(raw.labels, 10).float(),
        index=raw.index,
        view=View(seed=0, number=0),
        step=step,
        step_of_epoch=step,
    )


def test_the_penalty_presses_on_the_least_important_channels(digits: Data) -> None:
    torch.manual_seed(0)
    model = build(student_spec(digits, depths=[1]))
    network = model.network.eval()
    groups = find_groups(network, example_input(model)).groups
    penalty = growing_penalty(network, groups, steps=2)
    conv = network.get_submodule("blocks.0.conv1")
    weight = conv.get_parameter("weight")
    first, second, third = (
        torch.autograd.grad(penalty(step_of(digits, step)), [weight])[0] for step in range(3)
    )
    assert torch.allclose(second, 2 * first)  # it grows
    assert torch.allclose(third, second)  # until its end
    strength = (first / weight.detach()).flatten(1).mean(1)
    norms = weight.detach().flatten(1).norm(dim=1)
    assert strength.max() / strength.min() > 2
    assert torch.corrcoef(torch.stack([strength, norms]))[0, 1] < 0
