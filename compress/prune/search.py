"""One pruning iteration: propose widths, measure in ONNX Runtime, correct the budget, repeat."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from compress.architectures.build import Classifier, example_input
from compress.architectures.resize import remove_blocks
from compress.checkpoint import Checkpoint
from compress.errors import CompressError
from compress.int8.graph import layers_of
from compress.int8.lowering import lower
from compress.kd.context import Context
from compress.log import say, waiting
from compress.prune.allocation import (
    Allocator,
    Budget,
    Choice,
    Cost,
    Problem,
    candidate_widths,
)
from compress.prune.config import Precision, PruneConfig
from compress.prune.groups import Group, find_groups
from compress.prune.importance import score_channels
from compress.prune.latency import LatencyModel, layer_shapes
from compress.prune.probe import Measured, Probe
from compress.prune.surgery import best_channels, keep_channels, residual_blocks
from compress.prune.table import measure_layers

SCORING_IMAGES, SCORING_BATCH = 1024, 32
"""Training images used to estimate importances."""
TRIES, NUDGE = 8, 1.02
CLOSE, TOLERANCE = (0.96, 1.01), 0.05
"""Ratio of cost to budget at which the search stops, and by how much a result may exceed it."""
BYTES = {"int8": 1, "float": 4}
UNITS = {"latency": " ms", "MACs": "", "size": " bytes"}


class UnmetBudgetError(CompressError):
    """No pruned network is fast (or small) enough; the message names the best one found."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A candidate network."""

    model: Classifier
    removed: tuple[str, ...]
    measured: Measured
    predicted_ms: float
    target_ms: float
    worst: float
    """The largest ratio of a cost to its limit."""


class Search:
    """Prunes one network in several iterations, with costs relative to the unpruned network."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: Classifier,
        config: PruneConfig,
        context: Context,
        scratch: Path,
    ) -> None:
        self._config, self._context = config, context
        self._probe = Probe(checkpoint, model, context, config.target_precision, scratch)
        self.removed: tuple[str, ...] = checkpoint.description.removed
        """Residual blocks removed so far."""
        self.fixed: Mapping[str, str] = {}
        """Layers that cannot be pruned, with the reason."""
        self.unpruned = self._probe.unpruned

    def prune(self, model: Classifier, number: int) -> tuple[Trial, int]:
        """Runs one iteration, in place; the first is number 1.

        Returns:
            The network chosen, and the number of those measured.

        Raises:
            UnmetBudgetError: the budget cannot be met; the model is unchanged.
        """
        limits = self._limits(number / self._config.iterations)
        now = self._probe.measure(model, self.removed)
        found = find_groups(model.network.eval(), example_input(model))
        self.fixed = found.fixed
        latency = self._latency_model(model, now, found.groups)
        problem = self._problem(model, found.groups, latency)
        best, tries = self._search(model, problem, latency, now, limits)
        if best.worst > 1 + TOLERANCE:
            raise UnmetBudgetError(_message(best.measured, self._limits(1.0)))
        model.network, self.removed = best.model.network, best.removed
        return best, tries

    def _problem(
        self, model: Classifier, groups: Sequence[Group], latency: LatencyModel
    ) -> Problem:
        config, network = self._config, model.network
        with waiting("scoring channels"):
            batches = partial(self._batches, model)
            scores = score_channels(
                network, groups, config.importance, batches, seed=self._context.seed
            )
        return Problem(
            groups=groups,
            scores=scores,
            unpruned=latency.unpruned,
            candidates=candidate_widths(groups, latency.half_pays, config.min_channels_ratio),
            blocks=residual_blocks(network, example_input(model)) if config.remove_blocks else (),
        )

    def _search(
        self,
        model: Classifier,
        problem: Problem,
        latency: LatencyModel,
        now: Measured,
        limits: Mapping[str, float],
    ) -> tuple[Trial, int]:
        """Proposes, measures, and corrects until the measured costs are close to their limits."""
        allowed = dict(limits)
        trials: dict[Choice, Trial] = {}
        for _ in range(TRIES):
            budgets = {
                name: self._budget(name, limit, latency, now) for name, limit in allowed.items()
            }
            allocator = Allocator(problem, list(budgets.values()))
            choice, is_met = allocator.choose()
            if choice in trials:  # the correction was too small to change any width
                nudge = NUDGE if trials[choice].worst < 1 else 1 / NUDGE
                allowed = {name: nudge * limit for name, limit in allowed.items()}
                continue
            pruned, removed = self._apply(model, problem, choice)
            measured = self._probe.measure(pruned, removed)
            ratios = {name: _value(measured, name) / limit for name, limit in limits.items()}
            worst = max(ratios.values())
            predicted = allocator.total(choice, self._budget("latency", 1.0, latency, now))
            trials[choice] = Trial(
                model=pruned,
                removed=removed,
                measured=measured,
                predicted_ms=predicted,
                target_ms=limits["latency"],
                worst=worst,
            )
            say(
                f"  candidate {len(trials)}: {predicted:.3f} ms predicted, {measured.ms:.3f} ms "
                f"measured, target {limits['latency']:.3f} ms"
            )
            if CLOSE[0] <= worst <= CLOSE[1] or (worst > 1 and not is_met):
                break
            for name, budget in budgets.items():
                allowed[name] = allocator.total(choice, budget) / ratios[name]
        closest = min(
            trials.values(),
            key=lambda trial: (trial.worst > 1 + TOLERANCE, abs(math.log(trial.worst))),
        )
        return closest, len(trials)

    def _limits(self, progress: float) -> dict[str, float]:
        """Returns the limit of each cost at a fraction of the (geometric) path to the target.

        Latency is always limited, since a pruned network must not be slower.
        """
        config, unpruned = self._config, self.unpruned
        ratios = {"latency": config.latency_ratio}
        if config.latency_ms:
            ratios["latency"] = min(config.latency_ratio, config.latency_ms / unpruned.ms)
        for name, ratio in (("MACs", config.macs_ratio), ("size", config.size_ratio)):
            if ratio < 1:
                ratios[name] = ratio
        return {name: _value(unpruned, name) * ratio**progress for name, ratio in ratios.items()}

    def _budget(self, name: str, limit: float, latency: LatencyModel, now: Measured) -> Budget:
        cost = _cost(name, latency, self._config.target_precision)
        layers = sum(cost(layer, *channels) for layer, channels in latency.unpruned.items())
        return Budget(name=name, cost=cost, constant=_value(now, name) - layers, limit=limit)

    def _latency_model(
        self, model: Classifier, now: Measured, groups: Sequence[Group]
    ) -> LatencyModel:
        with waiting("tracing the network"):
            lowered = lower(model)
        shapes = layer_shapes(lowered, self._probe.images(1))
        unpruned = {name: layer.channels for name, layer in layers_of(lowered).items()}
        uses = [use for group in groups for use in group.uses]
        inputs = {use.layer for use in uses if not use.writes}
        outputs = {use.layer for use in uses if use.writes}
        curves = measure_layers(
            shapes,
            unpruned,
            {name: (name in inputs, name in outputs) for name in unpruned},
            precision=self._config.target_precision,
            threads=self._context.measure.threads,
        )
        profiled = sum(now.main_ms.values()) + sum(now.rest_ms.values())
        return LatencyModel(
            shapes=shapes,
            curves=curves,
            unpruned=unpruned,
            main_ms=now.main_ms,
            rest_ms=now.rest_ms,
            overhead_ms=now.overhead_ms,
            scale=(now.ms - now.run_ms) / profiled,
        )

    def _batches(self, model: Classifier) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields normalized training images and their labels."""
        split = self._context.data.train
        order = scoring_order(len(split), seed=self._context.seed)
        for batch in split.batches(SCORING_BATCH, order=order):
            yield model.normalize(batch.images), batch.labels

    def _apply(
        self, model: Classifier, problem: Problem, choice: Choice
    ) -> tuple[Classifier, tuple[str, ...]]:
        """Returns a pruned copy, and all blocks that it lacks."""
        pruned = copy.deepcopy(model)
        kept = {
            group.name: best_channels(
                problem.scores[group.name], choice.widths[group.name], group.partitions
            )
            for group in problem.groups
            if choice.widths[group.name] < group.channels
        }
        keep_channels(pruned.network, problem.groups, kept)
        remove_blocks(pruned.network, sorted(choice.removed))
        return pruned, (*self.removed, *sorted(choice.removed))


def scoring_order(n_images: int, *, seed: int) -> Tensor:
    """Returns the indices of the images to estimate importances on, int64, in whole batches.

    The gradient of a small last batch would be mostly noise, and it enters squared.
    """
    order = torch.randperm(n_images, generator=torch.Generator().manual_seed(seed))
    whole = min(SCORING_IMAGES, n_images) // SCORING_BATCH * SCORING_BATCH
    return order[: whole or n_images]


def _cost(name: str, latency: LatencyModel, precision: Precision) -> Cost:
    def macs(layer: str, ins: int, outs: int) -> float:
        return latency.shapes[layer].macs(ins, outs)

    def size(layer: str, ins: int, outs: int) -> float:
        return BYTES[precision] * latency.shapes[layer].weights(ins, outs)

    return {"latency": latency.layer_ms, "MACs": macs, "size": size}[name]


def _value(measured: Measured, name: str) -> float:
    """Returns the measured cost of that name."""
    return {"latency": measured.ms, "MACs": measured.macs, "size": measured.size_bytes}[name]


def _message(measured: Measured, limits: Mapping[str, float]) -> str:
    exceeded = (
        f"{name} {_value(measured, name):.4g}{UNITS[name]} (target {limit:.4g}{UNITS[name]})"
        for name, limit in limits.items()
        if _value(measured, name) > limit
    )
    return (
        f"pruning cannot meet the budget; the best candidate has {', '.join(exceeded)}; raise that "
        "limit, lower --min-channels-ratio if layers are wide, or retry on an idle machine"
    )
