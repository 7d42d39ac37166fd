"""Cutting channels out of a network. The only file that touches torch-pruning.

torch-pruning finds which tensors depend on which (DepGraph, arXiv 2301.12900) and scores channels;
how many stay is decided here, because its own rounding and ranking silently skip layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Width:
    """Output channels of one layer before and after pruning."""

    layer: str
    before: int
    after: int


def kept_channels(channels: int, ratio: float, multiple: int) -> int:
    """Returns how many channels stay when `ratio` of them should go.

    The result is the nearest multiple of `multiple`, at least one multiple and never more than
    there were; a layer narrower than that keeps all.
    """
    nearest = round(channels * (1 - ratio) / multiple) * multiple
    return min(channels, max(multiple, nearest))


def prune_channels(
    network: nn.Module, example: Tensor, *, ratio: float, multiple: int
) -> list[Width]:
    """Removes the least important channels of every group of coupled layers, in place.

    Importance is the L2 norm of all weights that a channel takes part in, over its whole group
    (DepGraph, equation 5). The image's channels and the classifier's outputs stay.

    Args:
        network: takes the normalised input.
        example: such an input, `[1, C, H, W]`.
        ratio: share of each group's channels to remove, before rounding.
        multiple: widths are rounded to multiples of this.

    Returns:
        The widths of all layers that changed.
    """
    network.eval()
    before = _widths(network)
    graph = tp.DependencyGraph().build_dependency(network, example_inputs=example, verbose=False)
    importance = tp.importance.GroupMagnitudeImportance(p=2, normalizer=None)
    classifier = _classifier(network)
    cuts = []
    for group in graph.get_all_groups(ignored_layers=[classifier]):
        scores = importance(group)
        if scores is None:
            continue
        root = group[0].dep
        blocks = _channel_blocks(group)
        # Grouped convolutions must lose the same positions in each of their groups.
        scores = scores.view(blocks, -1).mean(0)
        in_all = len(scores) * blocks
        keep = kept_channels(in_all, ratio, max(multiple, blocks)) // blocks
        lowest = torch.argsort(scores)[: len(scores) - keep]
        indices = [block * len(scores) + int(i) for block in range(blocks) for i in lowest]
        if indices:
            cuts.append((root.target.module, root.handler, sorted(indices)))
    for module, handler, indices in cuts:
        group = graph.get_pruning_group(module, handler, indices)
        assert graph.check_pruning_group(group)
        group.prune()
    after = _widths(network)
    return [
        Width(layer=name, before=width, after=after[name])
        for name, width in before.items()
        if after[name] != width
    ]


def _classifier(network: nn.Module) -> nn.Module:
    """The last layer with weights: its outputs are the classes."""
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1]


def _channel_blocks(group: tp.Group) -> int:
    """Groups of the widest-grouped convolution in a group; 1 if all are dense or depthwise."""
    layers = [dep.target.module for dep, _ in group]
    grouped = [
        layer.groups
        for layer in layers
        if isinstance(layer, nn.Conv2d) and 1 < layer.groups < layer.in_channels
    ]
    return max(grouped, default=1)


def _widths(network: nn.Module) -> dict[str, int]:
    return {
        name: module.weight.shape[0]
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
