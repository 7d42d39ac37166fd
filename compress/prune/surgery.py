"""Cutting channels, heads and whole blocks out of a network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compress.architectures.resize import set_tensor
from compress.prune.groups import Group


@torch.no_grad()
def keep_channels(network: nn.Module, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> None:
    """Removes all channels but those kept, in place, from all tensors at once.

    Args:
        network: whose groups these are.
        groups: all of its groups.
        kept: by group, the channels that stay, int64; groups not named keep all.
    """
    gone: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for group in groups:
        if group.name in kept:
            removed = torch.ones(group.channels, dtype=torch.bool)
            removed[kept[group.name]] = False
            for one in (*group.writers, *group.readers):
                gone[one.tensor, one.dim].append(one.index[removed].flatten())
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for (name, dim), places in gone.items():
        stays = torch.ones(tensors[name].shape[dim], dtype=torch.bool)
        stays[torch.cat(places)] = False
        tensors[name] = tensors[name].index_select(dim, stays.nonzero().flatten())
    for name in {name for name, _ in gone}:
        set_tensor(network, name, tensors[name].contiguous())


def best_channels(scores: Tensor, width: int, blocks: int) -> Tensor:
    """Returns the most important channels in ascending order, int64 `[width]`.

    Args:
        scores: importance of each channel.
        width: how many stay; a multiple of `blocks`.
        blocks: each block of the channels keeps the same positions.
    """
    positions = scores.view(blocks, -1).sum(0)
    best = positions.argsort(descending=True)[: width // blocks].sort().values
    return (torch.arange(blocks)[:, None] * len(positions) + best).flatten()


@torch.no_grad()
def residual_blocks(network: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Returns the names of the blocks that add to what they are given: they can be left out.

    A block is one that returns its input once all its parameters are zero.

    Args:
        network: in eval mode; left as it was.
        example: its input, `[1, C, H, W]`.
    """
    found: list[str] = []
    inputs: dict[str, Tensor] = {}

    def remember(name: str, args: tuple[object, ...], output: object) -> None:
        match args, output:
            case (Tensor() as x,), Tensor() as y if x.shape == y.shape:
                inputs[name] = x

    hooks = [
        module.register_forward_hook(lambda _, args, out, name=name: remember(name, args, out))
        for name, module in network.named_modules()
        if name and any(True for _ in module.children())
    ]
    network(example)
    for hook in hooks:
        hook.remove()
    for name in sorted(inputs, key=len, reverse=True):  # inner ones first
        if any(inner.startswith(f"{name}.") for inner in found):
            continue
        module = network.get_submodule(name)
        saved = [parameter.clone() for parameter in module.parameters()]
        for parameter in module.parameters():
            parameter.zero_()
        if saved and torch.equal(module(inputs[name]), inputs[name]):
            found.append(name)
        for parameter, value in zip(module.parameters(), saved, strict=True):
            parameter.copy_(value)
    order = [name for name, _ in network.named_modules()]
    return tuple(sorted(found, key=order.index))
