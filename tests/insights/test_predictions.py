import numpy as np
import pytest

from compress.insights.predictions import calibration, compare_predictions

NAMES = ("cat", "dog")


def image_of(index: int) -> np.ndarray:
    return np.full((1, 4, 4), index, np.uint8)


def test_flips_classes_and_confusions_are_counted() -> None:
    labels = np.array([0, 0, 1, 1])
    teacher = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    shipped = np.array([[0.9, 0.1], [0.3, 0.7], [0.1, 0.9], [0.4, 0.6]])
    found = compare_predictions(teacher, shipped, labels, names=NAMES, image_of=image_of)
    assert (found.lost, found.won) == (1, 1)
    assert [(row.teacher, row.shipped) for row in found.classes] == [(100, 50), (50, 100)]
    assert [(one.label, one.predicted, one.teacher, one.shipped) for one in found.confusions] == [
        ("cat", "dog", 0, 1),
        ("dog", "cat", 1, 0),
    ]
    assert [(flip.index, flip.teacher, flip.shipped) for flip in found.flips] == [
        (1, "cat", "dog"),
        (2, "cat", "dog"),
    ]


def test_calibration_of_known_bins() -> None:
    """Ten images of confidence 0.9, of which seven are right, and ten of 0.6, of which six are."""
    probabilities = np.repeat([[0.9, 0.1], [0.6, 0.4]], 10, axis=0)
    labels = np.array([0] * 7 + [1] * 3 + [0] * 6 + [1] * 4)
    found = calibration(probabilities, labels)
    assert found.ece == pytest.approx((20 + 0) / 2)
    assert [row.confidence for row in found.bins] == pytest.approx([60, 90])
    assert [row.accuracy for row in found.bins] == pytest.approx([60, 70])
    assert [row.n_images for row in found.bins] == [10, 10]
