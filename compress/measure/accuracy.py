"""Top-1 accuracy of an ONNX file in ONNX Runtime, with its confidence interval."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.data.splits import Split, as_numpy, batch_count
from compress.host import allowed_cores
from compress.log import track
from compress.measure.runtime import open_session, run_session
from compress.measure.statistics import wilson_interval

BATCH = 100
IMBALANCE = 2
"""Classes are imbalanced if the largest has over this many times the images of another."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 accuracy: the fraction of images whose most probable class is correct."""

    top1: float
    """Top-1 in percent."""
    top1_ci95: tuple[float, float]
    """Wilson interval, percent."""
    balanced_top1: float | None
    """Mean over the classes, percent; None if the classes are balanced."""
    n_images: int


def predict_split(path: Path, split: Split, *, title: str = "scoring") -> np.ndarray:
    """Returns the predicted class of every image of a split, int64 `[n_images]`."""
    session = open_session(path, threads=allowed_cores())
    batches = track(split.batches(BATCH), title, total=batch_count(len(split), BATCH))
    classes = [run_session(session, as_numpy(batch.images)).argmax(1) for batch in batches]
    return np.concatenate(classes)


def images_digest(split: Split) -> str:
    """Returns what identifies the images and labels of a split, and their order."""
    digest = hashlib.sha256(split.labels.numpy().tobytes())
    for batch in split.batches(BATCH):
        digest.update(as_numpy(batch.images).tobytes())
    return digest.hexdigest()[:32]


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Scores predicted classes, int `[n]`, against the labels."""
    right = predicted == labels
    correct, n = int(right.sum()), len(labels)
    sizes = np.bincount(labels)
    present = sizes > 0
    balanced = None
    if sizes.max() > IMBALANCE * sizes[present].min():
        shares = np.bincount(labels, right)[present] / sizes[present]
        balanced = 100 * float(shares.mean())
    return Accuracy(
        top1=100 * correct / n,
        top1_ci95=wilson_interval(correct, n),
        balanced_top1=balanced,
        n_images=n,
    )
