import torch

from compress.architectures.build import build
from compress.architectures.resize import differing_shapes, resize
from compress.data.dataset import Data
from tests.conftest import student_spec


def test_a_resized_network_takes_the_pruned_tensors(digits: Data) -> None:
    wide = build(student_spec(digits, width=0.5)).network
    narrow = build(student_spec(digits, width=0.25)).network
    resize(wide, differing_shapes(narrow, wide))
    wide.load_state_dict(narrow.state_dict(), strict=True)
    assert repr(wide) == repr(narrow)  # with the layers' widths
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(wide.eval()(x), narrow.eval()(x))
