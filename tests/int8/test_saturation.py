import itertools
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compress.data.dataset import Data
from compress.data.splits import stratified_sample
from compress.host import describe_host
from compress.int8.conversion import convert
from compress.int8.graph import layers_of
from compress.int8.layer import Layer
from compress.int8.ptq import Plan
from compress.int8.saturation import (
    emulating_saturation,
    find_saturation,
    reduce_range,
    saturation_excess,
)
from compress.onnx_file import export_onnx
from tests.conftest import student_spec
from tests.int8.helpers import run_file, trained_student

ZERO_POINT = 200
"""So large that padding saturates too."""
PLAN = Plan(observer="minmax", weights="max")


def converted(weight: torch.Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1) -> Layer:
    """A layer with exactly these integer weights."""
    if weight.ndim == 2:
        layer = Layer.linear(weight, None)
    else:
        layer = Layer.conv(weight, None, ((stride, stride), (padding, padding), (1, 1), groups))
    layer.quantize("input")
    layer.weight_scale.data.fill_(1.0)
    layer.convert(torch.tensor(1.0))
    return layer


def saturated_sum(products: list[int]) -> int:
    """Adds pairs of products in int16, as vpmaddubsw does, then in int32."""
    products = products + [0] * (len(products) % 2)
    pairs = zip(products[::2], products[1::2], strict=True)
    return sum(max(-32768, min(32767, one + other)) for one, other in pairs)


def reference(levels: torch.Tensor, layer: Layer, stride: int, padding: int) -> torch.Tensor:
    """Computed in plain Python, position by position; levels `[N, C, H, W]` are raw uint8."""
    weight = layer.weight_int8.int()
    padded = nn.functional.pad(levels, (padding,) * 4, value=ZERO_POINT).int()
    out, _, height, width = weight.shape
    rows = (padded.shape[2] - height) // stride + 1
    columns = (padded.shape[3] - width) // stride + 1
    result = torch.zeros(len(levels), out, rows, columns)
    for n in range(len(levels)):
        for o in range(out):
            for y in range(rows):
                for x in range(columns):
                    window = padded[
                        n, :, y * stride : y * stride + height, x * stride : x * stride + width
                    ]
                    products = (window * weight[o]).permute(1, 2, 0).flatten().tolist()
                    zero = ZERO_POINT * int(weight[o].sum())
                    result[n, o, y, x] = saturated_sum(products) - zero
    return result


@pytest.mark.parametrize(("channels", "stride", "padding"), [(4, 1, 1), (3, 2, 0), (2, 2, 1)])
def test_a_convolution_saturates_as_in_plain_python(
    channels: int, stride: int, padding: int
) -> None:
    torch.manual_seed(0)
    layer = converted(
        torch.randint(-127, 128, (5, channels, 3, 3)).float(), stride=stride, padding=padding
    )
    raw = torch.randint(0, 256, (2, channels, 6, 5)).float()
    levels = raw - ZERO_POINT
    excess = saturation_excess(layer, levels, ZERO_POINT)
    assert excess.any()
    exact = layer.operation(levels, layer.weight_int8.float(), None)
    assert torch.equal(exact - excess, reference(raw, layer, stride, padding))


def test_a_linear_layer_saturates_as_in_plain_python() -> None:
    torch.manual_seed(0)
    layer = converted(torch.randint(-127, 128, (4, 7)).float())
    raw = torch.randint(200, 256, (3, 7)).float()
    excess = saturation_excess(layer, raw - ZERO_POINT, ZERO_POINT)
    assert excess.any()
    exact = layer.operation(raw - ZERO_POINT, layer.weight_int8.float(), None)
    weight = layer.weight_int8.int()
    for n, o in itertools.product(range(3), range(4)):
        products = (raw[n].int() * weight[o]).tolist()
        expected = saturated_sum(products) - ZERO_POINT * int(weight[o].sum())
        assert (exact - excess)[n, o] == expected


def test_seven_bits_never_saturate() -> None:
    torch.manual_seed(0)
    layer = converted(63 * torch.randint(0, 2, (8, 16, 1, 1)).float() * 2 - 63)
    raw = torch.full((1, 16, 4, 4), 255.0)
    assert not saturation_excess(layer, raw, 0).any()


def test_saturating_layers_are_found_and_fixed_by_reduced_range(digits: Data) -> None:
    _, found = trained_student()
    order = stratified_sample(digits.validation.labels, 100, seed=0)
    batch = next(iter(digits.validation.batches(100, order=order)))
    network = convert(found.quantize(PLAN))
    before = network(batch.images)
    saturation = find_saturation(network, digits.validation, 100)
    assert torch.equal(network(batch.images), before)
    assert 0 < len(saturation.layers) < len(layers_of(network))
    assert saturation.top1 == pytest.approx(
        100 * float((before.argmax(1) == batch.labels).float().mean())
    )
    plan = reduce_range(found, PLAN, digits.validation, 100)
    assert set(saturation.layers) <= plan.reduced_layers
    reduced = convert(found.quantize(plan))
    assert not find_saturation(reduced, digits.validation, 100).layers


def test_the_file_computes_what_is_claimed_of_this_cpu(digits: Data, tmp_path: Path) -> None:
    """Exact sums with VNNI, emulated ones without: the CPU itself is the reference."""
    spec, (_, found) = student_spec(digits), trained_student()
    network = convert(found.quantize(PLAN))
    path = tmp_path / "int8.onnx"
    export_onnx(network, spec, path, digest="", stage="quantize")
    images = next(iter(digits.validation.batches(100))).images
    exact = describe_host().multiplies_bytes_exactly
    with torch.no_grad(), nullcontext() if exact else emulating_saturation(network):
        expected = network(images).numpy()
    assert np.abs(run_file(path, images) - expected).mean() < 0.01 * expected.std()
