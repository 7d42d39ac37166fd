from pathlib import Path

import numpy as np
import pytest

from compress.data.dataset import Data
from compress.data.splits import TensorSplit
from compress.insights.maps import compare_maps, open_mapped, shares


@pytest.mark.parametrize(
    ("file", "tolerance"), [("1-distill/model.onnx", 1e-4), ("4-export/model-int8.onnx", 0.5)]
)
def test_a_class_map_averages_to_its_logit_but_for_the_bias(
    finished_run: Path, digits: Data, file: str, tolerance: float
) -> None:
    """In int8, the pooled features are rounded."""
    assert isinstance(digits.test, TensorSplit)
    images, mapped = digits.test.images[:20].numpy(), open_mapped(finished_run / file, maps=True)
    for label in range(3):
        logits, maps = mapped.run(images, np.full(20, label))
        assert maps is not None
        bias = logits[:, label] - maps.mean((1, 2))
        assert np.ptp(bias) < tolerance
    np.testing.assert_array_equal(logits, mapped.logits(images))


def test_shares_sum_to_one_at_any_size() -> None:
    maps = np.random.default_rng(0).normal(size=(5, 2, 2)).astype(np.float32)
    maps[0] = -1  # nothing speaks for the class: spread evenly
    found = shares(maps, 4)
    assert found.shape == (5, 4, 4)
    assert found.sum((1, 2)) == pytest.approx(1)
    assert found[0] == pytest.approx(1 / 16)


def test_overlap_is_the_mass_that_two_maps_share() -> None:
    left, right = np.zeros((2, 1, 2, 2), np.float32)
    left[0, :, 0] = 1
    right[0, 0] = 1
    images = np.zeros((1, 1, 2, 2), np.uint8)
    one = compare_maps(left, right, np.array([0]), names=("cat",), images=images)
    assert one.overlap == pytest.approx(50)  # a quarter of the square, half of each map
    same = compare_maps(left, left, np.array([0]), names=("cat",), images=images)
    assert same.overlap == pytest.approx(100)
    assert same.histogram == (0,) * 9 + (1,)
