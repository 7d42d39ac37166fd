"""Common training problems: what is wrong, the evidence, and which setting to change."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from compress.train.state import Epoch

MIN_EPOCHS = 3
"""Shorter runs need not converge, since too much of them is warm-up."""
MIN_LOSS_DROP = 0.97
"""A loss that ends above this fraction of the first epoch's did not fall."""
PRETRAINED_TOP1 = 50.0
"""Percent of the training images in the first epoch; above it the network was trained before, and
its loss need not fall."""
CHANCE_FACTOR = 1.5
"""A network below this multiple of chance accuracy has learned next to nothing."""
GAP_GROWTH = 3.0
"""Percentage points by which the gap between training and validation may grow."""
LOSS_RISE = 1.1
"""Ratio by which the validation loss may exceed its minimum."""
PLATEAU_EPOCHS, PLATEAU_GAIN = 3, 0.3
"""A network is saturated if its mean top-1 gains less than this between two such windows."""
MIN_DIFFERENCE = 0.5
"""Percentage points of top-1 worth reporting, if significant."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A problem with its evidence and remedy."""

    trouble: str
    evidence: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.trouble}: {self.evidence}; {self.remedy}"


def diagnose(history: Sequence[Epoch], classes: int, stage: str) -> list[Finding]:
    """Returns the problems that a training history shows."""
    if not history:
        return []
    return [*_not_converging(history, classes, stage), *_overfitting(history, stage)]


def diagnose_student(
    history: Sequence[Epoch], teacher_top1: float, n_images: int, stage: str
) -> list[Finding]:
    """Returns the problems that a comparison of student and teacher shows.

    `teacher_top1` is the teacher's on the validation split of `n_images`, in percent.
    """
    if not history:
        return []
    return [
        *_weak_teacher(history, teacher_top1, n_images, stage),
        *_saturated(history, teacher_top1),
    ]


def diagnose_labels(
    confusion: Sequence[Sequence[int]], class_names: Sequence[str]
) -> list[Finding]:
    """Returns a finding if the teacher numbers the classes differently from the data.

    `confusion` counts validation images by label and by the teacher's prediction.
    """
    swapped = []
    for label, predictions in enumerate(confusion):
        predicted = max(range(len(predictions)), key=lambda column: predictions[column])
        total = sum(row[predicted] for row in confusion)
        # A majority of both the row and the column, because a poor teacher may favor one class.
        dominant = 2 * predictions[predicted] > max(sum(predictions), total)
        if predicted != label and dominant:
            swapped.append(f"it predicts {class_names[predicted]!r} for {class_names[label]!r}")
    if len(swapped) < max(2, len(class_names) // 3):
        return []
    return [
        Finding(
            trouble="the teacher's class order differs from the data's",
            evidence="; ".join(swapped[:3]) + ("; ..." if len(swapped) > 3 else ""),
            remedy="reorder the classes (class folders are sorted by name)",
        )
    ]


def _weak_teacher(
    history: Sequence[Epoch], teacher_top1: float, n_images: int, stage: str
) -> Iterator[Finding]:
    best = max(row.validation_top1 for row in history)
    share = best / 100
    two_standard_errors = 200 * math.sqrt(2 * share * (1 - share) / n_images)
    two_images = 200 / n_images
    if best > teacher_top1 + max(MIN_DIFFERENCE, two_standard_errors, two_images):
        yield Finding(
            trouble="the teacher is worse than the student",
            evidence=f"validation top-1 {teacher_top1:.2f} % vs. {best:.2f} %",
            remedy=f"increase teacher.train.epochs or lower {stage}.kd.alpha",
        )


def _saturated(history: Sequence[Epoch], teacher_top1: float) -> Iterator[Finding]:
    top1 = [row.train_top1 for row in history[-2 * PLATEAU_EPOCHS :]]
    behind = teacher_top1 - top1[-1]
    if len(top1) == 2 * PLATEAU_EPOCHS and behind > MIN_DIFFERENCE and _is_flat(top1):
        yield Finding(
            trouble="the student is saturated",
            evidence=f"{top1[-1]:.2f} % on its own training images and no longer improving, "
            f"{behind:.2f} points behind the teacher",
            remedy="use a wider or deeper student (its arguments in the card)",
        )


def _is_flat(top1: Sequence[float]) -> bool:
    """Returns whether the second half is not significantly higher than the first."""
    gain = fmean(top1[PLATEAU_EPOCHS:]) - fmean(top1[:PLATEAU_EPOCHS])
    return gain < max(PLATEAU_GAIN, stdev(top1))


def _not_converging(history: Sequence[Epoch], classes: int, stage: str) -> Iterator[Finding]:
    if len(history) < MIN_EPOCHS:
        return
    first, last = history[0], history[-1]
    peak = max(row.lr for row in history)
    chance = 100 / classes
    rises = last.loss > first.loss / MIN_LOSS_DROP
    stays = last.loss > MIN_LOSS_DROP * first.loss and first.train_top1 < PRETRAINED_TOP1
    remedy = f"multiply or divide {stage}.train.lr by ten (it peaked at {peak:.1g})"
    if rises:
        evidence = (
            f"the loss rose from {first.loss:.3f} in the first epoch to {last.loss:.3f} in the last"
        )
        remedy = (
            f"divide {stage}.train.lr by ten (it peaked at {peak:.1g}) or increase "
            f"{stage}.train.warmup"
        )
    elif stays:
        evidence = f"the loss stayed at {last.loss:.3f} ({first.loss:.3f} in the first epoch)"
    elif last.validation_top1 < CHANCE_FACTOR * chance:
        evidence = f"validation top-1 is {last.validation_top1:.2f} %, chance is {chance:.2f} %"
    else:
        return
    yield Finding(trouble="not converging", evidence=evidence, remedy=remedy)


def _overfitting(history: Sequence[Epoch], stage: str) -> Iterator[Finding]:
    best = min(history, key=lambda row: row.validation_loss)
    last = history[-1]
    then, now = (row.train_top1 - row.validation_top1 for row in (best, last))
    gap_grew = now > max(0.0, then + GAP_GROWTH)
    if gap_grew and last.validation_loss > LOSS_RISE * best.validation_loss:
        yield Finding(
            trouble="overfitting",
            evidence=f"since epoch {best.epoch} the validation loss rose from "
            f"{best.validation_loss:.3f} to {last.validation_loss:.3f} and the gap between "
            f"training and validation from {then:.1f} to {now:.1f} points",
            remedy=f"set {stage}.train.patience to 3, increase {stage}.train.weight_decay or "
            f"{stage}.train.label_smoothing, or use a smaller network",
        )
