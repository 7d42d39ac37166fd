"""Which channels can only go together. The only file that touches torch-pruning.

torch-pruning finds which tensors depend on which (DepGraph, arXiv 2301.12900); what a channel is
worth, how many stay and how they are cut out is decided elsewhere, from the plain data made here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from compress.architectures.attention import SelfAttention
from compress.log import waiting

UNTRACEABLE = {"SwinTransformer": "torch-pruning cannot trace shifted windows"}
"""Networks on which its tracing never ends, by class."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Where a group's channels lie in one tensor."""

    tensor: str
    """Name of a parameter or buffer."""
    dim: int
    index: Tensor
    """int64 `[channels, k]`: the k places along `dim` that go with each channel."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """A layer whose channels change with a group's."""

    layer: str
    writes: bool
    """Whether its outputs change, or its inputs."""
    count: int
    """Its channels for each of the group's."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Channels (or heads) that exist in several tensors and can only be removed from all."""

    name: str
    """Of the layer that makes them, the first if there are several."""
    channels: int
    blocks: int
    """They come in so many blocks, of which each must lose as many (grouped convolutions)."""
    writers: tuple[Slice, ...]
    """Parameters that make the channels: rows of weights, biases, and norms."""
    readers: tuple[Slice, ...]
    """Columns of the weights that read them."""
    uses: tuple[Use, ...]
    """Convolutions and linear layers among those, as the quantized graph names them."""
    heads: bool = False
    """Whether these are attention heads, which need no alignment."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """All of a network's groups, and the layers whose outputs must stay, with the reason."""

    groups: tuple[Group, ...]
    fixed: Mapping[str, str]


def find_groups(network: nn.Module, example: Tensor) -> Groups:
    """Finds what can be pruned.

    Args:
        network: takes the normalized input; in eval mode.
        example: such an input, `[1, C, H, W]`.
    """
    kind = type(network).__name__
    groups: dict[str, Group] = {}
    fixed: dict[str, str] = {}
    if kind in UNTRACEABLE:
        fixed[kind] = UNTRACEABLE[kind]
    else:
        with waiting("finding channels that depend on each other"):
            try:
                _trace(network, example, "", groups, fixed)
            except (ZeroDivisionError, RuntimeError, ValueError, KeyError, IndexError) as error:
                groups.clear()
                fixed.clear()
                fixed[kind] = (
                    f"torch-pruning cannot trace it as a whole ({type(error).__name__}); only "
                    "channels inside its branches can go"
                )
                for name, branch, value in _branches(network, example):
                    _trace(branch, value, f"{name}.", groups, fixed)
    for group in _heads(network):
        groups[group.name] = group
    return Groups(groups=tuple(groups.values()), fixed=fixed)


def _trace(
    network: nn.Module,
    example: Tensor,
    prefix: str,
    groups: dict[str, Group],
    fixed: dict[str, str],
) -> None:
    """Adds the groups of a network, or of a branch of it whose ends must keep their widths."""
    modules = {module: name for name, module in network.named_modules()}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(network, example, verbose=False)
    layers = [module for module in modules if isinstance(module, nn.Conv2d | nn.Linear)]
    # The network's outputs; and what a depthwise first layer of a branch is given.
    ends = {layers[-1], *(layer for layer in layers[:1] if _is_depthwise(layer))}
    for found in graph.get_all_groups():
        name = prefix + modules[found[0].dep.target.module]
        members = [item.dep.target.module for item in found]
        if _writes_to(found, ends, graph):
            fixed[name] = (
                "its branch must keep its width" if prefix else "its outputs are the classes"
            )
        elif any("in_proj" in names.get(id(member), "") for member in members):
            fixed[name] = "attention adds to its channels, which all blocks share"
        else:
            groups[name] = _group(
                found, name, prefix=prefix, modules=modules, names=names, graph=graph
            )


def _group(
    found: tp.Group,
    name: str,
    *,
    prefix: str,
    modules: Mapping[nn.Module, str],
    names: Mapping[int, str],
    graph: tp.DependencyGraph,
) -> Group:
    """Turns torch-pruning's group into plain data."""
    dims = {id(one.parameters): one.pruning_dim for one in graph.unwrapped_parameters}
    channels = len(found[0].idxs)
    writers: dict[str, Slice] = {}
    readers: dict[str, Slice] = {}
    uses: dict[tuple[str, bool], Use] = {}
    for item in found:
        member, index = item.dep.target.module, _index(item, channels)
        if id(member) in names:  # a parameter outside torch's own modules
            tensor = prefix + names[id(member)]
            writers[tensor] = Slice(tensor=tensor, dim=dims[id(member)], index=index)
        if member not in modules:
            continue
        path, reads = prefix + modules[member], _reads(item, member, graph)
        if isinstance(member, nn.Conv2d | nn.Linear):
            uses[path, reads] = Use(layer=path, writes=not reads, count=index.shape[1])
        if reads:
            if isinstance(member, nn.Conv2d):
                index %= member.weight.shape[1]
            readers[path] = Slice(tensor=f"{path}.weight", dim=1, index=index)
            continue
        for attribute, value in _own_tensors(member):
            if value.ndim:
                tensor = f"{path}.{attribute}"
                writers[tensor] = Slice(tensor=tensor, dim=0, index=index)
    return Group(
        name=name,
        channels=channels,
        blocks=_blocks([item.dep.target.module for item in found]),
        writers=tuple(writers.values()),
        readers=tuple(readers.values()),
        uses=tuple(uses.values()),
    )


def _writes_to(found: tp.Group, layers: Collection[nn.Module], graph: tp.DependencyGraph) -> bool:
    return any(
        item.dep.target.module in layers and graph.is_out_channel_pruning_fn(item.dep.handler)
        for item in found
    )


def _reads(item: Any, member: nn.Module, graph: tp.DependencyGraph) -> bool:
    """Tells whether a layer reads the channels; a depthwise one writes what it reads."""
    is_layer = isinstance(member, nn.Conv2d | nn.Linear) and not _is_depthwise(member)
    return is_layer and graph.is_in_channel_pruning_fn(item.dep.handler)


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels


def _index(item: Any, channels: int) -> Tensor:
    """Returns a member's places for each channel of the group, `[channels, k]`."""
    places: list[list[int]] = [[] for _ in range(channels)]
    for place, channel in zip(item.idxs, item.root_idxs, strict=True):
        places[channel].append(place)
    return torch.tensor(places)


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _blocks(members: Sequence[nn.Module]) -> int:
    """Returns the groups of the widest-grouped convolution; 1 if all are dense or depthwise."""
    return max(
        (
            member.groups
            for member in members
            if isinstance(member, nn.Conv2d) and 1 < member.groups < member.in_channels
        ),
        default=1,
    )


def _heads(network: nn.Module) -> Iterator[Group]:
    for name, module in network.named_modules():
        if isinstance(module, SelfAttention):
            width = len(module.in_proj_weight) // 3
            own = torch.arange(width).view(-1, module.head_dim)
            three = torch.cat([own, own + width, own + 2 * width], dim=1)
            yield Group(
                name=f"{name}.heads",
                channels=len(own),
                blocks=1,
                writers=(
                    Slice(tensor=f"{name}.in_proj_weight", dim=0, index=three),
                    Slice(tensor=f"{name}.in_proj_bias", dim=0, index=three),
                ),
                readers=(Slice(tensor=f"{name}.out_proj.weight", dim=1, index=own),),
                uses=(
                    Use(layer=f"{name}.in_proj", writes=True, count=three.shape[1]),
                    Use(layer=f"{name}.out_proj", writes=False, count=own.shape[1]),
                ),
                heads=True,
            )


def _branches(network: nn.Module, example: Tensor) -> list[tuple[str, nn.Module, Tensor]]:
    """Returns the outermost sequences of several convolutions, with what they are given."""
    chosen = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Sequential)
        and sum(isinstance(child, nn.Conv2d) for child in module) > 1
    ]
    inputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _module, args, name=name: inputs.__setitem__(name, args[0].detach())
        )
        for name, module in chosen
    ]
    with torch.no_grad():
        network(example)
    for hook in hooks:
        hook.remove()
    return [(name, module, inputs[name]) for name, module in chosen]
