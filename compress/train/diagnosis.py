"""The classic troubles of training, in words: what is wrong, how it shows, what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from compress.train.state import Epoch

FLAT = 0.97
"""A loss that ends above this share of its first epoch's did not fall."""
MOSTLY_RIGHT = 50.0
"""Percent of training images: with more, a loss that stays is that of a network trained before."""
CHANCE = 1.5
"""A network this many times better than guessing learned next to nothing."""
GAP_GROWTH = 3.0
"""Points by which training may run ahead of validation after the best epoch."""
LOSS_RISE = 1.1
SETTLED_EPOCHS, SETTLED = 3, 0.3
"""A network that gains less than so many points from some epochs to the next learns no more."""
NOTEWORTHY = 0.5
"""Points of top-1 that are worth a word, if they are more than luck."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One trouble."""

    trouble: str
    evidence: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.trouble}: {self.evidence}; {self.remedy}"


def diagnose(history: Sequence[Epoch], classes: int) -> list[Finding]:
    """Returns what went wrong in a training, judged by its history."""
    if len(history) < 2:
        return []
    return [*_not_converging(history, classes), *_overfitting(history)]


def diagnose_student(history: Sequence[Epoch], teacher_top1: float, n_images: int) -> list[Finding]:
    """Returns what is wrong between a student and its teacher.

    Args:
        history: of the student.
        teacher_top1: on validation images, percent.
        n_images: validation images.
    """
    if not history:
        return []
    best = max(row.validation_top1 for row in history)
    findings = []
    share = best / 100
    luck = 200 * math.sqrt(2 * share * (1 - share) / n_images)  # two standard errors
    if best > teacher_top1 + max(NOTEWORTHY, luck, 200 / n_images):
        findings.append(
            Finding(
                trouble="the teacher is worse than the student",
                evidence=f"validation top-1 {teacher_top1:.2f} % against {best:.2f} %",
                remedy="train the teacher longer, or give it less weight (--alpha)",
            )
        )
    top1 = [row.train_top1 for row in history[-2 * SETTLED_EPOCHS :]]
    behind = teacher_top1 - top1[-1]
    if len(top1) == 2 * SETTLED_EPOCHS and behind > NOTEWORTHY and _has_settled(top1):
        findings.append(
            Finding(
                trouble="the student is saturated",
                evidence=f"{history[-1].train_top1:.2f} % even on its training images, "
                f"{behind:.2f} points behind the teacher, and no longer rising",
                remedy="a wider or deeper student, or less augmentation",
            )
        )
    return findings


def diagnose_labels(
    confusion: Sequence[Sequence[int]], class_names: Sequence[str]
) -> list[Finding]:
    """Returns whether a teacher knows the data's classes by other numbers.

    Args:
        confusion: counts of validation images by label and by the teacher's answer.
        class_names: of the data.
    """
    swapped = []
    for label, answers in enumerate(confusion):
        said = max(range(len(answers)), key=lambda answer: answers[answer])
        so_called = sum(row[said] for row in confusion)
        both_ways = 2 * answers[said] > max(sum(answers), so_called)  # a poor teacher says 5 often
        if said != label and both_ways:
            swapped.append(f"{class_names[label]!r} is {class_names[said]!r} to it")
    if len(swapped) < max(2, len(class_names) // 3):
        return []
    return [
        Finding(
            trouble="the teacher's classes are not the data's",
            evidence=f"{'; '.join(swapped[:3])}{' ...' if len(swapped) > 3 else ''}",
            remedy="give the classes the teacher's order (folders are taken alphabetically)",
        )
    ]


def _has_settled(top1: Sequence[float]) -> bool:
    """Tells whether the second half is no higher than the first but for luck."""
    gain = fmean(top1[SETTLED_EPOCHS:]) - fmean(top1[:SETTLED_EPOCHS])
    return gain < max(SETTLED, stdev(top1))


def _not_converging(history: Sequence[Epoch], classes: int) -> Iterator[Finding]:
    first, last = history[0], history[-1]
    peak = max(row.lr for row in history)
    remedy = (
        f"another learning rate (it was up to {peak:.1g}), ten times or a tenth of it, or with a "
        "teacher another --alpha"
    )
    rises = last.loss > first.loss / FLAT
    stays = last.loss > FLAT * first.loss and first.train_top1 < MOSTLY_RIGHT
    if rises or stays:
        yield Finding(
            trouble="not converging",
            evidence=f"the loss {'rose' if rises else 'stayed'}, {first.loss:.3f} after the first "
            f"and {last.loss:.3f} after {len(history)} epochs",
            remedy="a tenth of the learning rate, or a longer warm-up" if rises else remedy,
        )
    elif last.validation_top1 < CHANCE * 100 / classes:
        yield Finding(
            trouble="not converging",
            evidence=f"validation top-1 {last.validation_top1:.2f} %, guessing has "
            f"{100 / classes:.2f} %",
            remedy=remedy,
        )


def _overfitting(history: Sequence[Epoch]) -> Iterator[Finding]:
    best = min(history, key=lambda row: row.validation_loss)
    last = history[-1]
    then, now = (row.train_top1 - row.validation_top1 for row in (best, last))
    ahead = now > max(0.0, then + GAP_GROWTH)
    if ahead and last.validation_loss > LOSS_RISE * best.validation_loss:
        yield Finding(
            trouble="over-fitting",
            evidence=f"since epoch {best.epoch} the validation loss rose from "
            f"{best.validation_loss:.3f} to {last.validation_loss:.3f}, and training ran ahead "
            f"of validation by {now:.1f} points (then {then:.1f})",
            remedy="stop early (--patience 3), more weight decay, label smoothing or mixup, or a "
            "smaller network",
        )
