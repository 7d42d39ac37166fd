"""Chooses how many channels each group keeps, maximizing importance within the budgets."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.prune.groups import Group, Use
from compress.prune.latency import ALIGNED, HALF_ALIGNED

LOOK_AHEAD = 4
"""A step may skip this many widths, since a single one may save nothing."""

EMPTY = 0.02
"""Fraction of its importance that an empty group (of a removed block) is assumed to keep."""

Cost = Callable[[str, int, int], float]
"""Maps a layer and its input and output channels to a cost."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A limit on the sum of all layers' costs."""

    name: str
    """Name of the limited quantity: `latency`, `MACs`, or `size`."""
    cost: Cost
    constant: float
    """Cost that does not depend on the layers."""
    limit: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Widths by group, and the residual blocks to remove."""

    widths: Mapping[str, int]
    removed: frozenset[str] = frozenset()

    def __hash__(self) -> int:
        return hash((tuple(self.widths.items()), self.removed))


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Inputs for choosing widths."""

    groups: Sequence[Group]
    scores: Mapping[str, Tensor]
    """Importance of each channel, by group."""
    unpruned: Mapping[str, tuple[int, int]]
    """Input and output channels of every layer before pruning."""
    candidates: Mapping[str, tuple[int, ...]]
    """Allowed widths of each group, ascending; the last one is the current width."""
    blocks: Sequence[str] = ()
    """Residual blocks that may be removed."""


class Allocator:
    """Chooses widths greedily: each step loses the least importance for the cost it saves.

    Costs are exact for every choice considered, including those of coupled groups, since a layer's
    cost depends on both its input and its output channels.
    """

    def __init__(self, problem: Problem, budgets: Sequence[Budget]) -> None:
        self._problem, self._budgets = problem, budgets
        self._layers = {
            group.name: sorted({use.layer for use in group.uses}) for group in problem.groups
        }
        self._inputs: dict[str, list[tuple[Group, int]]] = defaultdict(list)
        self._outputs: dict[str, list[tuple[Group, int]]] = defaultdict(list)
        for group in problem.groups:
            for use in group.uses:
                side = self._outputs if use.writes else self._inputs
                side[use.layer].append((group, use.count))
        self._lost = {
            group.name: _cumulative(problem.scores[group.name], group.partitions)
            for group in problem.groups
        }
        self._block_layers = {
            block: [layer for layer in problem.unpruned if layer.startswith(f"{block}.")]
            for block in problem.blocks
        }
        self._inner_groups = {
            block: [group.name for group in problem.groups if _is_inside(group, block)]
            for block in problem.blocks
        }
        self._costs: dict[tuple[str, str, int, int], float] = {}

    def choose(self) -> tuple[Choice, bool]:
        """Returns the best choice found, and whether it meets all budgets; if not, the cheapest."""
        widths = {name: widths[-1] for name, widths in self._problem.candidates.items()}
        choice = Choice(widths=widths)
        while True:
            costs = [self.total(choice, budget) for budget in self._budgets]
            if self._is_met(costs):
                return self._widen(choice), True
            smaller = self._best_step(choice, costs)
            if smaller is None:
                return choice, False
            choice = smaller

    def total(self, choice: Choice, budget: Budget) -> float:
        """Returns the cost of a choice."""
        removed = {layer for block in choice.removed for layer in self._block_layers[block]}
        return budget.constant + sum(
            self._cost(budget, layer, choice.widths)
            for layer in self._problem.unpruned
            if layer not in removed
        )

    def _is_met(self, costs: Sequence[float]) -> bool:
        budgets = zip(costs, self._budgets, strict=True)
        return all(cost <= budget.limit for cost, budget in budgets)

    def _cost(self, budget: Budget, layer: str, widths: Mapping[str, int]) -> float:
        ins, outs = self._problem.unpruned[layer]
        ins -= _removed(self._inputs[layer], widths)
        outs -= _removed(self._outputs[layer], widths)
        key = (budget.name, layer, ins, outs)
        if key not in self._costs:
            self._costs[key] = budget.cost(layer, ins, outs)
        return self._costs[key]

    def _best_step(self, choice: Choice, costs: Sequence[float]) -> Choice | None:
        """Returns the next smaller choice with the least loss of importance per saved cost."""
        best, best_rate = None, float("inf")
        for smaller, lost, layers in self._steps(choice):
            saved = 0.0
            for cost, budget in zip(costs, self._budgets, strict=True):
                if cost > budget.limit:
                    before = sum(self._cost(budget, layer, choice.widths) for layer in layers)
                    after = 0.0
                    if smaller.removed == choice.removed:
                        after = sum(self._cost(budget, layer, smaller.widths) for layer in layers)
                    # Savings beyond the limit have no value.
                    saved += min(before - after, cost - budget.limit) / budget.limit
            if saved > 0 and lost / saved < best_rate:
                best, best_rate = smaller, lost / saved
        return best

    def _steps(self, choice: Choice) -> Iterator[tuple[Choice, float, list[str]]]:
        """Yields the next smaller choices, the importance they lose, and the layers they change."""
        gone = {layer for block in choice.removed for layer in self._block_layers[block]}
        dead = {name for block in choice.removed for name in self._inner_groups[block]}
        for name, widths in self._problem.candidates.items():
            if name in dead:
                continue
            now = choice.widths[name]
            index = widths.index(now)
            layers = [layer for layer in self._layers[name] if layer not in gone]
            for width in widths[max(0, index - LOOK_AHEAD) : index]:
                lost = float(self._lost[name][width] - self._lost[name][now])
                yield replace(choice, widths={**choice.widths, name: width}), lost, layers
        for block in self._problem.blocks:
            if block not in choice.removed and self._inner_groups[block]:
                kept = ((name, choice.widths[name]) for name in self._inner_groups[block])
                lost = sum(
                    float(self._lost[name][0] - self._lost[name][width]) for name, width in kept
                )
                smaller = replace(choice, removed=choice.removed | {block})
                yield smaller, lost, self._block_layers[block]

    def _widen(self, choice: Choice) -> Choice:
        """Widens groups again as far as the budgets allow, most important channels first."""
        dead = {name for block in choice.removed for name in self._inner_groups[block]}
        while True:
            best, best_gain = None, 0.0
            for name, widths in self._problem.candidates.items():
                index = widths.index(choice.widths[name])
                if name in dead or index + 1 == len(widths):
                    continue
                wider = replace(choice, widths={**choice.widths, name: widths[index + 1]})
                costs = [self.total(wider, budget) for budget in self._budgets]
                gain = float(self._lost[name][widths[index]] - self._lost[name][widths[index + 1]])
                if self._is_met(costs) and gain > best_gain:
                    best, best_gain = wider, gain
            if best is None:
                return choice
            choice = best


def _removed(parts: Sequence[tuple[Group, int]], widths: Mapping[str, int]) -> int:
    return sum(count * (group.channels - widths[group.name]) for group, count in parts)


def _cumulative(scores: Tensor, partitions: int) -> Tensor:
    """Returns the importance lost for each number of kept channels, float64 `[channels + 1]`.

    It is `-I log(kept fraction of I)`, with I the group's total importance: for the first removed
    channels that is the sum of their scores, and it grows as fewer are left. A score is the cost of
    removing one channel while all others stay; plain sums would empty whole groups.
    """
    positions = scores.double().view(partitions, -1).sum(0).sort().values
    lost = torch.cat([torch.zeros(1, dtype=torch.float64), positions.cumsum(0)])
    whole = lost[-1].clamp_min(torch.finfo(torch.float64).tiny)
    lost = -whole * (1 - lost / whole).clamp_min(EMPTY).log()
    return lost.flip(0).repeat_interleave(partitions)[partitions - 1 :]


def _is_inside(group: Group, block: str) -> bool:
    return all(part.tensor.startswith(f"{block}.") for part in group.slices)


def candidate_widths(
    groups: Sequence[Group], half_pays: Callable[[Use], bool], min_channels_ratio: float
) -> dict[str, tuple[int, ...]]:
    """Returns the widths that each group may have, ascending: multiples of 16, and its own.

    Multiples of 8 if they pay off in all of its layers (`half_pays`), any number of heads.
    """
    candidates: dict[str, tuple[int, ...]] = {}
    for group in groups:
        step = 1
        if not group.heads:
            pays = all(half_pays(use) for use in group.uses)
            step = math.lcm(HALF_ALIGNED if pays else ALIGNED, group.partitions)
        least = max(step, math.ceil(group.channels * min_channels_ratio / step) * step)
        candidates[group.name] = (*range(least, group.channels, step), group.channels)
    return candidates
