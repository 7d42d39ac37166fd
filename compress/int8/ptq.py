"""Post-training quantization: ranges from some images, and repairs that need no labels."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx

from compress.checkpoint import ALL_INT8, QuantizedLayout
from compress.int8.layer import QMAX_WEIGHT_REDUCED, mse_weight_scale, weight_scale
from compress.int8.placement import layers_of, place, quantizers_of, set_mode
from compress.int8.ranges import Observer, Statistics, choose_range, needs_histogram
from compress.int8.repair import correct_biases, equalize, learn_rounding
from compress.train.precision import Precision, autocast, choose_precision

CPU = torch.device("cpu")
PROBE_IMAGES = 4
REPAIR_IMAGES, REPAIR_PIXELS = 256, 2**21
"""Repairs hold all layers' values of some images in memory: so many images and pixels at most."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that decides a post-training quantization besides the network and the images."""

    observer: Observer
    weights: Literal["max", "mse"]
    equalize: bool = False
    correct_biases: bool = False
    learn_rounding: bool = False
    layout: QuantizedLayout = ALL_INT8
    reduced_layers: frozenset[str] = frozenset()
    """Layers with 7-bit weights."""


def without_repairs(plan: Plan) -> Plan:
    """Returns the plan without the repairs that take time and leave the graph as it is."""
    return dataclasses.replace(plan, correct_biases=False, learn_rounding=False)


class Calibration:
    """Calibration images, and what was learned from them so far about one prepared network.

    Args:
        prepared: the float graph.
        batches: each call starts anew with the batches of images, uint8 `[N, C, H, W]`.
    """

    def __init__(self, prepared: fx.GraphModule, batches: Callable[[], Iterable[Tensor]]) -> None:
        self._batches = batches
        self._prepared = {False: prepared}
        self._statistics: dict[tuple[bool, bool], Mapping[str, Statistics]] = {}

    def quantize(self, plan: Plan) -> fx.GraphModule:
        """Returns a quantized copy, with float master weights, ready to train or to freeze."""
        prepared = self.prepared(equalized=plan.equalize)
        placed = place(prepared, plan.layout)
        statistics = self.statistics(plan.equalize, needs_histogram(plan.observer))
        apply_ranges(placed, statistics, plan.observer)
        for name, layer in layers_of(placed).items():
            if layer.source is not None:
                if name in plan.reduced_layers:
                    layer.qmax = QMAX_WEIGHT_REDUCED
                find = mse_weight_scale if plan.weights == "mse" else weight_scale
                layer.weight_scale.data.copy_(find(layer.weight.detach(), layer.qmax))
        if plan.learn_rounding:
            learn_rounding(placed, self._repair_images())
        if plan.correct_biases:
            correct_biases(placed, self._repair_images())
        return placed

    def prepared(self, *, equalized: bool) -> fx.GraphModule:
        """Returns the float graph, with balanced channel ranges if asked for."""
        if equalized not in self._prepared:
            balanced = copy.deepcopy(self._prepared[False])
            equalize(balanced)
            self._prepared[equalized] = balanced
        return self._prepared[equalized]

    def statistics(self, equalized: bool, histogram: bool) -> Mapping[str, Statistics]:
        """Returns what the images showed at each quantizer of the fully quantized network."""
        if (equalized, histogram) not in self._statistics:
            placed = place(self.prepared(equalized=equalized))
            found = collect(placed, self._batches(), histogram=histogram)
            self._statistics[equalized, histogram] = found
        return self._statistics[equalized, histogram]

    def _repair_images(self) -> Tensor:
        taken: list[Tensor] = []
        for images in self._batches():
            taken.extend(images)
            allowed = min(REPAIR_IMAGES, max(1, REPAIR_PIXELS // images[0, 0].numel()))
            if len(taken) >= allowed:
                return torch.stack(taken[:allowed])
        return torch.stack(taken)


Score = Callable[[fx.GraphModule], tuple[float, float]]
"""From a network to loss and top-1 (percent) on validation images."""


def score_float(calibration: Calibration, score: Score) -> tuple[float, float]:
    """Returns the float network's loss and top-1."""
    prepared = calibration.prepared(equalized=False)
    set_mode(prepared, "float")
    return score(prepared)


@torch.no_grad()
def collect(
    placed: fx.GraphModule, batches: Iterable[Tensor], *, histogram: bool
) -> dict[str, Statistics]:
    """Runs images through a placed network in float and notes what passes each quantizer.

    Nothing of them is kept, so memory does not grow with their number. In bf16 where that is
    faster: its rounding, at most 0.4 %, is less than what one image more would change.

    Args:
        placed: with quantizers in place.
        batches: images, uint8 `[N, C, H, W]`.
        histogram: note histograms too, which some observers need.
    """
    quantizers = quantizers_of(placed)
    for quantizer in quantizers.values():
        quantizer.statistics = Statistics(histogram=histogram)
    precision: Precision | None = None
    for batch in batches:
        images = batch.float().contiguous(memory_format=torch.channels_last)
        if precision is None:
            set_mode(placed, "float")
            precision = choose_precision(placed, images[:PROBE_IMAGES], CPU, training=False)
            set_mode(placed, "observe")
        with autocast(precision, CPU):
            placed(images)
    set_mode(placed, "round")
    found: dict[str, Statistics] = {}
    for name, quantizer in quantizers.items():
        assert quantizer.statistics is not None
        found[name] = quantizer.statistics
        quantizer.statistics = None
    return found


def apply_ranges(
    placed: fx.GraphModule, statistics: Mapping[str, Statistics], observer: Observer
) -> None:
    """Sets the range of every quantizer, in place."""
    for name, quantizer in quantizers_of(placed).items():
        quantizer.set_range(*choose_range(statistics[name], observer))
