"""What a network of other widths would cost in ONNX Runtime on this machine.

Layers are timed alone, in ONNX Runtime, at a few widths; between those the table is interpolated
along channels. What follows a layer (additions, pooling) is taken from a profile of the whole
network, and the sum is scaled to what the whole network takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor, fx

from compress.int8.graph import layers_of, set_mode
from compress.int8.layer import Layer

ALIGNED, HALF_ALIGNED = 16, 8
"""Channels that fill a kernel's vectors, and half of them."""
HALF_PAYS = 0.35
"""Half a step in channels must save so much of what the whole step saves."""
TINIEST_MS = 1e-4
"""No operator is faster."""
GEOMETRY = ("stride", "padding", "dilation")


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """A convolution or a linear layer, without its numbers of channels."""

    kernel: tuple[int, int]
    """Height and width; zeros for a linear layer."""
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    """0 for a depthwise convolution, whose groups are its channels."""
    size: tuple[int, int]
    """Height and width of the input image; rows and 1 for a linear layer."""

    @property
    def is_convolution(self) -> bool:
        """False for a linear layer."""
        return self.kernel != (0, 0)

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is convolved alone."""
        return self.groups == 0

    def macs(self, in_channels: float, out_channels: float) -> float:
        """Returns the multiply-accumulates of one image."""
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
    """How long a layer takes at any width: measured at some, interpolated between."""

    in_channels: tuple[int, ...]
    """Measured ones, ascending."""
    out_channels: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]
    """`[in][out]`."""
    half_in: float
    """Share of a whole step of 16 input channels that half a step saves."""
    half_out: float

    @property
    def half_pays(self) -> tuple[bool, bool]:
        """Whether multiples of 8 that are none of 16 are worth it, for input and output."""
        return self.half_in >= HALF_PAYS, self.half_out >= HALF_PAYS

    def __call__(self, in_channels: int, out_channels: int) -> float:
        """Returns milliseconds."""
        ins = _neighbors(in_channels, self.in_channels, self.half_in)
        outs = _neighbors(out_channels, self.out_channels, self.half_out)
        return sum(
            share_in * share_out * self.ms[i][j]
            for (i, share_in), (j, share_out) in product(ins, outs)
        )


def _neighbors(width: int, grid: Sequence[int], half: float) -> list[tuple[int, float]]:
    """Returns places in the grid and their shares, which add to 1."""
    if width in grid or len(grid) == 1:
        return [(grid.index(width) if width in grid else 0, 1.0)]
    if width % ALIGNED:
        upper = -(-width // ALIGNED) * ALIGNED
        parts = ((upper, 1 - half), (upper - ALIGNED, half))
        return [(i, share * part) for at, part in parts for i, share in _linear(at, grid)]
    return _linear(width, grid)


def _linear(width: int, grid: Sequence[int]) -> list[tuple[int, float]]:
    """Interpolates, beyond the grid's ends too."""
    place = min(max(int(np.searchsorted(grid, width)), 1), len(grid) - 1)
    low, high = grid[place - 1], grid[place]
    share = (width - low) / (high - low)
    return [(place - 1, 1 - share), (place, share)]


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """Predicts a network's latency from its layers' channels."""

    shapes: Mapping[str, LayerShape]
    curves: Mapping[str, LayerCurve]
    full: Mapping[str, tuple[int, int]]
    """Input and output channels of each layer before pruning."""
    main_ms: Mapping[str, float]
    """Of each layer's own operator at full width, in the whole network, without `overhead_ms`."""
    rest_ms: Mapping[str, float]
    """Of the operators that follow it, likewise."""
    overhead_ms: float
    """The profiler's own time for each operator, which the curves contain."""
    scale: float
    """What operators take in a run, over what the profiler says."""

    def layer_ms(self, layer: str, in_channels: int, out_channels: int) -> float:
        """Returns the time of a layer and of what follows it."""
        full = self.full[layer]
        main = self.main_ms[layer] * self._alone_ms(layer, in_channels, out_channels)
        main /= self._alone_ms(layer, *full)
        return self.scale * (main + self.rest_ms[layer] * out_channels / full[1])

    def _alone_ms(self, layer: str, in_channels: int, out_channels: int) -> float:
        alone = self.curves[layer](in_channels, out_channels) - self.overhead_ms
        return max(alone, TINIEST_MS)


def layer_shapes(lowered: fx.GraphModule, images: Tensor) -> dict[str, LayerShape]:
    """Returns the shape of every layer, in the order of execution.

    Args:
        lowered: the traced float graph.
        images: one image, `[1, C, H, W]`.
    """
    shapes: dict[str, LayerShape] = {}

    def note(name: str, layer: Layer, x: Tensor) -> None:
        if not layer.is_convolution:
            shapes[name] = LayerShape(
                kernel=(0, 0), stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1,
                size=(len(x), 1),
            )  # fmt: skip
            return
        geometry = layer.operation.keywords  # type: ignore[attr-defined]
        stride, padding, dilation = (_pair(geometry[key]) for key in GEOMETRY)
        depthwise = 1 < layer.groups == x.shape[1]
        shapes[name] = LayerShape(
            kernel=_pair(layer.weight.shape[2:]),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=0 if depthwise else layer.groups,
            size=_pair(x.shape[2:]),
        )

    hooks = [
        layer.register_forward_pre_hook(lambda _, args, n=name, m=layer: note(n, m, args[0]))
        for name, layer in layers_of(lowered).items()
    ]
    set_mode(lowered, "float")
    with torch.no_grad():
        lowered(images)
    for hook in hooks:
        hook.remove()
    return shapes


def _pair(value: Iterable[int] | int) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value
    return first, second
