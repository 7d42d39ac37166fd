from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compress.architectures.build import Classifier, build
from compress.architectures.resize import remove_blocks
from compress.checkpoint import QuantizedLayout
from compress.data.dataset import Data
from compress.int8.graph import aten, layers_of, quantizers_of
from compress.int8.insertion import insert_quantizers
from compress.int8.lowering import lower
from compress.int8.ptq import Plan
from tests.conftest import settled, student_spec, torchvision_spec
from tests.int8.helpers import MOBILENET_REPEATS, optimized_operators, quantized_file, run_file


def test_named_layers_stay_in_float(digits: Data, tmp_path: Path) -> None:
    spec = student_spec(digits)
    model = settled(spec, digits.train)
    names = list(layers_of(lower(model)))
    layout = QuantizedLayout(float_layers=(names[2], names[-1]))
    plan = Plan(observer="minmax", weights="max", layout=layout)
    quantized, path = quantized_file(model, spec, digits, tmp_path, plan)
    operators = optimized_operators(path, tmp_path)
    assert operators["QLinearConv"] + operators["QGemm"] == len(names) - 2
    images = next(iter(digits.test.batches(300))).images
    with torch.no_grad():
        expected = quantized(images).numpy()
    assert np.abs(run_file(path, images) - expected).mean() < 0.01 * expected.std()


def test_with_all_layers_in_float_nothing_is_quantized(digits: Data) -> None:
    model = settled(student_spec(digits), digits.train)
    lowered = lower(model)
    layout = QuantizedLayout(float_layers=tuple(layers_of(lowered)))
    assert quantizers_of(insert_quantizers(lowered, layout)) == {}


def test_quantizers_have_the_same_names_whatever_stays_in_float(digits: Data) -> None:
    """So that statistics collected once serve every layout."""
    model = settled(torchvision_spec("mobilenet_v3_small", digits), digits.train)
    remove_blocks(model.network, MOBILENET_REPEATS)
    lowered = lower(model)
    everything = set(quantizers_of(insert_quantizers(lowered)))
    for name in list(layers_of(lowered))[::5]:
        layout = QuantizedLayout(float_layers=(name,))
        assert set(quantizers_of(insert_quantizers(lowered, layout))) <= everything


class _Clipped(nn.Module):
    """A convolution and a clip between it and a linear layer."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.conv, self.clip, self.head = (
            nn.Conv2d(1, 4, 3),
            nn.Hardtanh(low, high),
            nn.Linear(4, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.clip(self.conv(x)).amax((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("low", "high", "fused"),
    [(0.0, 6.0, True), (-1.0, 0.0, True), (1.0, 2.0, False), (-3.0, -1.0, False)],
)
def test_a_clip_becomes_part_of_the_quantizer_if_it_contains_zero(
    digits: Data, low: float, high: float, fused: bool
) -> None:
    normalize = build(student_spec(digits)).normalize
    model = insert_quantizers(lower(Classifier(normalize, _Clipped(low, high)).eval()))
    bounds = {(quantizer.lowest, quantizer.highest) for quantizer in quantizers_of(model).values()}
    assert ((low, high) in bounds) is fused
    assert any(node.target is aten.hardtanh.default for node in model.graph.nodes) is not fused
