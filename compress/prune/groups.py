"""Groups of channels that must be pruned together. The only file that uses torch-pruning.

torch-pruning traces which tensors depend on each other (DepGraph, arXiv 2301.12900). Importance,
widths and surgery are our own and work on the plain data defined here.
"""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.dependency.group import Group as TracedGroup
from torch_pruning.dependency.index_mapping import _FlattenIndexMapping

from compress.architectures.attention import SelfAttention
from compress.architectures.hooks import watch_inputs
from compress.log import waiting

MAX_MEMBERS = 2_000
"""Of a group; DenseNet's largest has about 100."""
MAX_INDICES = 2_000_000
"""Indices in one group; VGG-16 has 232 thousand."""


class EndlessWalkError(Exception):
    """torch-pruning's walk through a network does not end."""


UNTRACEABLE = (
    EndlessWalkError,
    ZeroDivisionError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
)
"""What torch-pruning raises on networks that it cannot trace."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A group's channels within one tensor."""

    tensor: str
    """Name of a parameter or buffer."""
    dim: int
    index: Tensor
    """int64 `[channels, k]`: the k indices along `dim` that belong to each channel."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """A layer whose input or output channels belong to a group."""

    layer: str
    writes: bool
    """True for its outputs, False for its inputs."""
    count: int
    """The layer's channels per channel of the group."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Channels (or heads) that span several tensors and must be removed from all of them."""

    name: str
    """Name of the first layer that produces the channels."""
    channels: int
    partitions: int
    """Equal parts that must each lose the same number of channels (grouped convolutions)."""
    writers: tuple[Slice, ...]
    """Parameters that produce the channels: rows of weights, biases, and norms."""
    readers: tuple[Slice, ...]
    """Columns of the weights that consume them."""
    uses: tuple[Use, ...]
    """The convolutions and linear layers among those, named as in the quantized graph."""
    heads: bool = False
    """Whether these are attention heads, which need no alignment."""

    @property
    def slices(self) -> tuple[Slice, ...]:
        """All writers and readers."""
        return (*self.writers, *self.readers)


@dataclass(frozen=True, kw_only=True)
class Groups:
    """A network's groups, and the layers whose outputs cannot be pruned, with the reason."""

    groups: tuple[Group, ...]
    fixed: Mapping[str, str]


def find_groups(network: nn.Module, example: Tensor) -> Groups:
    """Finds the channels of a network in eval mode that can be pruned, by running an example."""
    groups: dict[str, Group] = {}
    fixed: dict[str, str] = {}
    with waiting("finding groups of channels"), _bounded_walk():
        try:
            _trace(network, example, "", groups, fixed)
        except UNTRACEABLE as error:
            groups.clear()
            fixed.clear()
            fixed[type(network).__name__] = (
                f"torch-pruning cannot trace the whole network ({_reason(error)}); only channels "
                "inside its branches are pruned"
            )
            for name, branch, value in _branches(network, example):
                try:
                    _trace(branch, value, f"{name}.", groups, fixed)
                except UNTRACEABLE as error_in_branch:
                    fixed[name] = f"torch-pruning cannot trace it ({_reason(error_in_branch)})"
    for group in _heads(network):
        groups[group.name] = group
    return Groups(groups=tuple(groups.values()), fixed=fixed)


@contextmanager
def _bounded_walk() -> Iterator[None]:
    """Makes torch-pruning raise EndlessWalkError instead of filling memory.

    Where attention reshapes channels into positions and back, its walk multiplies the indices at
    every turn (BoTNet, CoAtNet) or never ends (Swin). Where blocks add to a part of their channels
    (ReXNet), it multiplies the members of a group, whose number it takes squared time to extend.
    """
    add, flatten = TracedGroup.add_dep, _FlattenIndexMapping.__call__
    totals: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
    members: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def bounded_add(group: Any, dep: Any, idxs: Any) -> None:
        totals[group] = totals.get(group, 0) + len(idxs)
        _check_indices(totals[group])
        members[group] = members.get(group, 0) + 1
        if members[group] > MAX_MEMBERS:
            raise EndlessWalkError("channels split and joined in every block")
        add(group, dep, idxs)

    def bounded_flatten(mapping: Any, idxs: Any) -> Any:
        _check_indices(len(idxs) * (1 if mapping.reverse else mapping._stride))
        return flatten(mapping, idxs)

    with (
        patch.object(TracedGroup, "add_dep", bounded_add),
        patch.object(_FlattenIndexMapping, "__call__", bounded_flatten),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Maximum recursive depth reached", UserWarning)
        yield


def _check_indices(count: int) -> None:
    if count > MAX_INDICES:
        raise EndlessWalkError("channels reshaped into positions")


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, EndlessWalkError) else type(error).__name__


def _trace(
    network: nn.Module,
    example: Tensor,
    prefix: str,
    groups: dict[str, Group],
    fixed: dict[str, str],
) -> None:
    """Adds the groups of a network, or of a branch whose input and output widths are fixed."""
    modules = {module: name for name, module in network.named_modules()}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(network, example, verbose=False)
    layers = [module for module in modules if isinstance(module, nn.Conv2d | nn.Linear)]
    # The outputs, and the inputs of a branch whose first layer is depthwise.
    ends = {layers[-1], *(layer for layer in layers[:1] if _is_depthwise(layer))}
    for group in graph.get_all_groups():
        name = prefix + modules[group[0].dep.target.module]
        members = [item.dep.target.module for item in group]
        if _writes_to(group, ends, graph):
            fixed[name] = (
                "its branch has a fixed width" if prefix else "its outputs are the classes"
            )
        elif any("in_proj" in names.get(id(member), "") for member in members):
            fixed[name] = "its channels belong to the residual stream of all attention blocks"
        elif any(isinstance(member, tp.ops._SplitOp) for member in members):
            fixed[name] = "the network's code splits it into parts of fixed widths"
        else:
            groups[name] = _group(
                group, name, prefix=prefix, modules=modules, names=names, graph=graph
            )


def _group(
    traced: tp.Group,
    name: str,
    *,
    prefix: str,
    modules: Mapping[nn.Module, str],
    names: Mapping[int, str],
    graph: tp.DependencyGraph,
) -> Group:
    """Converts torch-pruning's group to plain data."""
    dims = {id(item.parameters): item.pruning_dim for item in graph.unwrapped_parameters}
    channels = len(traced[0].idxs)
    writers: dict[str, Slice] = {}
    readers: dict[str, Slice] = {}
    uses: dict[tuple[str, bool], Use] = {}
    for item in traced:
        member, index = item.dep.target.module, _index(item, channels)
        if id(member) in names:  # a parameter that belongs to no torch.nn module
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
        partitions=_partitions([item.dep.target.module for item in traced]),
        writers=tuple(writers.values()),
        readers=tuple(readers.values()),
        uses=tuple(uses.values()),
    )


def _writes_to(group: tp.Group, layers: Collection[nn.Module], graph: tp.DependencyGraph) -> bool:
    return any(
        item.dep.target.module in layers and graph.is_out_channel_pruning_fn(item.dep.handler)
        for item in group
    )


def _reads(item: Any, member: nn.Module, graph: tp.DependencyGraph) -> bool:
    """Returns whether a layer consumes the channels; a depthwise layer counts as a producer."""
    is_layer = isinstance(member, nn.Conv2d | nn.Linear) and not _is_depthwise(member)
    return is_layer and graph.is_in_channel_pruning_fn(item.dep.handler)


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels


def _index(item: Any, channels: int) -> Tensor:
    """Returns a member's indices for each channel of the group, int64 `[channels, k]`."""
    indices: list[list[int]] = [[] for _ in range(channels)]
    for index, channel in zip(item.idxs, item.root_idxs, strict=True):
        indices[channel].append(index)
    return torch.tensor(indices)


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _partitions(members: Sequence[nn.Module]) -> int:
    """Returns the largest `groups` of the convolutions; 1 if all are dense or depthwise."""
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
                partitions=1,
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
    """Returns the sequential modules of several convolutions, with their inputs."""
    branches = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Sequential)
        and sum(isinstance(child, nn.Conv2d) for child in module) > 1
    }
    inputs: dict[str, Tensor] = {}
    with (
        torch.no_grad(),
        watch_inputs(branches, lambda name, x: inputs.__setitem__(name, x.detach())),
    ):
        network(example)
    return [(name, module, inputs[name]) for name, module in branches.items()]
