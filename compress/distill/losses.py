"""Distillation losses: pure functions of logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def knowledge_distillation(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened outputs (Hinton et al., arXiv 1503.02531, section 2).

    `T^2 * KL(softmax(teacher / T) || softmax(student / T))`, mean over the batch; the factor
    `T^2` keeps the gradients' size when the temperature changes.

    Args:
        student: logits, float `[N, classes]`.
        teacher: logits of the same shape; no gradient flows into them.
        temperature: T > 0; higher shows more of the small probabilities.

    Returns:
        Scalar, zero when both agree.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.detach() / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence
