"""Predicts the latency of a pruned network in ONNX Runtime on this machine.

Each layer is timed alone at a few widths; in between, latency is interpolated. Operators that
follow a layer (additions, pooling) come from a profile of the whole network, and the sum is scaled
to the latency of the whole network.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor, fx

from compress.architectures.hooks import watch_inputs
from compress.int8.graph import layers_of, set_mode
from compress.int8.layer import Layer
from compress.prune.groups import Use

ALIGNED, HALF_ALIGNED = 16, 8
"""Channels that fill a kernel's vector registers, and half of that."""
HALF_PAYS = 0.35
"""Half a step of channels pays off if it saves this fraction of what a whole step saves."""
TINIEST_MS = 1e-4
"""Lower bound on any operator's time."""
GEOMETRY = ("stride", "padding", "dilation")


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """A convolution or linear layer, except for its channel counts."""

    kernel: tuple[int, int]
    """Height and width; zeros for a linear layer."""
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    """0 for a depthwise convolution, which has as many groups as channels."""
    size: tuple[int, int]
    """Height and width of the input; rows and 1 for a linear layer."""

    @property
    def is_convolution(self) -> bool:
        """False for a linear layer."""
        return self.kernel != (0, 0)

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is convolved separately."""
        return self.groups == 0

    def macs(self, in_channels: float, out_channels: float) -> float:
        """Returns the multiply-accumulates per image."""
        if not self.is_convolution:
            return self.size[0] * in_channels * out_channels
        spans = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        positions = 1
        for size, kernel, stride, padding, dilation in spans:
            positions *= (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        return positions * self.weights(in_channels, out_channels)

    def weights(self, in_channels: float, out_channels: float) -> float:
        """Returns the number of weights."""
        if not self.is_convolution:
            return in_channels * out_channels
        area = self.kernel[0] * self.kernel[1]
        return area * out_channels * (1 if self.is_depthwise else in_channels / self.groups)


@dataclass(frozen=True, kw_only=True)
class LayerCurve:
    """Latency of a layer as a function of its channels: measured at some widths, interpolated."""

    in_channels: tuple[int, ...]
    """Measured widths, ascending."""
    out_channels: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]
    """`[in][out]`."""
    half_in: float
    """Savings of removing 8 input channels, relative to removing 16."""
    half_out: float

    def half_pays(self, *, writes: bool) -> bool:
        """Returns whether odd multiples of 8 output channels (else: input) save enough."""
        return (self.half_out if writes else self.half_in) >= HALF_PAYS

    def __call__(self, in_channels: int, out_channels: int) -> float:
        """Returns the latency in milliseconds."""
        ins = _neighbors(in_channels, self.in_channels, self.half_in)
        outs = _neighbors(out_channels, self.out_channels, self.half_out)
        return sum(
            share_in * share_out * self.ms[i][j]
            for (i, share_in), (j, share_out) in product(ins, outs)
        )


def _neighbors(width: int, grid: Sequence[int], half: float) -> list[tuple[int, float]]:
    """Returns indices into the grid with their weights, which sum to 1."""
    if width in grid or len(grid) == 1:
        return [(grid.index(width) if width in grid else 0, 1.0)]
    if width % ALIGNED:
        upper = math.ceil(width / ALIGNED) * ALIGNED
        parts = ((upper, 1 - half), (upper - ALIGNED, half))
        return [(i, share * part) for at, part in parts for i, share in _linear(at, grid)]
    return _linear(width, grid)


def _linear(width: int, grid: Sequence[int]) -> list[tuple[int, float]]:
    """Interpolates linearly; extrapolates beyond the grid's ends."""
    index = min(max(int(np.searchsorted(grid, width)), 1), len(grid) - 1)
    low, high = grid[index - 1], grid[index]
    share = (width - low) / (high - low)
    return [(index - 1, 1 - share), (index, share)]


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """Predicts a network's latency from the channels of its layers."""

    shapes: Mapping[str, LayerShape]
    curves: Mapping[str, LayerCurve]
    unpruned: Mapping[str, tuple[int, int]]
    """Input and output channels of each layer before pruning."""
    main_ms: Mapping[str, float]
    """Time of each layer's own operator in the whole unpruned network, less the overhead."""
    rest_ms: Mapping[str, float]
    """Time of the operators that follow each layer, less the overhead."""
    overhead_ms: float
    """The profiler's own time per operator, which the curves include."""
    scale: float
    """Actual over profiled time of the operators."""

    def layer_ms(self, layer: str, in_channels: int, out_channels: int) -> float:
        """Returns the milliseconds of a layer and the operators that follow it."""
        unpruned = self.unpruned[layer]
        main = self.main_ms[layer] * self._alone_ms(layer, in_channels, out_channels)
        main /= self._alone_ms(layer, *unpruned)
        return self.scale * (main + self.rest_ms[layer] * out_channels / unpruned[1])

    def half_pays(self, use: Use) -> bool:
        """Returns whether odd multiples of 8 channels save enough in a layer."""
        return self.curves[use.layer].half_pays(writes=use.writes)

    def _alone_ms(self, layer: str, in_channels: int, out_channels: int) -> float:
        alone = self.curves[layer](in_channels, out_channels) - self.overhead_ms
        return max(alone, TINIEST_MS)


def layer_shapes(lowered: fx.GraphModule, images: Tensor) -> dict[str, LayerShape]:
    """Returns the shape of every layer of a traced float graph, in execution order.

    It runs one image, uint8 `[1, C, H, W]`.
    """
    shapes: dict[str, LayerShape] = {}

    layers = layers_of(lowered)

    def note(name: str, x: Tensor) -> None:
        shapes[name] = _shape(layers[name], x)

    set_mode(lowered, "float")
    with torch.no_grad(), watch_inputs(layers, note):
        lowered(images)
    return shapes


def _shape(layer: Layer, x: Tensor) -> LayerShape:
    if not layer.is_convolution:
        return LayerShape(
            kernel=(0, 0), stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1,
            size=(len(x), 1),
        )  # fmt: skip
    geometry = layer.operation.keywords  # type: ignore[attr-defined]
    stride, padding, dilation = (_pair(geometry[key]) for key in GEOMETRY)
    depthwise = 1 < layer.groups == x.shape[1]
    return LayerShape(
        kernel=_pair(layer.weight.shape[2:]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=0 if depthwise else layer.groups,
        size=_pair(x.shape[2:]),
    )


def _pair(value: Iterable[int] | int) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value
    return first, second
