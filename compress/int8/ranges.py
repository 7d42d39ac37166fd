"""Observers: choose the range that a tensor's 256 levels span from its values."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from compress.int8.config import Observer

BINS = 2048
LEVELS = 256
MOMENTUM = 0.1
"""Weight of a new batch in the moving average; less for a batch with fewer values."""
PERCENTILE = 99.99
SAMPLE = 200_000
"""Approximate number of values per batch that a histogram counts."""
SHRINKS = np.linspace(0.2, 1.0, 81)
"""Fractions of the full range that the searches try."""
MIN_RANGE = 1e-6
"""A range of zero has no scale."""


class Statistics:
    """Streaming statistics of a tensor's values, none of which are stored.

    The histogram has a fixed number of bins. When a value falls outside, bins are merged in pairs
    until the histogram is wide enough, so counts stay exact and memory flat. Large batches are
    sampled for it; the extremes are always those of all values.
    """

    def __init__(self, *, histogram: bool) -> None:
        self.low = self.high = 0.0
        self.average: tuple[float, float] | None = None
        self.most_values = 0
        self.counts = np.zeros(BINS) if histogram else None
        self.start = self.width = 0.0

    def update(self, x: Tensor) -> None:
        """Adds a batch, float of any shape."""
        x = _flat(x)
        lowest, highest = (float(value) for value in torch.aminmax(x))
        self.low, self.high = min(self.low, lowest), max(self.high, highest)
        if self.average is None:
            self.average = (lowest, highest)
        before = self.average
        self.most_values = max(self.most_values, len(x))
        weight = MOMENTUM * len(x) / self.most_values
        self.average = (
            before[0] + weight * (lowest - before[0]),
            before[1] + weight * (highest - before[1]),
        )
        if self.counts is not None:
            self._count(x)

    @property
    def centers(self) -> np.ndarray:
        """Centers of the bins, float64 `[BINS]`."""
        return np.asarray(self.start + self.width * (np.arange(BINS) + 0.5), dtype=np.float64)

    def _count(self, x: Tensor) -> None:
        assert self.counts is not None
        if not self.width:
            span = max(self.high - self.low, MIN_RANGE)
            self.start, self.width = self.low, span / BINS
        while self.start + self.width * BINS < self.high:
            self.counts = np.concatenate([_merge_pairs(self.counts), np.zeros(BINS // 2)])
            self.width *= 2
        while self.start > self.low:
            self.counts = np.concatenate([np.zeros(BINS // 2), _merge_pairs(self.counts)])
            self.start -= self.width * BINS
            self.width *= 2
        # A stride that shares no divisor with most channel counts.
        stride = 6 * (len(x) // (6 * SAMPLE)) + 1
        x = x[::stride]
        end = self.start + self.width * BINS
        self.counts += stride * torch.histc(x.float(), BINS, self.start, end).double().numpy()


def choose_range(statistics: Statistics, observer: Observer) -> tuple[float, float]:
    """Returns the lowest and the highest value that the levels span."""
    return _OBSERVERS[observer](statistics)


def needs_histogram(observer: Observer) -> bool:
    """Returns whether an observer needs more than the extremes."""
    return observer not in {"minmax", "average"}


def _flat(x: Tensor) -> Tensor:
    """Returns all values in memory order: any other order takes ten times as long to read."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1)
    return x.reshape(-1)


def _merge_pairs(counts: np.ndarray) -> np.ndarray:
    return np.asarray(counts.reshape(-1, 2).sum(1))


def _minmax(statistics: Statistics) -> tuple[float, float]:
    return statistics.low, statistics.high


def _average(statistics: Statistics) -> tuple[float, float]:
    """Moving average of the batches' extremes (Jacob et al., arXiv 1712.05877, section 3.1)."""
    assert statistics.average is not None
    return statistics.average


def _percentile(statistics: Statistics) -> tuple[float, float]:
    """Drops the same small fraction of values at both ends."""
    counts = statistics.counts
    assert counts is not None
    shares = np.cumsum(counts) / counts.sum()
    outside = 1 - PERCENTILE / 100
    first = int(np.searchsorted(shares, outside, side="right"))
    last = int(np.searchsorted(shares, 1 - outside))
    edges = statistics.start + statistics.width * np.array([first, last + 1])
    return max(statistics.low, float(edges[0])), min(statistics.high, float(edges[1]))


def _mse(statistics: Statistics) -> tuple[float, float]:
    """Least mean squared error of rounding and clipping; searches one end, then the other."""
    low, high = _minmax(statistics)
    high = min((high * share for share in SHRINKS), key=lambda end: _error(statistics, low, end))
    low = min((low * share for share in SHRINKS), key=lambda end: _error(statistics, end, high))
    return low, high


def _error(statistics: Statistics, low: float, high: float) -> float:
    assert statistics.counts is not None
    scale, zero_point = qparams_of(low, high)
    x = statistics.centers
    levels = np.clip(np.round(x / scale) + zero_point, 0, LEVELS - 1)
    error = ((levels - zero_point) * scale - x) ** 2
    return float((statistics.counts * error).sum())


def _entropy(statistics: Statistics) -> tuple[float, float]:
    """Least Kullback-Leibler divergence between the clipped histogram and its quantized version.

    As in TensorRT (Migacz, "8-bit Inference with TensorRT", GTC 2017), with both ends shrunk
    toward zero by the same factor. Zeros, of which ReLU produces many, are ignored: they are on a
    level for any range, but would look spread over all bins of that level.
    """
    low, high = _minmax(statistics)
    share = min(SHRINKS, key=lambda share: _divergence(statistics, low * share, high * share))
    return low * float(share), high * float(share)


def _divergence(statistics: Statistics, low: float, high: float) -> float:
    assert statistics.counts is not None
    x = statistics.centers
    counts = np.where(np.abs(x) <= statistics.width, 0, statistics.counts)
    inside = (x >= low) & (x <= high)
    kept = np.flatnonzero(inside)
    if not len(kept):
        return float("inf")
    reference = counts[kept].copy()
    reference[0] += counts[: kept[0]].sum()
    reference[-1] += counts[kept[-1] + 1 :].sum()
    scale, zero_point = qparams_of(low, high)
    levels = np.clip(np.round(x[kept] / scale) + zero_point, 0, LEVELS - 1).astype(int)
    filled = counts[kept] > 0
    mass = np.bincount(levels, weights=counts[kept], minlength=LEVELS)
    bins = np.bincount(levels, weights=filled, minlength=LEVELS)
    spread = np.where(filled, mass[levels] / np.maximum(bins[levels], 1), 0)
    p, q = reference / reference.sum(), spread / max(spread.sum(), 1e-12)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))).sum())


def qparams_of(low: float, high: float) -> tuple[float, int]:
    """Returns scale and zero point so that 256 levels span `low`..`high` and include zero.

    A range without negative numbers has zero point 0.
    """
    low, high = min(low, 0.0), max(high, 0.0, low + MIN_RANGE)
    scale = (high - low) / (LEVELS - 1)
    return scale, min(LEVELS - 1, round(-low / scale))


_OBSERVERS: dict[Observer, Callable[[Statistics], tuple[float, float]]] = {
    "minmax": _minmax,
    "average": _average,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
