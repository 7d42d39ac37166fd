"""Distillation losses: pure functions of the student's and the teacher's logits or features.

Logits are float `[N, classes]`, features float `[N, C, H, W]`. No gradient flows to the teacher.
Teacher logits have zero mean over the classes (`teachers.mean_logits`), student logits do not: a
loss must not depend on that mean, or subtract it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def knowledge_distillation(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Kullback-Leibler divergence at a temperature (Hinton et al., arXiv 1503.02531, section 2).

    `T^2 * KL(softmax(teacher / T) || softmax(student / T))`, mean over the batch; the factor `T^2`
    makes the gradient's magnitude independent of the temperature. A higher one gives small
    probabilities more weight.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.detach() / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def standardized(logits: Tensor) -> Tensor:
    """Standardizes each image's logits to mean 0 and standard deviation 1 over the classes.

    The student then has to match the shape of the teacher's logits, but not their scale (Sun et
    al., arXiv 2403.01427, algorithm 1).
    """
    centered = logits - logits.mean(1, keepdim=True)
    return centered / (logits.std(1, keepdim=True) + 1e-7)


def decoupled_distillation(
    student: Tensor, teacher: Tensor, target: Tensor, *, temperature: float, beta: float
) -> Tensor:
    """Divergence with separate weights for target and other classes (DKD, arXiv 2203.08679, eq. 7).

    `T^2 * (KL(b_t || b_s) + beta * KL(q_t || q_s))`: b is the binary distribution of target and
    non-target, q the distribution over the non-target classes. Targets are labels, int64 `[N]`; of
    three or more classes.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.detach() / temperature, dim=1)
    is_target = F.one_hot(target, student.shape[1]).bool()

    def binary(log_probabilities: Tensor) -> Tensor:
        in_target = log_probabilities[is_target]
        in_others = log_probabilities.masked_fill(is_target, -torch.inf).logsumexp(1)
        return torch.stack([in_target, in_others], dim=1)

    def others(logits: Tensor) -> Tensor:
        rest = logits[~is_target].view(len(logits), -1)
        return F.log_softmax(rest / temperature, dim=1)

    def divergence(of: Tensor, reference: Tensor) -> Tensor:
        return F.kl_div(of, reference, reduction="batchmean", log_target=True)

    target_part = divergence(binary(log_student), binary(log_teacher))
    other_part = divergence(others(student), others(teacher.detach()))
    return temperature**2 * (target_part + beta * other_part)


def relational_distillation(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """One minus the correlation of probabilities, within images and within classes.

    DIST (Huang et al., arXiv 2205.10536, equations 8 to 10), both terms with weight 1: from 0
    (perfectly correlated) to `4 T^2`.
    """
    of_student = F.softmax(student / temperature, dim=1)
    of_teacher = F.softmax(teacher.detach() / temperature, dim=1)
    between_classes = 1 - correlation(of_student, of_teacher).mean()
    between_images = 1 - correlation(of_student.T, of_teacher.T).mean()
    return temperature**2 * (between_classes + between_images)


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Returns the Pearson correlation of corresponding rows of two matrices, `[rows]`."""
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    return F.cosine_similarity(x, y, dim=1, eps=1e-8)


def feature_hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Relative squared distance of feature maps (FitNets, arXiv 1412.6550, equation 3).

    `mean((s - t)^2) / mean(t^2)`, after the student's learned projection. Dividing by the teacher's
    mean square makes one weight suit layers of any scale.
    """
    teacher = teacher.detach()
    return F.mse_loss(student, teacher) / teacher.square().mean().clamp(min=1e-12)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of attention maps (Zagoruyko & Komodakis, arXiv 1612.03928, equation 2).

    A map is the mean of squared activations over channels, whose numbers may differ, normalized to
    length 1. From 0 (equal maps) to 2, mean over the batch.
    """

    def attention(features: Tensor) -> Tensor:
        return F.normalize(features.square().mean(1).flatten(1), dim=1)

    return (attention(student) - attention(teacher.detach())).square().sum(1).mean()
