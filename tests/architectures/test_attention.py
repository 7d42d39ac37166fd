import torch
from torch import nn

from compress.architectures.attention import SelfAttention, open_attention


def test_it_computes_what_torchs_module_does() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    x = torch.randn(2, 5, 12)
    expected, _ = attention(x, x, x, need_weights=False)
    own, weights = SelfAttention(attention)(x, x, x)
    assert weights is None
    assert torch.allclose(own, expected, atol=1e-6)


def test_modules_are_replaced_with_their_tensors() -> None:
    network = nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    open_attention(network)
    assert [type(module) for module in network] == [SelfAttention, nn.Linear]
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
