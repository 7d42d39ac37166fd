"""Sparse training: a growing penalty shrinks the least important channels before pruning."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from compress.architectures.build import Classifier, example_input
from compress.kd.context import Context
from compress.kd.training import train_with_kd
from compress.prune.config import PruneConfig
from compress.prune.groups import Group, find_groups
from compress.prune.importance import score_channels
from compress.train.config import TrainConfig
from compress.train.epoch import TrainBatch
from compress.train.schedule import effective_batch_size, steps_per_epoch

PENALTY = 1e-4
"""Final weight of the penalty, which grows from zero."""
SPREAD = 4
"""The penalty on the least important channel is `2**SPREAD` times that on the most important."""
SCHEDULE = TrainConfig(min_steps=0, batch_size=128, lr=0.03)
"""Uses SGD, since Muon normalizes all gradients, including the penalty's."""
REFRESH = 50
"""Steps between updates of the importances."""


def train_sparse(model: Classifier, config: PruneConfig, context: Context) -> None:
    """Trains a model in place, with distillation and the growing penalty."""
    groups = find_groups(model.network.eval(), example_input(model)).groups
    schedule = dataclasses.replace(SCHEDULE, epochs=config.sparse_epochs)
    n_images = len(context.data.train)
    steps = schedule.epochs * steps_per_epoch(n_images, effective_batch_size(schedule, n_images))
    penalty = growing_penalty(model.network, groups, steps)
    train_with_kd(model, config.kd, schedule, context, "prune", title="sparse", penalty=penalty)


def growing_penalty(
    network: nn.Module, groups: Sequence[Group], steps: int
) -> Callable[[TrainBatch], Tensor]:
    """Returns a function from a step's batch to the penalty to add to the loss.

    `t / T * PENALTY * sum_k 2^(SPREAD (I_max - I_k) / (I_max - I_min)) |w_k|^2` over the channels k
    of each group (DepGraph, arXiv 2301.12900, equation 6), with the weight growing over the steps
    t of T as in growing regularization (Wang et al., arXiv 2012.09243).
    """
    coefficients: dict[str, Tensor] = {}

    def penalty(batch: TrainBatch) -> Tensor:
        nonlocal coefficients
        if batch.step_of_epoch % REFRESH == 0:  # so that they survive resuming
            coefficients = _coefficients(network, groups)
        parameters = dict(network.named_parameters())
        parts = [
            (factor.to(parameters[name].device) * parameters[name].square()).sum()
            for name, factor in coefficients.items()
        ]
        return min(1.0, (batch.step + 1) / max(steps, 1)) * PENALTY * torch.stack(parts).sum()

    return penalty


def _coefficients(network: nn.Module, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Returns the penalty's factor of each weight, by tensor and broadcastable to it."""
    scores = score_channels(network, groups, "l2", lambda: ())
    parameters = dict(network.named_parameters())
    coefficients: dict[str, Tensor] = {}
    for group in groups:
        score = scores[group.name]
        span = (score.max() - score.min()).clamp_min(1e-12)
        strength = 2.0 ** (SPREAD * (score.max() - score) / span)
        for part in group.slices:
            weight = parameters.get(part.tensor)
            if weight is None or weight.ndim < 2:
                continue
            along = torch.zeros(weight.shape[part.dim]).index_put(
                (part.index.flatten(),),
                strength.cpu().repeat_interleave(part.index.shape[1]),
            )
            shape = [1] * weight.ndim
            shape[part.dim] = len(along)
            old = coefficients.get(part.tensor, torch.zeros(()))
            coefficients[part.tensor] = old + along.view(shape)
    return coefficients
