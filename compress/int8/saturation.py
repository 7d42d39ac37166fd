"""Emulates what ONNX Runtime computes on x86 CPUs without VNNI.

Their instruction for uint8 times int8 (vpmaddubsw) adds two adjacent products in int16, which
saturates at 32,767 and costs accuracy (onnxruntime#14642, #5849). Adjacent products are those of
neighboring input channels at the same kernel position. Depthwise kernels do not use the
instruction.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from compress.data.splits import Split, stratified_sample
from compress.int8.conversion import convert
from compress.int8.graph import layers_of
from compress.int8.layer import Layer
from compress.int8.ptq import Calibration, Plan
from compress.int8.quantizer import QMAX_ACTIVATION, ActivationQuantizer, ImageInput

INT16 = (-32768, 32767)
PAIRS_AT_ONCE = 64
BATCH = 16
"""Batch size; small, since the unfolded inputs of a large image take a lot of memory."""


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """The effect of saturation on a network, on CPUs without VNNI."""

    layers: tuple[str, ...]
    """Layers whose sums saturate on these images."""
    top1: float
    """Top-1 with exact sums, in percent."""
    top1_saturated: float
    """Top-1 with saturating sums, in percent."""
    n_images: int


@torch.no_grad()
def find_saturation(model: fx.GraphModule, split: Split, n_images: int) -> Saturation:
    """Finds an int8 network's layers that saturate on CPUs without VNNI, and the loss of accuracy.

    Both are measured on a sample of `n_images` from all classes.
    """
    order = stratified_sample(split.labels, n_images, seed=0)

    def top1() -> float:
        correct = 0
        for batch in split.batches(BATCH, order=order):
            correct += int((model(batch.images).argmax(1) == batch.labels).sum())
        return 100 * correct / len(order)

    exact = top1()
    with emulating_saturation(model) as saturating:
        saturated = top1()
    return Saturation(
        layers=tuple(name for name in layers_of(model) if name in saturating),
        top1=exact,
        top1_saturated=saturated,
        n_images=len(order),
    )


@contextmanager
def emulating_saturation(model: fx.GraphModule) -> Iterator[set[str]]:
    """Makes an int8 network compute like CPUs without VNNI; yields the layers that saturated."""
    saturating: set[str] = set()

    def saturation_of(name: str, layer: Layer) -> Callable[[Tensor, Tensor], Tensor]:
        zero_point = _input_zero_point(model, layer)

        def saturate(sums: Tensor, levels: Tensor) -> Tensor:
            excess = saturation_excess(layer, levels, zero_point)
            if bool(excess.any()):
                saturating.add(name)
            return sums - excess

        return saturate

    layers = layers_of(model)
    for name, layer in layers.items():
        if layer.converted and layer.groups < len(layer.weight_int8):
            layer.saturate = saturation_of(name, layer)
    try:
        yield saturating
    finally:
        for layer in layers.values():
            layer.saturate = None


def reduce_range(calibration: Calibration, plan: Plan, split: Split, n_images: int) -> Plan:
    """Returns the plan with 7-bit weights in the layers that saturate, and only there."""
    while True:  # once earlier layers no longer saturate, another may start to
        model = convert(calibration.quantize(plan))
        layers = find_saturation(model, split, n_images).layers
        if not layers:
            return plan
        reduced = plan.reduced_layers | frozenset(layers)
        assert reduced != plan.reduced_layers, "7-bit weights cannot saturate"
        plan = dataclasses.replace(plan, reduced_layers=reduced)


def saturation_excess(layer: Layer, levels: Tensor, zero_point: int) -> Tensor:
    """Returns by how much a layer's exact sums exceed the saturating ones.

    Args:
        layer: converted.
        levels: its input, uint8 levels minus zero point, float `[N, C, H, W]` or `[N, in]`.
        zero_point: zero point of the input, also the value of the padding.

    Returns:
        Float, in the shape of the layer's output.
    """
    raw, weight = levels + zero_point, layer.weight_int8.float()
    if layer.is_convolution:
        columns, weights = _columns(layer, raw, zero_point)
    else:
        columns, weights = [raw[:, :, None]], [weight]
    parts = [_excess(column, part) for column, part in zip(columns, weights, strict=True)]
    shape = layer.operation(levels[:1], weight, None).shape[1:]
    return torch.cat(parts, dim=1).reshape(len(raw), *shape)


def _columns(layer: Layer, raw: Tensor, zero_point: int) -> tuple[list[Tensor], list[Tensor]]:
    """Returns inputs `[N, K, L]` and weights `[out, K]` per group, channels innermost."""
    geometry = layer.operation.keywords  # type: ignore[attr-defined]
    weight = layer.weight_int8.float()
    height, width = weight.shape[2:]
    padding = geometry["padding"]
    top, left = (padding, padding) if isinstance(padding, int) else padding
    sides = zip((left, left, top, top), geometry["pad"], strict=True)
    padded = F.pad(raw, [even + uneven for even, uneven in sides], value=float(zero_point))
    columns, weights = [], []
    for part, kernel in zip(
        padded.chunk(layer.groups, 1), weight.chunk(layer.groups, 0), strict=True
    ):
        unfolded = F.unfold(
            part, (height, width), dilation=geometry["dilation"], stride=geometry["stride"]
        )
        channels, positions = part.shape[1], height * width
        by_position = unfolded.view(len(raw), channels, positions, -1).transpose(1, 2)
        columns.append(by_position.reshape(len(raw), channels * positions, -1))
        weights.append(kernel.permute(0, 2, 3, 1).flatten(1))
    return columns, weights


def _excess(columns: Tensor, weight: Tensor) -> Tensor:
    """Returns by how much the sums of pairs exceed int16, `[N, out, L]`."""
    if weight.shape[1] % 2:
        weight, columns = F.pad(weight, (0, 1)), F.pad(columns, (0, 0, 0, 1))
    pairs = weight.view(len(weight), -1, 2)
    largest = QMAX_ACTIVATION * pairs.clamp_min(0).sum(2)
    smallest = QMAX_ACTIVATION * pairs.clamp_max(0).sum(2)
    risky = ((largest > INT16[1]) | (smallest < INT16[0])).nonzero()
    total = torch.zeros(len(columns), len(weight), columns.shape[2])
    for outputs, positions in zip(
        risky[:, 0].split(PAIRS_AT_ONCE), risky[:, 1].split(PAIRS_AT_ONCE), strict=True
    ):
        chosen = pairs[outputs, positions]
        sums = columns[:, 2 * positions] * chosen[:, 0, None]
        sums += columns[:, 2 * positions + 1] * chosen[:, 1, None]
        total.index_add_(1, outputs, sums - sums.clamp(*INT16))
    return total


def _input_zero_point(model: fx.GraphModule, layer: Layer) -> int:
    assert layer.input_quantizer is not None
    quantizer = model.get_submodule(layer.input_quantizer)
    assert isinstance(quantizer, ActivationQuantizer | ImageInput)
    return int(quantizer.zero_point)
