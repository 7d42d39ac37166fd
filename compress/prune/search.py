"""One cut: propose widths, build and measure them in ONNX Runtime, correct the budget, repeat."""

from __future__ import annotations

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
    BudgetError,
    Choice,
    Cost,
    Problem,
    candidate_widths,
)
from compress.prune.config import PruneConfig
from compress.prune.groups import Group, find_groups
from compress.prune.importance import score_channels
from compress.prune.latency import LatencyModel, layer_shapes
from compress.prune.probe import Measured, Probe
from compress.prune.surgery import best_channels, keep_channels, residual_blocks
from compress.prune.table import measure_layers

SCORING_IMAGES, SCORING_BATCH = 1024, 32
"""Training images that importances are estimated on."""
TRIES, NUDGE = 8, 1.02
CLOSE, TOLERANCE = (0.96, 1.01), 0.05
"""A cut is taken at once if it is so near its budget; a nearer one is not looked for."""
BYTES = {"int8": 1, "float": 4}
UNITS = {"latency": " ms", "MACs": "", "size": " bytes"}


class UnmetBudgetError(CompressError):
    """No pruned network is fast (or small) enough; the message says what the least is."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What one cut was asked for and became."""

    target_ms: float
    predicted_ms: float
    measured_ms: float
    size_bytes: int
    macs: int
    tries: int


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """A network with the widths of one choice."""

    model: Classifier
    removed: tuple[str, ...]
    measured: Measured
    predicted_ms: float
    worst: float
    """The largest of its costs over their limits."""


class Search:
    """Cuts one network, perhaps in several steps; all latencies compare with the unpruned one.

    Args:
        checkpoint: the unpruned network.
        model: likewise, loaded.
        config: the budget.
        context: data and how to measure.
        scratch: a folder for files to be timed.
    """

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
        """Residual blocks left out so far."""
        self.fixed: Mapping[str, str] = {}
        """What cannot be pruned, and why."""
        self.unpruned = self._probe.unpruned

    def cut(self, model: Classifier, number: int) -> Cut:
        """Makes the cut of the given number, in place.

        Raises:
            UnmetBudgetError: the budget cannot be met; the model stays as it was.
        """
        limits = self._limits(number / self._config.iterations)
        now = self._probe.measure(model, self.removed)
        network, example = model.network.eval(), example_input(model)
        found = find_groups(network, example)
        self.fixed = found.fixed
        with waiting("scoring channels"):
            batches = partial(self._batches, model)
            scores = score_channels(network, found.groups, self._config.importance, batches)
        latency = self._latency_model(model, now, found.groups)
        pays = {name: curve.half_pays for name, curve in latency.curves.items()}
        problem = Problem(
            groups=found.groups,
            scores=scores,
            full=latency.full,
            candidates=candidate_widths(found.groups, pays, self._config.min_channels_ratio),
            blocks=residual_blocks(network, example) if self._config.remove_blocks else (),
        )
        best, tries = self._search(model, problem, latency, now, limits)
        if best.worst > 1 + TOLERANCE:
            raise UnmetBudgetError(_message(best.measured, self._limits(1.0)))
        model.network, self.removed = best.model.network, best.removed
        return Cut(
            target_ms=limits["latency"],
            predicted_ms=best.predicted_ms,
            measured_ms=best.measured.ms,
            size_bytes=best.measured.size_bytes,
            macs=best.measured.macs,
            tries=tries,
        )

    def _search(
        self,
        model: Classifier,
        problem: Problem,
        latency: LatencyModel,
        now: Measured,
        limits: Mapping[str, float],
    ) -> tuple[_Trial, int]:
        """Proposes, measures and corrects until the measured costs are near their limits."""
        allowed = dict(limits)
        trials: dict[Choice, _Trial] = {}
        for _ in range(TRIES):
            budgets = {
                name: self._budget(name, limit, latency, now) for name, limit in allowed.items()
            }
            allocator = Allocator(problem, list(budgets.values()))
            try:
                choice, is_least = allocator.choose(), False
            except BudgetError as failure:
                choice, is_least = failure.least, True
            if choice in trials:  # the correction was less than a step of widths
                nudge = NUDGE if trials[choice].worst < 1 else 1 / NUDGE
                allowed = {name: nudge * limit for name, limit in allowed.items()}
                continue
            trial, removed = self._apply(model, problem, choice)
            measured = self._probe.measure(trial, removed)
            ratios = {name: _value(measured, name) / limit for name, limit in limits.items()}
            worst = max(ratios.values())
            predicted = allocator.total(choice, self._budget("latency", 1.0, latency, now))
            trials[choice] = _Trial(
                model=trial, removed=removed, measured=measured, predicted_ms=predicted, worst=worst
            )
            say(
                f"  widths proposed: {predicted:.3f} ms predicted, {measured.ms:.3f} ms measured, "
                f"{limits['latency']:.3f} ms asked of this cut"
            )
            if CLOSE[0] <= worst <= CLOSE[1] or (is_least and worst > 1):
                break
            for name, budget in budgets.items():
                allowed[name] = allocator.total(choice, budget) / ratios[name]
        nearest = min(
            trials.values(),
            key=lambda trial: (trial.worst > 1 + TOLERANCE, abs(math.log(trial.worst))),
        )
        return nearest, len(trials)

    def _limits(self, progress: float) -> dict[str, float]:
        """Returns what each cost may be after a share of the whole way, on a geometric path.

        Latency always has a limit: the pruned network must not be slower.
        """
        config, full = self._config, self.unpruned
        ratios = {"latency": config.latency_ratio}
        if config.latency_ms:
            ratios["latency"] = min(config.latency_ratio, config.latency_ms / full.ms)
        for name, ratio in (("MACs", config.macs_ratio), ("size", config.size_ratio)):
            if ratio < 1:
                ratios[name] = ratio
        return {name: _value(full, name) * ratio**progress for name, ratio in ratios.items()}

    def _budget(self, name: str, limit: float, latency: LatencyModel, now: Measured) -> Budget:
        cost: Cost = latency.layer_ms
        if name == "MACs":
            cost = lambda layer, ins, outs: latency.shapes[layer].macs(ins, outs)  # noqa: E731
        elif name == "size":
            size = BYTES[self._config.target_precision]
            cost = lambda layer, ins, outs: size * latency.shapes[layer].weights(ins, outs)  # noqa: E731
        layers = sum(cost(layer, *full) for layer, full in latency.full.items())
        return Budget(name=name, cost=cost, constant=_value(now, name) - layers, limit=limit)

    def _latency_model(
        self, model: Classifier, now: Measured, groups: Sequence[Group]
    ) -> LatencyModel:
        with waiting("tracing the network"):
            lowered = lower(model)
        shapes = layer_shapes(lowered, self._probe.images(1))
        full = {name: layer.channels for name, layer in layers_of(lowered).items()}
        varying: dict[str, list[bool]] = {name: [False, False] for name in full}
        for group in groups:
            for use in group.uses:
                varying[use.layer][use.writes] = True
        curves = measure_layers(
            shapes,
            full,
            varying,
            precision=self._config.target_precision,
            threads=self._context.measure.threads,
        )
        profiled = sum(now.main_ms.values()) + sum(now.rest_ms.values())
        return LatencyModel(
            shapes=shapes,
            curves=curves,
            full=full,
            main_ms=now.main_ms,
            rest_ms=now.rest_ms,
            overhead_ms=now.overhead_ms,
            scale=(now.ms - now.run_ms) / profiled,
        )

    def _batches(self, model: Classifier) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields training images, normalized, and their labels."""
        split = self._context.data.train
        order = scoring_order(len(split), seed=self._context.seed)
        for batch in split.batches(SCORING_BATCH, order=order):
            yield model.normalize(batch.images), batch.labels

    def _apply(
        self, model: Classifier, problem: Problem, choice: Choice
    ) -> tuple[Classifier, tuple[str, ...]]:
        """Returns a cut copy, and the blocks that are missing in it."""
        trial = copy.deepcopy(model)
        kept = {
            group.name: best_channels(
                problem.scores[group.name], choice.widths[group.name], group.blocks
            )
            for group in problem.groups
            if choice.widths[group.name] < group.channels
        }
        keep_channels(trial.network, problem.groups, kept)
        remove_blocks(trial.network, sorted(choice.removed))
        return trial, (*self.removed, *sorted(choice.removed))


def scoring_order(n_images: int, *, seed: int) -> Tensor:
    """Returns the places of the images that importances are estimated on, int64, in whole batches.

    The gradient of a last batch of a few would be mostly noise, which counts squared.
    """
    order = torch.randperm(n_images, generator=torch.Generator().manual_seed(seed))
    whole = min(SCORING_IMAGES, n_images) // SCORING_BATCH * SCORING_BATCH
    return order[: whole or n_images]


def _value(measured: Measured, name: str) -> float:
    """Returns what is limited under that name."""
    values = {"latency": measured.ms, "MACs": measured.macs, "size": measured.size_bytes}
    return values[name]


def _message(measured: Measured, limits: Mapping[str, float]) -> str:
    found = (
        f"{name} {_value(measured, name):.4g}{UNITS[name]} (asked for {limit:.4g}{UNITS[name]})"
        for name, limit in limits.items()
        if _value(measured, name) > limit
    )
    return (
        f"pruning cannot meet the budget; the least is {', '.join(found)}; raise that limit, lower "
        "--min-channels-ratio if layers are wide, or measure again while nothing else runs"
    )
