"""Self-attention whose heads can be removed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """What `nn.MultiheadAttention` computes on one sequence, with the same names of tensors.

    Its number of heads follows from its tensors' shapes, so that a pruned one needs no more than
    those; torch's own wants as many heads as fill the model's width.

    Args:
        attention: whose tensors it takes over; batches come first, queries, keys and values are of
            equal width.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        assert attention.batch_first
        self.head_dim = attention.head_dim
        self.dropout = attention.dropout
        self.in_proj_weight = attention.in_proj_weight
        self.in_proj_bias = attention.in_proj_bias
        self.out_proj = attention.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool = False
    ) -> tuple[Tensor, None]:
        """Maps a sequence `[N, length, width]`, given three times, to one of the same shape."""
        assert query is key is value
        assert not need_weights
        projected = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        parts = projected.view(*query.shape[:2], 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(
            parts[0], parts[1], parts[2], dropout_p=self.dropout if self.training else 0.0
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


def open_attention(network: nn.Module) -> None:
    """Replaces torch's attention modules by ones whose heads can be removed, in place."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MultiheadAttention):
                setattr(module, name, SelfAttention(child))
