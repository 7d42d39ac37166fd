"""Channel importance: a score for each channel of each group."""

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.architectures.hooks import watch_inputs
from compress.prune.config import Importance
from compress.prune.groups import Group, Slice

TINIEST = 1e-12


def score_channels(
    network: nn.Module,
    groups: Iterable[Group],
    criterion: Importance,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    *,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Scores all channels on a scale shared by all groups.

    `taylor` and `hessian` estimate the increase of the loss and need no scaling. All other scores
    are divided by their group's mean.

    Args:
        network: takes normalized images; in eval mode, left unchanged.
        groups: the network's groups.
        criterion: how to score.
        batches: each call returns training batches of normalized images and int64 labels; used by
            `taylor`, `hessian`, and `activation`.
        seed: random seed, used by `random`.

    Returns:
        By group, float `[channels]`, never negative.
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


def by_channel(tensor: Tensor, part: Slice) -> Tensor:
    """Returns the entries of a tensor that belong to each channel, `[channels, entries]`."""
    rows = tensor.movedim(part.dim, 0).flatten(1) if tensor.ndim > 1 else tensor[:, None]
    return rows[part.index].flatten(1)


def _norm(group: Group, tensors: Mapping[str, Tensor], power: int) -> Tensor:
    """Sum of `|w|^power` over all weights of a channel (DepGraph, equation 5)."""
    total = torch.zeros(group.channels)
    for part in group.slices:
        if part.tensor in tensors and tensors[part.tensor].ndim > 1:
            total += by_channel(tensors[part.tensor], part).abs().pow(power).sum(1)
    return total


def _batchnorm(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Sum of BatchNorm scales (Network Slimming, arXiv 1708.06519); L2 if there are none."""
    total = torch.zeros(group.channels)
    for part in group.writers:
        tensor = tensors.get(part.tensor)
        if tensor is not None and part.tensor.endswith("weight") and tensor.ndim == 1:
            total += tensor[part.index].abs().sum(1)
    return total if bool(total.any()) else _norm(group, tensors, 2)


def _lamp(scores: Tensor) -> Tensor:
    """Score over the sum of all scores at least as large (LAMP, arXiv 2010.07611, equation 4)."""
    ordered, order = scores.sort()
    rest = ordered.flip(0).cumsum(0).flip(0).clamp_min(TINIEST)
    return torch.empty_like(scores).scatter_(0, order, ordered / rest)


def _fpgm(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Sum of distances to the other filters of a layer (FPGM, arXiv 1811.00250, equation 6)."""
    total = torch.zeros(group.channels)
    for part in group.writers:
        if part.tensor in tensors and tensors[part.tensor].ndim > 1:
            filters = by_channel(tensors[part.tensor], part)
            total += torch.cdist(filters, filters).sum(1)
    return total


def _taylor(products: Tensor) -> Tensor:
    """Square of the first-order change of the loss when a channel is set to zero.

    Molchanov et al. (arXiv 1906.10771, equation 8). The sum inside the square runs over the columns
    of all weights that consume the channel, and so equals its activations times their gradients.
    """
    return products.sum(1).square()


def _hessian(products: Tensor) -> Tensor:
    """Half of `w^2 h`, summed over the weights that consume a channel (OBD, LeCun et al. 1990).

    The diagonal `h` of the Hessian is the mean squared batch gradient (Fisher).
    """
    return products.square().sum(1) / 2


def _from_gradients(
    network: nn.Module,
    groups: list[Group],
    batches: Iterable[tuple[Tensor, Tensor]],
    score: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Averages a score over the batches; it is given weights times gradients `[channels, k]`."""
    totals = {group.name: torch.zeros(group.channels) for group in groups}
    tensors = {name: tensor.detach() for name, tensor in network.named_parameters()}
    count = 0
    for gradients in _gradients(network, batches):
        count += 1
        for group in groups:
            parts = [
                by_channel(tensors[part.tensor] * gradients[part.tensor], part)
                for part in group.readers
            ]
            totals[group.name] += score(torch.cat(parts, dim=1))
    return {name: total / max(count, 1) for name, total in totals.items()}


@torch.no_grad()
def _activation(
    network: nn.Module, groups: list[Group], batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Mean magnitude of the activations that a channel's readers receive; L2 without readers."""
    means: dict[str, Tensor] = {}

    def note(name: str, x: Tensor) -> None:
        channels_last = x.movedim(1, -1) if x.ndim == 4 else x
        mean = channels_last.abs().flatten(0, -2).mean(0)
        means[name] = means.get(name, torch.zeros_like(mean)) + mean

    names = {part.tensor.rpartition(".")[0] for group in groups for part in group.readers}
    with watch_inputs({name: network.get_submodule(name) for name in names}, note):
        for inputs, _ in batches:
            network(inputs)
    tensors = {name: tensor.detach() for name, tensor in network.named_parameters()}
    scores = {}
    for group in groups:
        total = torch.zeros(group.channels)
        for part in group.readers:
            mean = means.get(part.tensor.rpartition(".")[0])
            if mean is not None and int(part.index.max()) < len(mean):
                total += mean[part.index].sum(1)
        scores[group.name] = total if bool(total.any()) else _norm(group, tensors, 2)
    return scores


def _gradients(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterable[dict[str, Tensor]]:
    """Yields each batch's gradients of the cross-entropy, by parameter."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    for inputs, labels in batches:
        loss = F.cross_entropy(network(inputs), labels)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        yield {
            name: gradient
            for name, gradient in zip(names, gradients, strict=True)
            if gradient is not None
        }
