import numpy as np
import pytest
import torch

from compress.int8.config import OBSERVERS, Observer
from compress.int8.ranges import BINS, LEVELS, Statistics, choose_range, qparams_of


def seen(*batches: torch.Tensor) -> Statistics:
    statistics = Statistics(histogram=True)
    for batch in batches:
        statistics.update(batch)
    return statistics


def rounding_error(x: torch.Tensor, low: float, high: float) -> float:
    scale, zero = qparams_of(low, high)
    rounded = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, LEVELS - 1)
    return float((rounded - x).pow(2).mean())


def test_the_histogram_counts_every_value_as_it_grows() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(1000, generator=generator) * 3**k for k in range(5)]
    statistics = seen(*batches)
    assert statistics.counts is not None
    assert len(statistics.counts) == BINS
    assert statistics.counts.sum() == 5000
    everything = torch.cat(batches).double().numpy()
    edges = statistics.start + statistics.width * np.arange(BINS + 1)
    expected, _ = np.histogram(everything, edges)
    # torch's float32 bins may put a value at an edge into the neighboring bin
    assert np.abs(np.cumsum(expected) - np.cumsum(statistics.counts)).max() <= 2


def test_minmax_and_moving_average() -> None:
    statistics = seen(torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 4.0]))
    assert choose_range(statistics, "minmax") == (-3.0, 4.0)
    assert choose_range(statistics, "average") == pytest.approx((-1.2, 2.2))


def test_a_small_last_batch_weighs_less_in_the_average() -> None:
    """A single remaining image used to weigh as much as a whole batch."""
    whole, rest = torch.linspace(-1, 2, 100), torch.zeros(1)
    low, high = choose_range(seen(whole, whole, rest), "average")
    assert (low, high) == pytest.approx((-0.999, 1.998))


def test_percentile_is_numpys() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, generator=generator)
    low, high = choose_range(seen(*x.split(1000)), "percentile")
    expected = np.percentile(x.numpy(), [0.01, 99.99])
    assert (low, high) == pytest.approx(tuple(expected), abs=0.02)


@pytest.mark.parametrize("observer", ["mse", "entropy"])
def test_searches_cut_off_outliers(observer: Observer) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(1_000_000, generator=generator).relu(), torch.tensor([20.0])])
    low, high = choose_range(seen(x), observer)
    assert low == 0.0
    assert 3.0 < high < 15.0


def test_entropy_ignores_zeros() -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(50_000, generator=generator).abs()
    with_zeros = torch.cat([positive, torch.zeros(500_000)])
    ranges = [choose_range(seen(x), "entropy") for x in (positive, with_zeros)]
    assert ranges[0] == ranges[1]


def test_mse_has_the_least_rounding_error() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(50_000, generator=generator) ** 3
    statistics = seen(x)
    errors = {name: rounding_error(x, *choose_range(statistics, name)) for name in OBSERVERS}
    assert errors["mse"] <= 1.02 * min(errors.values()), errors


@pytest.mark.parametrize("observer", OBSERVERS)
def test_constant_values_have_a_range(observer: Observer) -> None:
    low, high = choose_range(seen(torch.zeros(100)), observer)
    scale, zero = qparams_of(low, high)
    assert scale > 0
    assert 0 <= zero < LEVELS
