from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.architectures.build import Classifier, Normalize, build
from compress.architectures.resize import remove_blocks
from compress.data.config import DataConfig
from compress.data.dataset import Data
from compress.data.load import load_data
from compress.int8.graph import layers_of, set_mode
from compress.int8.insertion import insert_quantizers
from compress.int8.lowering import lower
from compress.int8.quantizer import ImageInput
from compress.prune.batchnorm import reestimate_batchnorm
from tests.conftest import settled, student_spec, torchvision_spec
from tests.int8.helpers import MOBILENET_REPEATS, optimized_operators, quantized_file, run_file


def test_an_enlarging_pool_is_folded_into_the_next_layer(digits: Data) -> None:
    spec = student_spec(digits)
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 6, 3, stride=digits.preprocess.size // 3), nn.AdaptiveAvgPool2d(7)),
        *(nn.Flatten(), nn.Dropout(), nn.Linear(6 * 49, 10)),
    )
    model = Classifier(build(spec).normalize, network).eval()
    lowered = lower(model)
    side = network[0](torch.zeros(1, 1, digits.preprocess.size, digits.preprocess.size)).shape[-1]
    assert 1 < side < 7
    assert layers_of(lowered)["4"].weight.shape == (10, 6 * side**2)
    images = next(iter(digits.test.batches(50))).images
    set_mode(lowered, "float")
    with torch.no_grad():
        assert torch.allclose(lowered(images), model(images), atol=1e-5)


class PreActivation(nn.Module):
    """Has a BatchNorm that follows no layer, and a product with a number, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Maps `[N, 1, H, W]` to `[N, 10]`."""
        x = F.relu(self.norm(F.relu(self.first(images)))) * 0.5
        return self.fc(F.relu(self.second(x)).mean((2, 3)))  # type: ignore[no-any-return]


def test_a_batchnorm_after_no_layer_and_a_number_as_factor_keep_the_results(digits: Data) -> None:
    torch.manual_seed(0)
    model = Classifier(build(student_spec(digits)).normalize, PreActivation())
    reestimate_batchnorm(model, digits.train)
    quantized = insert_quantizers(lower(model.eval()))
    set_mode(quantized, "float")
    images = next(iter(digits.test.batches(50))).images
    with torch.no_grad():
        assert torch.allclose(quantized(images), model(images), atol=1e-5)


def test_the_first_convolution_takes_uint8_images(digits: Data) -> None:
    quantized = insert_quantizers(lower(settled(student_spec(digits), digits.train)))
    first = quantized.get_submodule("normalize")
    assert isinstance(first, ImageInput)
    assert int(first.zero_point) == round(255 * digits.preprocess.mean[0])


def test_folding_the_normalization_keeps_the_magnitude_of_weights(digits: Data) -> None:
    """For inputs 0..255 they would be hundreds of times smaller, too small to train."""
    model = settled(student_spec(digits), digits.train)
    for name, layer in layers_of(insert_quantizers(lower(model))).items():
        assert 0.01 < float(layer.weight.detach().abs().mean()) < 10, name


@pytest.mark.parametrize(
    ("name", "removed"), [("scaled_resnet", ()), ("mobilenet_v3_small", MOBILENET_REPEATS)]
)
def test_lowering_changes_results_at_the_border_only(
    digits: Data, name: str, removed: Sequence[str]
) -> None:
    """Folding the normalization is exact except for the zero padding of the first layer."""
    spec = student_spec(digits) if name == "scaled_resnet" else torchvision_spec(name, digits)
    model = settled(spec, digits.train)
    remove_blocks(model.network, removed)
    quantized = insert_quantizers(lower(model))
    set_mode(quantized, "float")
    images = next(iter(digits.test.batches(64))).images
    with torch.no_grad():
        expected = model(images)
        assert (quantized(images) - expected).abs().max() < 0.1 * expected.std()


def test_convnexts_layer_scale_is_folded(digits: Data) -> None:
    data = load_data("digits", DataConfig(size=32), seed=0)
    torch.manual_seed(0)
    model = build(torchvision_spec("convnext_tiny", data)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale"):
            nn.init.normal_(parameter)
    quantized = insert_quantizers(lower(model))
    set_mode(quantized, "float")
    assert not any("mul" in str(node.target) for node in quantized.graph.nodes)
    images = next(iter(data.test.batches(8))).images
    with torch.no_grad():
        expected = model(images)
        assert (quantized(images) - expected).abs().max() < 1e-3 * expected.std()


class Affine(nn.Module):
    """A number as factor and another as summand after each ReLU, as in PP-HGNetV2."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 10, 3)
        self.factor, self.summand = (nn.Parameter(torch.tensor([x])) for x in (factor, 0.3))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, 1, 16, 16]` to `[N, 10]`."""
        x = F.relu(self.first(x)) * self.factor + self.summand
        return self.second(x).mean((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("factor", "n_products"), [(1.7, 0), (-1.7, 1)])
def test_a_factor_is_folded_through_a_relu_unless_it_is_negative(
    factor: float, n_products: int, digits: Data
) -> None:
    torch.manual_seed(0)
    model = Classifier(build(student_spec(digits)).normalize, Affine(factor)).eval()
    lowered = lower(model)
    assert sum("mul" in str(node.target) for node in lowered.graph.nodes) == n_products
    images = next(iter(digits.test.batches(8))).images
    with torch.no_grad():
        expected = model(images)
        assert (lowered(images) - expected).abs().max() < 1e-3 * expected.std()


class Padded(nn.Module):
    """Explicit padding before convolutions: uneven, even, shared by two, and one that is a crop."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2)
        self.even = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.left, self.right = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, 1, 16, 16]` to `[N, 10]`."""
        x = F.relu(self.stem(F.pad(x, (0, 1, 0, 1))))
        x = F.relu(self.even(F.pad(x, (1, 1, 2, 2))))
        padded = F.pad(x, (1, 0, 2, 1))
        x = F.relu(self.left(padded)) + F.relu(self.right(padded))
        x = F.relu(self.left(F.pad(x, (-1, 1, 0, 0))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_explicit_padding_becomes_part_of_convolutions(digits: Data, tmp_path: Path) -> None:
    spec = student_spec(digits)
    torch.manual_seed(0)
    model = Classifier(Normalize(spec.preprocess), Padded()).eval()
    lowered = lower(model)
    targets = [str(node.target) for node in lowered.graph.nodes]
    assert sum("pad" in target for target in targets) == 1  # the crop
    images = next(iter(digits.test.batches(64))).images
    with torch.no_grad():
        assert torch.allclose(lowered(images), model(images), atol=1e-5)
    quantized, path = quantized_file(model, spec, digits, tmp_path)
    operators = optimized_operators(path, tmp_path)
    assert (operators["QLinearConv"], operators["Pad"]) == (5, 1)
    with torch.no_grad():
        expected = quantized(images)
    found = torch.from_numpy(run_file(path, images))
    assert (found - expected).abs().max() < 0.02 * expected.std()


class Same(nn.Module):
    """Convolutions with padding `same` and `valid`; an even kernel pads unevenly."""

    def __init__(self) -> None:
        super().__init__()
        self.odd = nn.Conv2d(1, 8, (3, 5), padding="same")
        self.even = nn.Conv2d(8, 8, (4, 3), padding="same", dilation=(1, 2), groups=8, bias=False)
        self.valid = nn.Conv2d(8, 8, 3, padding="valid", stride=2)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, 1, 16, 16]` to `[N, 10]`."""
        for layer in (self.odd, self.even, self.valid):
            x = F.relu(layer(x))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_named_padding_is_int8_as_simulated_in_torch(digits: Data, tmp_path: Path) -> None:
    """Such convolutions of ConvMixer stayed in float, where ONNX Runtime rounded their weights."""
    spec = student_spec(digits)
    torch.manual_seed(0)
    model = Classifier(Normalize(spec.preprocess), Same()).eval()
    lowered = lower(model)
    assert {"odd", "even", "valid"} <= set(layers_of(lowered))
    images = next(iter(digits.test.batches(64))).images
    with torch.no_grad():
        inner = lowered(images) - model(images)
    quantized, path = quantized_file(model, spec, digits, tmp_path)
    operators = optimized_operators(path, tmp_path)
    assert (operators["QLinearConv"], operators["Conv"], operators["Pad"]) == (3, 0, 0)
    with torch.no_grad():
        expected = quantized(images)
    found = torch.from_numpy(run_file(path, images))
    assert (found - expected).abs().max() < 1e-4 * expected.std()
    assert inner.abs().max() < 0.1 * expected.std()
