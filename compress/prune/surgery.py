"""Removes channels, heads, and whole blocks from a network."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compress.architectures.hooks import watch_outputs
from compress.architectures.resize import set_tensor
from compress.prune.groups import Group


@torch.no_grad()
def keep_channels(network: nn.Module, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> None:
    """Removes all but the kept channels (int64, by group) from every tensor, in place.

    Groups that are not listed keep all of theirs.
    """
    removed: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for group in groups:
        if group.name in kept:
            dropped = torch.ones(group.channels, dtype=torch.bool)
            dropped[kept[group.name]] = False
            for part in group.slices:
                removed[part.tensor, part.dim].append(part.index[dropped].flatten())
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for (name, dim), indices in removed.items():
        stays = torch.ones(tensors[name].shape[dim], dtype=torch.bool)
        stays[torch.cat(indices)] = False
        tensors[name] = tensors[name].index_select(dim, stays.nonzero().flatten())
    for name in {name for name, _ in removed}:
        set_tensor(network, name, tensors[name].contiguous())


def best_channels(scores: Tensor, width: int, partitions: int) -> Tensor:
    """Returns the most important channels in ascending order, int64 `[width]`.

    Args:
        scores: importance of each channel.
        width: number of channels to keep; a multiple of `partitions`.
        partitions: equal parts of the channels, which all keep the same positions.
    """
    positions = scores.view(partitions, -1).sum(0)
    best = positions.argsort(descending=True)[: width // partitions].sort().values
    return (torch.arange(partitions)[:, None] * len(positions) + best).flatten()


@torch.no_grad()
def residual_blocks(network: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Returns the names of the residual blocks that can be removed, innermost ones only.

    A module counts as one if it returns its input once all its parameters are zero, as tried on an
    example `[1, C, H, W]` in eval mode.
    """
    inputs: dict[str, Tensor] = {}

    def note(name: str, args: tuple[object, ...], output: object) -> None:
        match args, output:
            case (Tensor() as x,), Tensor() as y if x.shape == y.shape:
                inputs[name] = x

    containers = {
        name: module
        for name, module in network.named_modules()
        if name and any(True for _ in module.children())
    }
    with watch_outputs(containers, note):
        network(example)
    blocks: list[str] = []
    for name in sorted(inputs, key=len, reverse=True):  # inner ones first
        outer = any(inner.startswith(f"{name}.") for inner in blocks)
        if not outer and _is_residual(containers[name], inputs[name]):
            blocks.append(name)
    return tuple(sorted(blocks, key=list(containers).index))


def _is_residual(module: nn.Module, x: Tensor) -> bool:
    saved = [parameter.clone() for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.zero_()
    is_residual = bool(saved) and torch.equal(module(x), x)
    for parameter, value in zip(module.parameters(), saved, strict=True):
        parameter.copy_(value)
    return is_residual
