"""Post-training quantization: ranges from calibration images, and corrections without labels."""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from compress.checkpoint import ALL_INT8, QuantizedLayout
from compress.data.splits import Split, batch_count, calibration_order
from compress.host import describe_host
from compress.int8.adaround import adaround
from compress.int8.config import Observer, WeightScale
from compress.int8.equalization import equalize
from compress.int8.graph import layers_of, quantizers_of, set_mode
from compress.int8.insertion import insert_quantizers
from compress.int8.layer import QMAX_WEIGHT_REDUCED, mse_weight_scale, weight_scale
from compress.int8.layerwise import correct_biases
from compress.int8.ranges import Statistics, choose_range, needs_histogram
from compress.log import track
from compress.train.config import Precision
from compress.train.precision import autocast, choose_precision

CPU = torch.device("cpu")
CALIBRATION_BATCH = 16
PROBE_IMAGES = 4
LAYERWISE_IMAGES, LAYERWISE_PIXELS = 256, 2**21
"""Limits on images and pixels for bias correction and AdaRound, which hold a layer's values for
all images in memory."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that determines a post-training quantization besides network and images."""

    observer: Observer
    weights: WeightScale
    equalization: bool = False
    bias_correction: bool = False
    adaround: bool = False
    layout: QuantizedLayout = ALL_INT8
    reduced_layers: frozenset[str] = frozenset()
    """Layers with 7-bit weights."""


def without_corrections(plan: Plan) -> Plan:
    """Returns the plan without the steps that take time but do not change the graph."""
    return dataclasses.replace(plan, bias_correction=False, adaround=False)


class Calibration:
    """The calibration images of one network, and the statistics collected from them so far.

    Args:
        lowered: the float graph.
        batches: each call iterates over the batches from the start, uint8 `[N, C, H, W]`.
    """

    def __init__(self, lowered: fx.GraphModule, batches: Callable[[], Iterable[Tensor]]) -> None:
        self._batches = batches
        self._lowered = lowered
        self._equalized: fx.GraphModule | None = None
        self._statistics: dict[tuple[bool, bool], Mapping[str, Statistics]] = {}

    def quantize(self, plan: Plan) -> fx.GraphModule:
        """Returns a fake-quantized copy with float weights, ready to train or to convert."""
        model = insert_quantizers(self.lowered(equalized=plan.equalization), plan.layout)
        statistics = self._collected(
            equalized=plan.equalization, histogram=needs_histogram(plan.observer)
        )
        for name, quantizer in quantizers_of(model).items():
            quantizer.set_range(*choose_range(statistics[name], plan.observer))
        _choose_weight_scales(model, plan)
        if plan.adaround:
            adaround(model, self._layerwise_images())
        if plan.bias_correction:
            correct_biases(model, self._layerwise_images())
        return model

    def lowered(self, *, equalized: bool) -> fx.GraphModule:
        """Returns the float graph, with equalized channel ranges on request."""
        if not equalized:
            return self._lowered
        if self._equalized is None:
            self._equalized = copy.deepcopy(self._lowered)
            equalize(self._equalized)
        return self._equalized

    def _collected(self, *, equalized: bool, histogram: bool) -> Mapping[str, Statistics]:
        """Returns the statistics of each quantizer of the fully quantized network."""
        if (equalized, histogram) not in self._statistics:
            model = insert_quantizers(self.lowered(equalized=equalized))
            statistics = collect(model, self._batches(), histogram=histogram)
            self._statistics[equalized, histogram] = statistics
        return self._statistics[equalized, histogram]

    def _layerwise_images(self) -> Tensor:
        taken: list[Tensor] = []
        for images in self._batches():
            taken.extend(images)
            allowed = min(LAYERWISE_IMAGES, max(1, LAYERWISE_PIXELS // images[0, 0].numel()))
            if len(taken) >= allowed:
                return torch.stack(taken[:allowed])
        return torch.stack(taken)


def calibration_batches(split: Split, count: int, *, seed: int) -> Iterator[Tensor]:
    """Yields batches of `count` random images, uint8 `[N, C, H, W]`."""
    order = calibration_order(split, count, seed=seed)
    batches = split.batches(CALIBRATION_BATCH, order=order)
    for batch in track(batches, "calibrating", total=batch_count(len(order), CALIBRATION_BATCH)):
        yield batch.images


def fit_to_cpu(plan: Plan, calibration: Calibration) -> Plan:
    """Returns the plan, with 7-bit weights in all layers if this CPU's sums could saturate."""
    if describe_host().multiplies_bytes_exactly:
        return plan
    names = layers_of(calibration.lowered(equalized=False))
    return dataclasses.replace(plan, reduced_layers=frozenset(names))


Score = Callable[[fx.GraphModule], tuple[float, float]]
"""Maps a network to its loss and top-1 (percent) on validation images."""


def score_float(calibration: Calibration, score: Score) -> tuple[float, float]:
    """Returns the loss and top-1 of the float network."""
    lowered = calibration.lowered(equalized=False)
    set_mode(lowered, "float")
    return score(lowered)


@torch.no_grad()
def collect(
    model: fx.GraphModule, batches: Iterable[Tensor], *, histogram: bool
) -> dict[str, Statistics]:
    """Runs images, uint8 `[N, C, H, W]`, through the float network; observes at each quantizer.

    No values are stored, so memory does not grow with the number of images. Runs in bf16 where that
    is faster: its rounding error, at most 0.4%, is less than the effect of one more image.
    """
    quantizers = quantizers_of(model)
    for quantizer in quantizers.values():
        quantizer.statistics = Statistics(histogram=histogram)
    precision: Precision | None = None
    for batch in batches:
        images = batch.float().contiguous(memory_format=torch.channels_last)
        if precision is None:
            set_mode(model, "float")
            precision = choose_precision(model, images[:PROBE_IMAGES], CPU, training=False)
            set_mode(model, "observe")
        with autocast(precision, CPU):
            model(images)
    set_mode(model, "fake_quantize")
    collected: dict[str, Statistics] = {}
    for name, quantizer in quantizers.items():
        assert quantizer.statistics is not None
        collected[name] = quantizer.statistics
        quantizer.statistics = None
    return collected


def _choose_weight_scales(model: fx.GraphModule, plan: Plan) -> None:
    choose_scale = mse_weight_scale if plan.weights == "mse" else weight_scale
    for name, layer in layers_of(model).items():
        if layer.is_int8:
            if name in plan.reduced_layers:
                layer.qmax = QMAX_WEIGHT_REDUCED
            layer.weight_scale.data.copy_(choose_scale(layer.weight.detach(), layer.qmax))
