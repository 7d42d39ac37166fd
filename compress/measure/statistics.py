"""Intervals and tests: accuracy of one model, of two on the same images, ratios of times."""

import base64
import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, t

Z_95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Top-1 of one model minus that of another on the same images."""

    points: float
    """Percentage points."""
    points_ci95: tuple[float, float]
    """Newcombe's interval of the paired difference."""
    gained: int
    """Images that only the first model classifies correctly."""
    lost: int
    """Images that only the second one does."""
    p_value: float
    """McNemar's exact test of no difference."""
    n_images: int

    @property
    def is_significant(self) -> bool:
        """Whether the models differ at the 5 % level."""
        return self.p_value < LEVEL

    def doubts(self, max_drop: float) -> tuple[str, ...]:
        """Returns a finding if too few images were compared to tell whether the drop is larger."""
        low, high = self.points_ci95
        if not low < -max_drop <= high:
            return ()
        return (
            f"{self.n_images} validation images are too few to tell whether int8 loses more than "
            f"max_drop = {max_drop:g}: {self.points:+.2f} points, 95 % interval {low:.2f} to "
            f"{high:.2f}; one image is {100 / self.n_images:.2g} points",
        )


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion, in percent (Wilson 1927, equation 3)."""
    share, z2 = correct / n, Z_95**2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # The interval contains the proportion; rounding must not exclude 0 or 1.
    return 100 * max(0.0, min(share, center - half)), 100 * min(1.0, max(share, center + half))


def pack_bools(values: np.ndarray) -> str:
    """Returns bool `[n]` as text: bits, the first one the highest of its byte, in base64."""
    return base64.b64encode(np.packbits(values).tobytes()).decode()


def unpack_bools(text: str, n: int) -> np.ndarray:
    """Returns bool `[n]` from `pack_bools`.

    Raises:
        ValueError: the text is damaged.
    """
    packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if len(packed) != -(-n // 8):
        raise ValueError(f"{len(packed)} bytes do not hold {n} bits")
    return np.unpackbits(packed, count=n).astype(bool)


def compare_paired(right: np.ndarray, baseline: np.ndarray) -> PairedDifference:
    """Compares two models on the same images; bool `[n]`: which images each classifies correctly.

    The test depends only on the images on which the models disagree (McNemar 1947).
    """
    gained, lost = int((right & ~baseline).sum()), int((baseline & ~right).sum())
    both, n = int((right & baseline).sum()), len(right)
    return PairedDifference(
        points=100 * (gained - lost) / n,
        points_ci95=newcombe_interval(both, gained, lost, n),
        gained=gained,
        lost=lost,
        p_value=mcnemar_p_value(gained, lost),
        n_images=n,
    )


def mcnemar_p_value(gained: int, lost: int) -> float:
    """Returns McNemar's exact p-value of images that flipped each way."""
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def newcombe_interval(both: int, gained: int, lost: int, n: int) -> tuple[float, float]:
    """Returns the 95 % interval of a paired difference, in percentage points.

    Method 10 of Newcombe, Statistics in Medicine 17 (1998): the two Wilson intervals combined, with
    the correlation of the pairs.

    Args:
        both: images that both models classify correctly.
        gained: images that only the first does.
        lost: images that only the second does.
        n: all images.
    """
    neither = n - both - gained - lost
    ones, others = both + gained, both + lost
    margins = ones * (n - ones) * others * (n - others)
    product = both * neither - gained * lost
    corrected = max(product - n / 2, 0.0) if product > 0 else product
    phi = corrected / math.sqrt(margins) if margins else 0.0
    low, high = wilson_interval(ones, n)
    other_low, other_high = wilson_interval(others, n)
    one, other = 100 * ones / n, 100 * others / n

    def distance(first: float, second: float) -> float:
        return math.sqrt(max(first**2 - 2 * phi * first * second + second**2, 0.0))

    points = 100 * (gained - lost) / n
    below = distance(one - low, other_high - other)
    above = distance(high - one, other - other_low)
    return max(-100.0, points - below), min(100.0, points + above)


@dataclass(frozen=True, kw_only=True)
class TimeRatio:
    """How many times faster one file is than another."""

    ratio: float
    ratio_ci95: tuple[float, float]
    noise: float
    """95 % bound on how far the ratio of a file to its copy is from 1."""


def compare_times(
    reference: np.ndarray, other: np.ndarray, file: np.ndarray, copy: np.ndarray
) -> TimeRatio:
    """Estimates a ratio of times with Student's t interval; each process is one observation.

    Rounds of one process are not independent: they share its memory layout, for example. Resampling
    them, or as few as five processes, gives intervals that are too narrow, hence Student's t. The
    deviation between processes is at least that of a file from its copy, so that a ratio whose
    interval excludes 1 is also beyond the machine's noise.

    Args:
        reference: logarithms of the reference's times, float `[processes, rounds]`.
        other: the other file's.
        file: those of a file, the same rounds.
        copy: those of its copy.
    """
    ratios = np.median(reference - other, axis=1)
    copies = np.median(file - copy, axis=1)
    n = len(ratios)
    quantile = float(t.ppf(1 - LEVEL / 2, n - 1)) / math.sqrt(n)
    center = float(ratios.mean())
    noise = quantile * math.sqrt(float(np.square(copies).mean()))
    half = max(noise, quantile * float(ratios.std(ddof=1))) if ratios.any() else 0.0  # itself
    low, high = math.exp(center - half), math.exp(center + half)
    return TimeRatio(ratio=math.exp(center), ratio_ci95=(low, high), noise=math.expm1(noise))
