from collections.abc import Sequence

import pytest

from compress.architectures.build import build
from compress.architectures.resize import remove_blocks
from compress.data.dataset import Data
from compress.int8.graph import layers_of
from compress.int8.lowering import lower
from compress.measure.cost import count_macs
from compress.prune.latency import LatencyModel, LayerCurve, LayerShape, layer_shapes
from tests.conftest import torchvision_spec
from tests.int8.helpers import MOBILENET_REPEATS


def test_a_curve_interpolates_along_channels() -> None:
    curve = LayerCurve(
        in_channels=(32, 128),
        out_channels=(16, 64, 128),
        ms=((1.0, 2.0, 4.0), (3.0, 6.0, 12.0)),
        half_in=0.5,
        half_out=0.25,
    )
    assert curve(32, 64) == 2.0
    assert curve(80, 64) == pytest.approx(4.0)
    assert curve(32, 96) == pytest.approx(3.0)
    # 88 lies between 80 and 96, which take 2.5 and 3 ms; half a step saves a quarter of one.
    assert curve(32, 88) == pytest.approx(3.0 - 0.25 * 0.5)
    assert (curve.half_pays(writes=False), curve.half_pays(writes=True)) == (True, False)


@pytest.mark.parametrize(
    ("name", "removed"),
    [
        ("resnet18", ()),
        ("mobilenet_v3_small", MOBILENET_REPEATS),
        pytest.param("shufflenet_v2_x0_5", (), marks=pytest.mark.slow),
    ],
)
def test_the_layers_macs_are_the_networks(digits: Data, name: str, removed: Sequence[str]) -> None:
    spec = torchvision_spec(name, digits)
    model = build(spec).eval()
    remove_blocks(model.network, removed)
    lowered = lower(model)
    images = next(iter(digits.test.batches(1))).images
    shapes = layer_shapes(lowered, images)
    layers = layers_of(lowered)
    affine = [layer for layer in layers if layer.endswith(".affine")]  # was a BatchNorm
    total = sum(
        shapes[layer].macs(*layers[layer].channels) for layer in shapes if layer not in affine
    )
    assert total == pytest.approx(count_macs(model, spec), rel=1e-6)


def test_the_macs_of_a_strided_and_dilated_convolution() -> None:
    shape = LayerShape(
        kernel=(3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, size=(16, 20)
    )
    # Rows: (16 + 2 - 2 - 1) // 2 + 1 = 8; columns: (20 + 4 - 8 - 1) // 1 + 1 = 16.
    assert shape.weights(8, 6) == 15 * 6 * 4
    assert shape.macs(8, 6) == 8 * 16 * 15 * 6 * 4
    linear = LayerShape(
        kernel=(0, 0), stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, size=(5, 1)
    )
    assert (linear.macs(8, 6), linear.weights(8, 6)) == (240, 48)


def test_a_layer_is_scaled_from_its_share_of_the_whole_network() -> None:
    conv = LayerShape(
        kernel=(1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, size=(4, 4)
    )
    curve = LayerCurve(
        in_channels=(16,), out_channels=(16, 32), ms=((0.3, 0.5),), half_in=0.0, half_out=0.0
    )
    model = LatencyModel(
        shapes={"a": conv},
        curves={"a": curve},
        unpruned={"a": (16, 32)},
        main_ms={"a": 2.0},
        rest_ms={"a": 1.0},
        overhead_ms=0.1,
        scale=3.0,
    )
    assert model.layer_ms("a", 16, 32) == pytest.approx(3 * (2 + 1))
    assert model.layer_ms("a", 16, 16) == pytest.approx(3 * (2 * 0.2 / 0.4 + 0.5))
