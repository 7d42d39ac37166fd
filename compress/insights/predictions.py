"""Compares the predictions of two networks on the same images."""

from collections.abc import Callable, Sequence

import numpy as np

from compress.insights.results import (
    Bin,
    Calibration,
    ClassChange,
    Confusion,
    Flip,
    Predictions,
)
from compress.insights.thumbnails import thumbnail

BINS = 15
MOST_CONFUSIONS = 8
MOST_FLIPS = 12
"""In each direction."""


def compare_predictions(
    teacher: np.ndarray,
    shipped: np.ndarray,
    labels: np.ndarray,
    *,
    names: Sequence[str],
    image_of: Callable[[int], np.ndarray],
) -> Predictions:
    """Returns what changed.

    Args:
        teacher: probabilities `[N, classes]`.
        shipped: the same for the shipped file.
        labels: int `[N]`.
        names: of the classes.
        image_of: returns an image, uint8 `[C, H, W]`.
    """
    before, after = teacher.argmax(1), shipped.argmax(1)
    right = before == labels, after == labels
    lost, won = right[0] & ~right[1], ~right[0] & right[1]
    flips = [
        Flip(
            index=index,
            image=thumbnail(image_of(index)),
            label=names[labels[index]],
            teacher=names[before[index]],
            shipped=names[after[index]],
            teacher_confidence=_percent(teacher[index].max()),
            shipped_confidence=_percent(shipped[index].max()),
        )
        for which in (lost, won)
        for index in _surest(which, teacher, shipped)
    ]
    return Predictions(
        n_images=len(labels),
        lost=int(lost.sum()),
        won=int(won.sum()),
        classes=tuple(
            ClassChange(
                name=name,
                n_images=int((labels == number).sum()),
                teacher=100 * float(right[0][labels == number].mean()),
                shipped=100 * float(right[1][labels == number].mean()),
            )
            for number, name in enumerate(names)
            if (labels == number).any()
        ),
        confusions=tuple(_confusions(before, after, labels, names)),
        flips=tuple(flips),
        teacher=calibration(teacher, labels),
        shipped=calibration(shipped, labels),
    )


def _surest(which: np.ndarray, teacher: np.ndarray, shipped: np.ndarray) -> list[int]:
    """Returns the flips that both networks are surest of: the clearest disagreements."""
    sureness = teacher.max(1) + shipped.max(1)
    places = np.flatnonzero(which)
    return [int(place) for place in places[np.argsort(-sureness[places])][:MOST_FLIPS]]


def _confusions(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> list[Confusion]:
    """Returns the confusions whose counts changed most."""
    counts = [_confusion_matrix(labels, predicted, len(names)) for predicted in (before, after)]
    change = np.abs(counts[1] - counts[0])
    np.fill_diagonal(change, 0)
    order = np.argsort(-change, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = [divmod(int(place), len(names)) for place in order]
    return [
        Confusion(
            label=names[label],
            predicted=names[predicted],
            teacher=int(counts[0][label, predicted]),
            shipped=int(counts[1][label, predicted]),
        )
        for label, predicted in pairs
        if change[label, predicted]
    ]


def _confusion_matrix(labels: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    flat = np.bincount(labels * n_classes + predicted, minlength=n_classes**2)
    return flat.reshape(n_classes, n_classes)


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> Calibration:
    """Returns reliability in bins of equal width, and ECE (Guo et al., arXiv 1706.04599)."""
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins, error = [], 0.0
    for place in np.unique(places):
        inside = places == place
        sureness, accuracy = confidence[inside].mean(), right[inside].mean()
        error += abs(sureness - accuracy) * inside.mean()
        bins.append(
            Bin(
                confidence=_percent(sureness),
                accuracy=_percent(accuracy),
                n_images=int(inside.sum()),
            )
        )
    return Calibration(ece=_percent(error), bins=tuple(bins))


def _percent(share: float) -> float:
    return min(100 * float(share), 100.0)
