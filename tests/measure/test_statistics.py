import numpy as np
import pytest
from scipy.stats import binomtest

from compress.measure.statistics import (
    PairedDifference,
    compare_paired,
    compare_times,
    newcombe_interval,
    wilson_interval,
)

TESTS, IMAGES = 2000, 10_000


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (5, 10), (10, 10), (9150, 10000), (355, 359)])
def test_the_interval_equals_scipys(correct: int, n: int) -> None:
    expected = binomtest(correct, n).proportion_ci(method="wilson")
    low, high = wilson_interval(correct, n)
    assert low == pytest.approx(100 * expected.low, abs=1e-4)
    assert high == pytest.approx(100 * expected.high, abs=1e-4)


def test_rounding_does_not_put_the_share_outside_its_interval() -> None:
    """Of 359 right in 359 the upper end came out as 99.99999999999997 %, which plots refuse."""
    for n in range(1, 2000):
        assert wilson_interval(n, n)[1] == 100
        assert wilson_interval(0, n)[0] == 0


@pytest.mark.parametrize(
    ("cells", "interval"),
    [
        ((36, 12, 2, 50), (5.69, 34.04)),  # Newcombe 1998, table II
        ((59, 6, 16, 161), (-11.86, -0.46)),  # Cavo et al. 2012, in R's contingencytables 3.1
        ((10, 0, 0, 10), (-27.75, 27.75)),  # no variance, no correlation: from Wilson's 72.25
    ],
)
def test_paired_intervals_equal_published_ones(
    cells: tuple[int, int, int, int], interval: tuple[float, float]
) -> None:
    both, gained, lost, n = cells
    assert newcombe_interval(both, gained, lost, n) == pytest.approx(interval, abs=0.03)


def pair(*, gained: int, lost: int, n: int, wrong: int = 1) -> PairedDifference:
    """Two models that differ on some images and are both wrong on others."""
    right, baseline = np.ones(n, bool), np.ones(n, bool)
    baseline[:gained] = False
    right[gained : gained + lost] = False
    right[n - wrong :] = baseline[n - wrong :] = False
    return compare_paired(right, baseline)


def test_flips_are_counted_each_way() -> None:
    """The exact test by hand: 2 or fewer of 10 flips, twice (1 + 10 + 45) / 1024."""
    found = pair(gained=8, lost=2, n=100)
    assert (found.gained, found.lost, found.points, found.n_images) == (8, 2, 6.0, 100)
    assert found.p_value == pytest.approx(2 * 56 / 1024)
    assert not found.is_significant
    assert pair(gained=9, lost=1, n=100).is_significant
    assert pair(gained=0, lost=0, n=100).p_value == 1


def test_sixteen_images_settle_nothing() -> None:
    one_flip = pair(gained=0, lost=1, n=16)
    assert one_flip.points == -6.25
    (doubt,) = one_flip.doubts(1.0)
    assert doubt.startswith("16 validation images are too few to tell whether int8 loses more")
    assert doubt.endswith("one image is 6.2 points")
    assert pair(gained=0, lost=0, n=16).doubts(1.0)
    assert not pair(gained=20, lost=20, n=10_000, wrong=600).doubts(1.0)
    assert not pair(gained=20, lost=320, n=10_000, wrong=600).doubts(1.0)


def generated(*, points: float, disagreement: float) -> list[PairedDifference]:
    """Pairs of models that are right on 93 % of the images, and disagree on few of them."""
    generator = np.random.default_rng(0)
    ahead = (disagreement + points) / 200
    behind = disagreement / 100 - ahead
    shares = [ahead, behind, 0.93 - ahead, 0.07 - behind]
    cells = generator.multinomial(IMAGES, shares, TESTS)
    return [
        pair(gained=gained, lost=lost, n=IMAGES, wrong=wrong) for gained, lost, _, wrong in cells
    ]


@pytest.mark.parametrize("disagreement", [2.0, 5.0])
def test_equal_models_differ_as_often_as_the_level_says(disagreement: float) -> None:
    found = generated(points=0, disagreement=disagreement)
    assert np.mean([one.is_significant for one in found]) == pytest.approx(0.05, abs=0.015)
    covered = [one.points_ci95[0] <= 0 <= one.points_ci95[1] for one in found]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_one_point_on_ten_thousand_images_is_found() -> None:
    found = generated(points=1, disagreement=5.0)
    assert np.mean([one.is_significant for one in found]) > 0.98
    covered = [one.points_ci95[0] <= 1 <= one.points_ci95[1] for one in found]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def noisy_times(generator: np.random.Generator) -> np.ndarray:
    """Five processes of ten rounds: the processes differ by 2 %, the rounds by 1 %."""
    return generator.normal(0, 0.02, (5, 1)) + generator.normal(0, 0.01, (5, 10))


def test_a_file_is_as_fast_as_its_copy() -> None:
    """Student's t interval has its level, and the noise of another copy only widens it."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(1000):
        one, other, copy = (noisy_times(generator) for _ in range(3))
        found.append(compare_times(one, other, other, copy))
    excluded = np.mean([not one.ratio_ci95[0] <= 1 <= one.ratio_ci95[1] for one in found])
    assert 0.005 < excluded < 0.05
    assert all(one.ratio_ci95[1] / one.ratio >= 1 + 0.999 * one.noise for one in found)


def test_ratios_are_those_of_the_times() -> None:
    one = np.log(np.full((5, 3), 4.0))
    found = compare_times(one, np.log(np.full((5, 3), 2.0)), one, one)
    assert found.noise == 0
    assert found.ratio == pytest.approx(2.0)
    assert found.ratio_ci95 == pytest.approx((2.0, 2.0))
    # Student's t by hand: quantile 4.303 for 3 processes, standard deviation log(1.1).
    blocks = np.log(np.array([[1.0], [1.1], [1.21]]))
    found = compare_times(blocks, np.zeros((3, 1)), blocks, blocks)
    assert found.ratio == pytest.approx(1.1)
    assert np.log(found.ratio_ci95[1] / 1.1) == pytest.approx(4.3027 / 3**0.5 * np.log(1.1), 1e-4)
