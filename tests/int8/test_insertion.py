from pathlib import Path

import numpy as np
import torch

from compress.checkpoint import QuantizedLayout
from compress.data.load import Data
from compress.int8.graph import layers_of, quantizers_of
from compress.int8.insertion import insert_quantizers
from compress.int8.lowering import lower
from compress.int8.ptq import Plan
from tests.conftest import settled, student_spec, torchvision_spec
from tests.int8.helpers import optimized_operators, quantized_file, run_file


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
    lowered = lower(settled(torchvision_spec("mobilenet_v3_small", digits), digits.train))
    everything = set(quantizers_of(insert_quantizers(lowered)))
    for name in list(layers_of(lowered))[::7]:
        layout = QuantizedLayout(float_layers=(name,))
        assert set(quantizers_of(insert_quantizers(lowered, layout))) <= everything
