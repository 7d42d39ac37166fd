"""How many channels each group keeps: as much importance as the budget allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.prune.groups import Group
from compress.prune.latency import ALIGNED, HALF_ALIGNED

LOOK_AHEAD = 4
"""A cut may skip so many widths at once: one step alone may save nothing."""

EMPTY = 0.02
"""An empty group, as a removed block's are, counts as if this share of its importance stayed."""

Cost = Callable[[str, int, int], float]
"""From a layer and its input and output channels to what it costs."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A limit on the sum of all layers' costs."""

    name: str
    """What is limited, for messages: `latency, ms`."""
    cost: Cost
    constant: float
    """Cost that belongs to no layer."""
    limit: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Widths by group, and the residual blocks that are left out."""

    widths: Mapping[str, int]
    removed: frozenset[str] = frozenset()

    def __hash__(self) -> int:
        return hash((tuple(self.widths.items()), self.removed))


class BudgetError(Exception):
    """No choice of widths is cheap enough.

    Args:
        least: the cheapest choice that was found.
    """

    def __init__(self, least: Choice) -> None:
        super().__init__("no choice of widths meets the budgets")
        self.least = least


@dataclass(frozen=True, kw_only=True)
class Problem:
    """All that is known of a network before its widths are chosen."""

    groups: Sequence[Group]
    scores: Mapping[str, Tensor]
    """Importance of each channel, by group."""
    full: Mapping[str, tuple[int, int]]
    """Input and output channels of every layer before pruning."""
    candidates: Mapping[str, tuple[int, ...]]
    """Allowed widths of each group, ascending; the last is the present one."""
    blocks: Sequence[str] = ()
    """Residual blocks that may be left out."""


class Allocator:
    """Chooses widths greedily: always the cut that loses least importance for what it saves.

    Costs are exact for every choice that is looked at, those of coupled groups included: a layer's
    cost depends on what it reads as well as on what it writes.

    Args:
        problem: the network.
        budgets: all must be met.
    """

    def __init__(self, problem: Problem, budgets: Sequence[Budget]) -> None:
        self._problem, self._budgets = problem, budgets
        self._groups = {group.name: group for group in problem.groups}
        self._touches: dict[str, list[str]] = {}
        self._channels: dict[str, tuple[list[tuple[str, int]], list[tuple[str, int]]]] = {
            layer: ([], []) for layer in problem.full
        }
        for group in problem.groups:
            self._touches[group.name] = sorted({use.layer for use in group.uses})
            for use in group.uses:
                self._channels[use.layer][use.writes].append((group.name, use.count))
        self._lost = {
            group.name: _cumulative(problem.scores[group.name], group.blocks)
            for group in problem.groups
        }
        self._block_layers = {
            block: [layer for layer in problem.full if layer.startswith(f"{block}.")]
            for block in problem.blocks
        }
        self._private = {
            block: [group.name for group in problem.groups if _lies_in(group, block)]
            for block in problem.blocks
        }
        self._known: dict[tuple[str, str, int, int], float] = {}

    def choose(self) -> Choice:
        """Returns the best choice found within all budgets.

        Raises:
            BudgetError: there is none.
        """
        widths = {name: widths[-1] for name, widths in self._problem.candidates.items()}
        choice = Choice(widths=widths)
        while True:
            spent = [self.total(choice, budget) for budget in self._budgets]
            if all(cost <= one.limit for cost, one in zip(spent, self._budgets, strict=True)):
                return self._give_back(choice)
            cut = self._best_cut(choice, spent)
            if cut is None:
                raise BudgetError(choice)
            choice = cut

    def total(self, choice: Choice, budget: Budget) -> float:
        """Returns what a choice costs."""
        removed = {layer for block in choice.removed for layer in self._block_layers[block]}
        return budget.constant + sum(
            self._cost(budget, layer, choice.widths)
            for layer in self._problem.full
            if layer not in removed
        )

    def channels(self, layer: str, widths: Mapping[str, int]) -> tuple[int, int]:
        """Returns a layer's input and output channels."""
        counts = list(self._problem.full[layer])
        for side, parts in enumerate(self._channels[layer]):
            for name, count in parts:
                counts[side] -= count * (self._groups[name].channels - widths[name])
        return counts[0], counts[1]

    def _cost(self, budget: Budget, layer: str, widths: Mapping[str, int]) -> float:
        ins, outs = self.channels(layer, widths)
        key = (budget.name, layer, ins, outs)
        if key not in self._known:
            self._known[key] = budget.cost(layer, ins, outs)
        return self._known[key]

    def _best_cut(self, choice: Choice, spent: Sequence[float]) -> Choice | None:
        """Returns the choice after the cut with the least loss for what it saves."""
        best, best_rate = None, float("inf")
        for cut, lost, layers in self._cuts(choice):
            saved = 0.0
            for cost, budget in zip(spent, self._budgets, strict=True):
                if cost > budget.limit:
                    before = sum(self._cost(budget, layer, choice.widths) for layer in layers)
                    after = 0.0
                    if cut.removed == choice.removed:
                        after = sum(self._cost(budget, layer, cut.widths) for layer in layers)
                    # More than what is still missing is worth nothing.
                    saved += min(before - after, cost - budget.limit) / budget.limit
            if saved > 0 and lost / saved < best_rate:
                best, best_rate = cut, lost / saved
        return best

    def _cuts(self, choice: Choice) -> Iterator[tuple[Choice, float, list[str]]]:
        """Yields the next choices, what importance they lose, and the layers they change."""
        gone = {layer for block in choice.removed for layer in self._block_layers[block]}
        dead = {name for block in choice.removed for name in self._private[block]}
        for name, widths in self._problem.candidates.items():
            if name in dead:
                continue
            now = choice.widths[name]
            place = widths.index(now)
            layers = [layer for layer in self._touches[name] if layer not in gone]
            for width in widths[max(0, place - LOOK_AHEAD) : place]:
                lost = float(self._lost[name][width] - self._lost[name][now])
                yield replace(choice, widths={**choice.widths, name: width}), lost, layers
        for block in self._problem.blocks:
            if block not in choice.removed and self._private[block]:
                kept = ((name, choice.widths[name]) for name in self._private[block])
                lost = sum(
                    float(self._lost[name][0] - self._lost[name][width]) for name, width in kept
                )
                cut = replace(choice, removed=choice.removed | {block})
                yield cut, lost, self._block_layers[block]

    def _give_back(self, choice: Choice) -> Choice:
        """Widens groups again as far as the budgets allow, the most important channels first."""
        dead = {name for block in choice.removed for name in self._private[block]}
        while True:
            best, best_gain = None, 0.0
            for name, widths in self._problem.candidates.items():
                place = widths.index(choice.widths[name])
                if name in dead or place + 1 == len(widths):
                    continue
                wider = replace(choice, widths={**choice.widths, name: widths[place + 1]})
                costs = [self.total(wider, budget) for budget in self._budgets]
                gain = float(self._lost[name][widths[place]] - self._lost[name][widths[place + 1]])
                fits = all(
                    cost <= budget.limit for cost, budget in zip(costs, self._budgets, strict=True)
                )
                if fits and gain > best_gain:
                    best, best_gain = wider, gain
            if best is None:
                return choice
            choice = best


def _cumulative(scores: Tensor, blocks: int) -> Tensor:
    """Returns what is lost when a number of channels stays, `[channels + 1]`.

    `-I log(share of I that stays)`, with I the group's whole importance: for the first channels
    that is the sum of their scores, and it grows as less stays. Scores alone say what one channel
    costs while all others are there; added up, they would empty whole groups.
    """
    positions = scores.double().view(blocks, -1).sum(0).sort().values
    lost = torch.cat([torch.zeros(1, dtype=torch.float64), positions.cumsum(0)])
    whole = lost[-1].clamp_min(torch.finfo(torch.float64).tiny)
    lost = -whole * (1 - lost / whole).clamp_min(EMPTY).log()
    return lost.flip(0).repeat_interleave(blocks)[blocks - 1 :]


def _lies_in(group: Group, block: str) -> bool:
    return all(one.tensor.startswith(f"{block}.") for one in (*group.writers, *group.readers))


def candidate_widths(
    groups: Sequence[Group], half_pays: Mapping[str, tuple[bool, bool]], min_channels_ratio: float
) -> dict[str, tuple[int, ...]]:
    """Returns the widths that each group may have, ascending.

    Args:
        groups: of the network.
        half_pays: by layer, whether half a step of input and of output channels pays.
        min_channels_ratio: least share of its channels that a group keeps.
    """
    found: dict[str, tuple[int, ...]] = {}
    for group in groups:
        step = 1
        if not group.heads:
            pays = all(half_pays[use.layer][use.writes] for use in group.uses)
            step = math.lcm(HALF_ALIGNED if pays else ALIGNED, group.blocks)
        least = max(step, -(-math.ceil(group.channels * min_channels_ratio) // step) * step)
        found[group.name] = (*range(least, group.channels, step), group.channels)
    return found
