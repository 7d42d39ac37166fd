import numpy as np
from sklearn.datasets import load_digits

from compress.data.digits import read_digits


def test_the_digits_are_scikit_learns() -> None:
    images, labels = read_digits()
    expected = load_digits()
    assert np.array_equal(images, expected.images)
    assert np.array_equal(labels, expected.target)
    assert images.dtype == labels.dtype == np.uint8
