"""One cut: propose widths, build and measure them in ONNX Runtime, correct the budget, repeat."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx.parser
import torch
from torch import Tensor

from compress.architectures.build import Classifier, build, example_input
from compress.architectures.resize import differing_shapes, remove_blocks
from compress.architectures.spec import ModelSpec
from compress.checkpoint import Checkpoint
from compress.export.onnx_file import export_onnx
from compress.measure.cost import count_macs
from compress.measure.latency import measure_latency
from compress.measure.memory import remembered
from compress.progress import say, waiting
from compress.prune.allocation import (
    Allocator,
    Budget,
    BudgetError,
    Choice,
    Cost,
    Problem,
    candidate_widths,
)
from compress.prune.groups import Group, find_groups
from compress.prune.importance import score_channels
from compress.prune.latency import LatencyModel, layer_shapes
from compress.prune.surgery import best_channels, keep_channels, residual_blocks
from compress.prune.table import Arithmetic, measure_layers
from compress.quantize.placement import freeze, layers_of, prepare
from compress.quantize.ptq import Calibration, Plan
from compress.quantize.speed import LAYER_KINDS, operators_by_layer

if TYPE_CHECKING:
    from compress.context import Context
    from compress.prune.stage import PruneConfig

QUICK = Plan(observer="minmax", weights="max")
"""Ranges do not change the speed."""
CALIBRATION_IMAGES = 16
SCORING_IMAGES, SCORING_BATCH = 1024, 32
"""Training images that importances are estimated on."""
TRIES, ROUNDS = 4, 40
CLOSE, TOLERANCE = (0.96, 1.01), 0.05
"""A cut is taken at once if it is so near its budget; a nearer one is not looked for."""
NOTHING = """<ir_version: 9, opset_import: ["": 18]>
nothing (uint8[batch, 8] x) => (uint8[batch, 8] y) { y = Identity(x) }"""
BYTES = {"int8": 1, "float": 4}
UNITS = {"latency": " ms", "MACs": "", "size": " bytes"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A network's file in ONNX Runtime."""

    ms: float
    size_bytes: int
    macs: int
    run_ms: float
    """What a run takes besides its operators."""
    main_ms: Mapping[str, float]
    """Of each layer's own operator, by the profiler."""
    rest_ms: Mapping[str, float]
    """Of the operators that follow it."""
    floor_ms: Mapping[str, float]
    """The part of those that would stay with no channels at all."""


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
        model: likewise, loaded; a copy is kept.
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
        self._checkpoint, self._config, self._context = checkpoint, config, context
        self._unpruned, self._scratch = copy.deepcopy(model), scratch
        self.removed: tuple[str, ...] = checkpoint.description.removed
        """Residual blocks left out so far."""
        self.fixed: Mapping[str, str] = {}
        """What cannot be pruned, and why."""
        self._reference_ms: float | None = None
        self.unpruned = self._measure(model, self.removed)
        self._reference_ms = self.unpruned.ms

    def cut(self, model: Classifier, number: int) -> Cut:
        """Makes the cut of the given number, in place.

        Raises:
            ValueError: the budget cannot be met; says what the least is.
        """
        limits = self._limits(number / self._config.steps)
        now = self._measure(model, self.removed)
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
            candidates=candidate_widths(found.groups, pays, self._config.floor),
            blocks=residual_blocks(network, example) if self._config.depth else (),
        )
        best, tries = self._search(model, problem, latency, now, limits)
        if best.worst > 1 + TOLERANCE:
            raise ValueError(_message(best.measured, limits))
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
            if choice in trials:
                break
            trial, removed = self._apply(model, problem, choice)
            measured = self._measure(trial, removed)
            ratios = {name: _value(measured, name) / limit for name, limit in limits.items()}
            worst = max(ratios.values())
            predicted = allocator.total(choice, self._budget("latency", 1.0, latency, now))
            trials[choice] = _Trial(
                model=trial, removed=removed, measured=measured, predicted_ms=predicted, worst=worst
            )
            say(f"  widths proposed: {predicted:.3f} ms predicted, {measured.ms:.3f} ms measured")
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
            size = BYTES[self._config.arithmetic]
            cost = lambda layer, ins, outs: size * latency.shapes[layer].weights(ins, outs)  # noqa: E731
        layers = sum(cost(layer, *full) for layer, full in latency.full.items())
        return Budget(name=name, cost=cost, constant=_value(now, name) - layers, limit=limit)

    def _latency_model(
        self, model: Classifier, now: Measured, groups: Sequence[Group]
    ) -> LatencyModel:
        with waiting("tracing the network"):
            prepared = prepare(model)
        shapes = layer_shapes(prepared, self._images(1))
        full = {name: layer.channels for name, layer in layers_of(prepared).items()}
        varying: dict[str, list[bool]] = {name: [False, False] for name in full}
        for group in groups:
            for use in group.uses:
                varying[use.layer][use.writes] = True
        curves = measure_layers(
            shapes,
            full,
            varying,
            arithmetic=self._config.arithmetic,
            threads=self._context.measure.threads,
        )
        profiled = sum(now.main_ms.values()) + sum(now.rest_ms.values())
        return LatencyModel(
            shapes=shapes,
            curves=curves,
            full=full,
            main_ms=now.main_ms,
            rest_ms=now.rest_ms,
            floor_ms=now.floor_ms,
            scale=(now.ms - now.run_ms) / profiled,
        )

    def _batches(self, model: Classifier) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields training images, normalised, and their labels."""
        split = self._context.data.train
        generator = torch.Generator().manual_seed(self._context.seed)
        order = torch.randperm(len(split), generator=generator)[:SCORING_IMAGES]
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

    def _measure(self, model: Classifier, removed: tuple[str, ...]) -> Measured:
        """Exports, quantises with quick ranges and times a network, unless it was done before."""
        spec, measure = self._checkpoint.spec, self._context.measure
        original = build(spec).network
        remove_blocks(original, removed)
        facts = {
            "spec": dataclasses.asdict(spec),
            "shapes": differing_shapes(model.network, original),
            "removed": removed,
            "arithmetic": self._config.arithmetic,
            "threads": measure.threads,
            "batch": measure.batch,
        }
        return remembered(Measured, "pruned", facts, lambda: self._time(model))

    def _time(self, model: Classifier) -> Measured:
        unpruned, file = self._scratch / "unpruned.onnx", self._scratch / "pruned.onnx"
        if not unpruned.is_file():
            self._export(self._unpruned, unpruned)
        self._export(model, file)
        threads = self._context.measure.threads
        nothing = self._scratch / "nothing.onnx"
        onnx.save(onnx.parser.parse_model(NOTHING), nothing)
        first, latency, empty = measure_latency(
            [unpruned, file, nothing],
            threads=threads,
            batch=self._context.measure.batch,
            rounds=ROUNDS,
        )
        # Against the unpruned file in the same minutes, so that a slow hour does not count.
        reference = self._reference_ms or first.latency_ms_p50
        main: dict[str, float] = {}
        rest: dict[str, float] = {}
        floor: dict[str, float] = {}
        found = operators_by_layer(file, threads=threads)
        least = min(operator.ms for operators in found.values() for operator in operators)
        for name, operators in found.items():
            others = [one.ms for one in operators if one.kind not in LAYER_KINDS]
            main[name] = sum(one.ms for one in operators if one.kind in LAYER_KINDS)
            rest[name], floor[name] = sum(others), least * len(others)
        return Measured(
            ms=reference / latency.speedup,
            size_bytes=file.stat().st_size,
            macs=count_macs(model, self._checkpoint.spec),
            run_ms=empty.latency_ms_p50 * reference / first.latency_ms_p50,
            main_ms=main,
            rest_ms=rest,
            floor_ms=floor,
        )

    def _export(self, model: Classifier, path: Path) -> None:
        images = self._images(CALIBRATION_IMAGES)
        arithmetic = self._config.arithmetic
        export_to_time(model, self._checkpoint.spec, images, path, arithmetic=arithmetic)

    def _images(self, count: int) -> Tensor:
        """Returns the first training images, uint8 `[count, C, H, W]`."""
        return next(iter(self._context.data.train.batches(count))).images


def export_to_time(
    model: Classifier, spec: ModelSpec, images: Tensor, path: Path, *, arithmetic: Arithmetic
) -> None:
    """Writes a network's ONNX file for timing: if int8, with ranges from a few images.

    Args:
        model: float; left as it is.
        spec: of the network.
        images: that set the ranges, uint8 `[N, C, H, W]`.
        path: of the file.
        arithmetic: of the file.
    """
    exported: torch.nn.Module = model
    with waiting("building the file to time"):
        if arithmetic == "int8":
            calibration = Calibration(prepare(model), lambda: [images])
            exported = freeze(calibration.quantize(QUICK))
        export_onnx(exported, spec, path, digest="", stage="prune")


def _value(measured: Measured, name: str) -> float:
    """Returns what is limited under that name."""
    values = {"latency": measured.ms, "MACs": measured.macs, "size": measured.size_bytes}
    return values[name]


def _message(measured: Measured, limits: Mapping[str, float]) -> str:
    found = (
        f"{name} {_value(measured, name):.4g}{UNITS[name]} (asked for {limit:.4g})"
        for name, limit in limits.items()
        if _value(measured, name) > limit
    )
    return (
        f"pruning cannot meet the budget; the least is {', '.join(found)}; ask for more, lower "
        "--floor, or measure again while nothing else runs"
    )
