import torch

from compress.architectures.build import build
from compress.architectures.resize import differing_shapes, resize
from compress.data.dataset import Data
from tests.conftest import student_spec


def test_a_new_network_keeps_the_random_weights_of_its_first_channels(digits: Data) -> None:
    wide, original = (build(student_spec(digits, width=0.5)).network for _ in range(2))
    original.load_state_dict(wide.state_dict())
    narrow = build(student_spec(digits, width=0.25)).network
    resize(wide, differing_shapes(narrow, wide))
    before = dict(original.named_parameters())
    for name, weight in wide.named_parameters():
        assert weight.requires_grad
        assert torch.equal(weight, before[name][tuple(map(slice, weight.shape))])


def test_a_resized_network_takes_the_pruned_tensors(digits: Data) -> None:
    wide = build(student_spec(digits, width=0.5)).network
    narrow = build(student_spec(digits, width=0.25)).network
    resize(wide, differing_shapes(narrow, wide))
    wide.load_state_dict(narrow.state_dict(), strict=True)
    assert repr(wide) == repr(narrow)  # with the layers' widths
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(wide.eval()(x), narrow.eval()(x))
