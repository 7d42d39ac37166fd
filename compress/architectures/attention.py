"""Self-attention whose heads can be removed."""

import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` as self-attention, with the same tensor names.

    The number of heads follows from the shapes of the tensors, so heads can be pruned; torch's
    module requires heads that fill the model's width.

    Args:
        attention: the module whose tensors to reuse; batch first, with queries, keys, and values
            of equal width.
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
        """Maps a sequence `[N, length, width]`, passed three times, to the same shape."""
        assert query is key is value
        assert not need_weights
        projected = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        parts = projected.view(*query.shape[:2], 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(
            parts[0], parts[1], parts[2], dropout_p=self.dropout if self.training else 0.0
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


def open_attention(network: nn.Module) -> None:
    """Replaces torch's attention modules with ones whose heads can be pruned, in place."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MultiheadAttention):
                setattr(module, name, SelfAttention(child))
