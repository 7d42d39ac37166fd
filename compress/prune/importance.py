"""What a channel is worth: one score for each channel of each group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.prune.groups import Group, Slice

Criterion = Literal[
    "l1", "l2", "batchnorm", "lamp", "fpgm", "taylor", "hessian", "activation", "random"
]
Scores = Mapping[str, Tensor]
"""By group, float `[channels]`, never negative."""
TINIEST = 1e-12


def score_channels(
    network: nn.Module,
    groups: Iterable[Group],
    criterion: Criterion,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    *,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Scores all channels, so that scores of different groups compare.

    `taylor` and `hessian` estimate by how much the loss grows, which compares as it is. All others
    are divided by their group's mean: a channel counts for as much as it is above its group's
    average.

    Args:
        network: takes normalized input; in eval mode, left as it was.
        groups: of its channels.
        criterion: how to score.
        batches: each call gives some training batches, normalized input and int64 labels; used by
            `taylor`, `hessian` and `activation`.
        seed: of `random`.
    """
    groups = list(groups)
    tensors = {name: tensor.detach().cpu() for name, tensor in network.named_parameters()}
    if criterion == "taylor":
        return _from_gradients(network, groups, batches(), _taylor)
    if criterion == "hessian":
        return _from_gradients(network, groups, batches(), _hessian)
    if criterion == "activation":
        raw = _activation(network, groups, batches())
    elif criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        raw = {group.name: torch.rand(group.channels, generator=generator) for group in groups}
    elif criterion == "lamp":
        return {group.name: _lamp(_norm(group, tensors, 2)) for group in groups}
    elif criterion == "fpgm":
        raw = {group.name: _fpgm(group, tensors) for group in groups}
    elif criterion == "batchnorm":
        raw = {group.name: _batchnorm(group, tensors) for group in groups}
    else:
        power = 1 if criterion == "l1" else 2
        raw = {group.name: _norm(group, tensors, power) for group in groups}
    return {name: scores / scores.mean().clamp_min(TINIEST) for name, scores in raw.items()}


def by_channel(tensor: Tensor, one: Slice) -> Tensor:
    """Returns the entries of a tensor that belong to each channel, `[channels, entries]`."""
    rows = tensor.movedim(one.dim, 0).flatten(1) if tensor.ndim > 1 else tensor[:, None]
    return rows[one.index].flatten(1)


def _norm(group: Group, tensors: Mapping[str, Tensor], power: int) -> Tensor:
    """Sum of `|w|^power` over all weights that a channel takes part in (DepGraph, equation 5)."""
    total = torch.zeros(group.channels)
    for one in (*group.writers, *group.readers):
        if one.tensor in tensors and tensors[one.tensor].ndim > 1:
            total += by_channel(tensors[one.tensor], one).abs().pow(power).sum(1)
    return total


def _batchnorm(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Sum of the norms' scales (Network Slimming, arXiv 1708.06519); L2 where there is no norm."""
    total = torch.zeros(group.channels)
    for one in group.writers:
        if (
            one.tensor in tensors
            and one.tensor.endswith("weight")
            and tensors[one.tensor].ndim == 1
        ):
            total += tensors[one.tensor][one.index].abs().sum(1)
    return total if bool(total.any()) else _norm(group, tensors, 2)


def _lamp(scores: Tensor) -> Tensor:
    """Score over the sum of all scores not smaller (LAMP, arXiv 2010.07611, equation 4)."""
    ordered, order = scores.sort()
    rest = ordered.flip(0).cumsum(0).flip(0).clamp_min(TINIEST)
    return torch.empty_like(scores).scatter_(0, order, ordered / rest)


def _fpgm(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Sum of distances to the other filters of a layer (FPGM, arXiv 1811.00250, equation 6)."""
    total = torch.zeros(group.channels)
    for one in group.writers:
        if one.tensor in tensors and tensors[one.tensor].ndim > 1:
            filters = by_channel(tensors[one.tensor], one)
            total += torch.cdist(filters, filters).sum(1)
    return total


def _taylor(products: Tensor) -> Tensor:
    """Square of the loss's first-order change when a channel becomes zero.

    Molchanov et al. (arXiv 1906.10771, equation 8), with the sum inside the square over the
    columns of all weights that read the channel: that sum is the channel's values times their
    gradients, whatever made them.
    """
    return products.sum(1).square()


def _hessian(products: Tensor) -> Tensor:
    """Half of `w^2 h` summed over the weights that read a channel (OBD, LeCun et al. 1990).

    The Hessian's diagonal is taken as the mean square of the batches' gradients (Fisher).
    """
    return products.square().sum(1) / 2


def _from_gradients(
    network: nn.Module,
    groups: list[Group],
    batches: Iterable[tuple[Tensor, Tensor]],
    score: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Returns the batches' mean of a score of weights times gradients, `[channels, entries]`."""
    totals = {group.name: torch.zeros(group.channels) for group in groups}
    tensors = {name: tensor.detach() for name, tensor in network.named_parameters()}
    count = 0
    for gradients in _gradients(network, batches):
        count += 1
        for group in groups:
            parts = [
                by_channel(tensors[one.tensor] * gradients[one.tensor], one)
                for one in group.readers
            ]
            totals[group.name] += score(torch.cat(parts, dim=1))
    return {name: total / max(count, 1) for name, total in totals.items()}


@torch.no_grad()
def _activation(
    network: nn.Module, groups: list[Group], batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Mean magnitude of what the readers of a channel are given; L2 where nobody reads."""
    means: dict[str, Tensor] = {}

    def note(name: str, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        channels_last = x.movedim(1, -1) if x.ndim == 4 else x
        found = channels_last.abs().flatten(0, -2).mean(0)
        means[name] = means.get(name, torch.zeros_like(found)) + found

    readers = {one.tensor.rpartition(".")[0] for group in groups for one in group.readers}
    hooks = [
        network.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: note(name, args)
        )
        for name in readers
    ]
    for inputs, _ in batches:
        network(inputs)
    for hook in hooks:
        hook.remove()
    tensors = {name: tensor.detach() for name, tensor in network.named_parameters()}
    scores = {}
    for group in groups:
        total = torch.zeros(group.channels)
        for one in group.readers:
            mean = means.get(one.tensor.rpartition(".")[0])
            if mean is not None and int(one.index.max()) < len(mean):
                total += mean[one.index].sum(1)
        scores[group.name] = total if bool(total.any()) else _norm(group, tensors, 2)
    return scores


def _gradients(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterable[dict[str, Tensor]]:
    """Yields each batch's gradients of the label loss, by parameter."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    for inputs, labels in batches:
        loss = F.cross_entropy(network(inputs), labels)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        yield {
            name: gradient
            for name, gradient in zip(names, found, strict=True)
            if gradient is not None
        }
