"""Training with a penalty that empties the least important channels before they are cut."""

from __future__ import annotations

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
from compress.train.schedule import batch_size_for, steps_of_epoch

PENALTY = 1e-4
"""Of an average weight at the end; it grows from zero."""
SPREAD = 4
"""The least important channel is pressed `2**SPREAD` times as hard as the most important one."""
SCHEDULE = TrainConfig(min_steps=0, batch_size=128, lr=0.03)
"""With SGD: Muon takes every gradient to one size, the penalty's too."""
REFRESH = 50
"""Steps between looks at which channels are least important."""


def train_sparse(model: Classifier, config: PruneConfig, context: Context) -> None:
    """Trains a model in place with the growing penalty, and the teacher's help."""
    groups = find_groups(model.network.eval(), example_input(model)).groups
    schedule = dataclasses.replace(SCHEDULE, epochs=config.sparse_epochs)
    n_images = len(context.data.train)
    steps = schedule.epochs * steps_of_epoch(n_images, batch_size_for(schedule, n_images))
    penalty = growing_penalty(model.network, groups, steps)
    train_with_kd(model, config.kd, schedule, context, "sparse training", penalty=penalty)


def growing_penalty(
    network: nn.Module, groups: Sequence[Group], steps: int
) -> Callable[[TrainBatch], Tensor]:
    """Returns a function of a step's batch that gives the penalty to add to the loss.

    `t / T * PENALTY * sum_k 2^(SPREAD (I_max - I_k) / (I_max - I_min)) |w_k|^2` over the channels k
    of each group (DepGraph, arXiv 2301.12900, equation 6), with the weight growing over the steps
    t as in growing regularization (Wang et al., arXiv 2012.09243).

    Args:
        network: that is trained.
        groups: of its channels.
        steps: after so many the penalty grows no more.
    """
    coefficients: dict[str, Tensor] = {}

    def refresh() -> None:
        scores = score_channels(network, groups, "l2", lambda: ())
        coefficients.clear()
        parameters = dict(network.named_parameters())
        for group in groups:
            score = scores[group.name]
            span = (score.max() - score.min()).clamp_min(1e-12)
            strength = 2.0 ** (SPREAD * (score.max() - score) / span)
            for one in (*group.writers, *group.readers):
                if one.tensor in parameters and parameters[one.tensor].ndim > 1:
                    size = parameters[one.tensor].shape[one.dim]
                    along = torch.zeros(size).index_put(
                        (one.index.flatten(),),
                        strength.cpu().repeat_interleave(one.index.shape[1]),
                    )
                    shape = [1] * parameters[one.tensor].ndim
                    shape[one.dim] = size
                    old = coefficients.get(one.tensor, torch.zeros(()))
                    coefficients[one.tensor] = old + along.view(shape)

    def penalty(batch: TrainBatch) -> Tensor:
        if batch.step_of_epoch % REFRESH == 0:  # so that a resumed training has them too
            refresh()
        parameters = dict(network.named_parameters())
        parts = [
            (factor.to(parameters[name].device) * parameters[name].square()).sum()
            for name, factor in coefficients.items()
        ]
        return min(1.0, (batch.step + 1) / max(steps, 1)) * PENALTY * torch.stack(parts).sum()

    return penalty
