from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.architectures.build import Classifier, build
from compress.architectures.spec import ModelSpec
from compress.data.config import DataConfig
from compress.data.dataset import Data
from compress.data.load import load_data
from compress.int8.conversion import convert
from compress.int8.graph import layers_of, quantizers_of
from compress.int8.ptq import fit_to_cpu
from compress.onnx_file import export_onnx
from tests.conftest import settled, student_spec, torchvision_spec
from tests.int8.helpers import (
    MOBILENET_REPEATS,
    PLAN,
    briefly_trained,
    calibration,
    optimized_operators,
    quantized_file,
    run_file,
    trained_student,
)

FLOAT_COMPUTE = {"Conv", "FusedConv", "Gemm", "FusedGemm", "ReduceMean"}
CONVOLUTIONAL = FLOAT_COMPUTE | {
    *("MatMul", "Add", "Mul", "AveragePool", "MaxPool", "Concat"),
    *("HardSigmoid", "HardSwish", "Sigmoid", "Relu", "Clip", "BatchNormalization"),
}
"""Operators that must not remain in float where everything should be int8."""
FAMILIES = {
    "scaled_resnet": (32, 13, CONVOLUTIONAL),
    "mobilenet_v3_small": (32, 54, CONVOLUTIONAL),
    "resnet18": (32, 21, CONVOLUTIONAL),
    "alexnet": (64, 8, CONVOLUTIONAL),
    "shufflenet_v2_x0_5": (32, 57, CONVOLUTIONAL),
    "squeezenet1_1": (64, 26, CONVOLUTIONAL),
    "mobilenet_v2": (32, 53, CONVOLUTIONAL),
    "vgg11": (32, 11, CONVOLUTIONAL),
    "vgg11_bn": (32, 11, CONVOLUTIONAL),
    "resnet50": (32, 54, CONVOLUTIONAL),
    "resnext50_32x4d": (32, 54, CONVOLUTIONAL),
    "wide_resnet50_2": (32, 54, CONVOLUTIONAL),
    "densenet121": (32, 121 + 62, CONVOLUTIONAL),
    "googlenet": (32, 58, CONVOLUTIONAL),
    "inception_v3": (75, 95, CONVOLUTIONAL),
    "mobilenet_v3_large": (32, 64, CONVOLUTIONAL),
    "mnasnet0_5": (32, 53, CONVOLUTIONAL),
    "efficientnet_b0": (32, 82, CONVOLUTIONAL),
    "efficientnet_v2_s": (32, 171, CONVOLUTIONAL),
    "regnet_y_400mf": (32, 86, CONVOLUTIONAL),
    "convnext_tiny": (32, 59, FLOAT_COMPUTE),
    "vit_b_16": (32, 50, FLOAT_COMPUTE),
    "swin_t": (32, 53, FLOAT_COMPUTE),
}
"""Image size, number of layers, and operators that must not remain in float."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_runs_in_int8_as_simulated_in_torch(tmp_path: Path, name: str) -> None:
    size, layers, forbidden = FAMILIES[name]
    data = load_data("digits", DataConfig(size=size), seed=0)
    spec = torchvision_spec(name, data)
    model = briefly_trained(spec, data)
    check_int8(model, spec, data, tmp_path, layers=layers, forbidden=forbidden)


def test_a_residual_network_runs_in_int8_as_simulated_in_torch(
    digits: Data, tmp_path: Path
) -> None:
    spec, (model, _) = student_spec(digits), trained_student()
    check_int8(model, spec, digits, tmp_path, layers=10, forbidden=CONVOLUTIONAL)


def test_gates_and_depthwise_layers_run_in_int8_as_simulated_in_torch(tmp_path: Path) -> None:
    data = load_data("digits", DataConfig(size=32), seed=0)
    spec = torchvision_spec("mobilenet_v3_small", data)
    model = briefly_trained(spec, data, removed=MOBILENET_REPEATS)
    check_int8(model, spec, data, tmp_path, layers=26, forbidden=CONVOLUTIONAL)


def check_int8(
    model: Classifier,
    spec: ModelSpec,
    data: Data,
    tmp_path: Path,
    *,
    layers: int,
    forbidden: set[str],
) -> None:
    quantized, path = quantized_file(model, spec, data, tmp_path)
    found = layers_of(quantized)  # type: ignore[arg-type]
    assert len(found) == layers
    assert all(layer.converted for layer in found.values())
    operators = optimized_operators(path, tmp_path)
    assert not forbidden & set(operators), operators
    assert operators["QLinearConv"] + operators["QGemm"] == layers
    by_type = Counter[int]()
    for tensor in onnx.load(path).graph.initializer:
        by_type[tensor.data_type] += int(np.prod(tensor.dims))
    weights = sum(layer.weight_int8.numel() for layer in found.values())
    assert by_type[onnx.TensorProto.INT8] >= 0.999 * weights  # equal tensors are stored once
    images = torch.cat([batch.images for batch in data.train.batches(100)])[:500]
    with torch.no_grad():
        expected = np.concatenate([quantized(part).numpy() for part in images.split(100)])
    got = np.concatenate([run_file(path, part) for part in images.split(100)])
    odd = run_file(path, images[:7])  # dynamic batch
    assert np.allclose(odd, got[:7], atol=1e-4)
    assert (expected.argmax(1) == got.argmax(1)).mean() >= 0.998
    # A value halfway between two levels may round either way; a wrong scale anywhere would cause
    # differences as large as the outputs.
    assert np.abs(got - expected).mean() < 0.02 * expected.std()


def test_a_plain_chain_is_exact(digits: Data, tmp_path: Path) -> None:
    spec = student_spec(digits, depths=[1])
    model = settled(spec, digits.train)
    block = model.get_submodule("network.blocks.0")
    plain = nn.Sequential(block.conv1, block.bn1, nn.ReLU())  # type: ignore[arg-type]
    model.network.blocks = plain
    quantized, path = quantized_file(model.eval(), spec, digits, tmp_path)
    images = next(iter(digits.test.batches(300))).images
    with torch.no_grad():
        expected = quantized(images).numpy()
    difference = np.abs(run_file(path, images) - expected).max(1)
    # Layers are exact; the mean over the image may occasionally round the other way.
    assert (difference < 1e-5).mean() >= 0.99
    assert difference.max() < 0.05 * expected.std()


class _Odd(nn.Module):
    """Operators without integer kernels between operators with them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.GroupNorm(2, 8), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.norm(self.first(x)))
        x = F.leaky_relu(self.second(x)) * 2 + x.cumsum(2)
        return self.head(x.amax((2, 3)))  # type: ignore[no-any-return]


def test_operators_without_integer_kernels_stay_in_float(digits: Data, tmp_path: Path) -> None:
    spec = student_spec(digits)
    torch.manual_seed(0)
    model = Classifier(build(spec).normalize, _Odd()).eval()
    quantized, path = quantized_file(model, spec, digits, tmp_path)
    operators = optimized_operators(path, tmp_path)
    assert operators["QLinearConv"] == 2
    assert operators["QGemm"] == 1
    images = next(iter(digits.test.batches(100))).images
    with torch.no_grad():
        expected = quantized(images).numpy()
        assert np.abs(model(images).numpy() - expected).mean() < 0.05 * expected.std()
    assert np.abs(run_file(path, images) - expected).max() < 0.05 * expected.std()


BOUNDS = [(-1.0, 1.0), (1.0, 2.0), (0.0, 6.0), (-6.0, 0.0), (-0.001, 6.0)]
MORE_BOUNDS = [
    *((-2.0, 0.5), (-0.5, 2.0), (0.0, 1.0), (-1.0, 0.0), (-3.0, -1.0), (-6.0, 0.001)),
    *((-2.0, 1.0), (-1.0, 5.0)),
]


class _Clipped(nn.Module):
    """Two convolutions, each followed by a clipping activation."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.first.weight.data *= 8  # so that both bounds are reached
        self.activation, self.head = activation, nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.first(x))
        x = self.activation(self.second(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_leaky_relu_is_one_integer_operator_and_exact(digits: Data, tmp_path: Path) -> None:
    spec = student_spec(digits)
    torch.manual_seed(0)
    model = Classifier(build(spec).normalize, _Clipped(nn.LeakyReLU(0.1))).eval()
    quantized, path = quantized_file(model, spec, digits, tmp_path)
    operators = optimized_operators(path, tmp_path)
    assert (operators["QLinearLeakyRelu"], operators["DequantizeLinear"]) == (2, 0)
    images = next(iter(digits.test.batches(100))).images
    with torch.no_grad():
        expected = quantized(images)
    assert np.abs(run_file(path, images) - expected.numpy()).max() < 1e-4 * expected.std()


CLIPS = [*(nn.Hardtanh(*bounds) for bounds in BOUNDS), nn.Hardsigmoid(), nn.ReLU()]
MORE_CLIPS = [nn.Hardtanh(*bounds) for bounds in MORE_BOUNDS]


@pytest.mark.parametrize(
    ("activation", "learned"),
    [
        *((clip, False) for clip in CLIPS),
        *((clip, True) for clip in CLIPS[:2]),
        *(pytest.param(clip, False, marks=pytest.mark.slow) for clip in MORE_CLIPS),
        *(pytest.param(clip, True, marks=pytest.mark.slow) for clip in CLIPS[2:] + MORE_CLIPS),
    ],
    ids=str,
)
def test_clipping_activations_match_the_simulation_and_float(
    digits: Data, tmp_path: Path, activation: nn.Module, learned: bool
) -> None:
    """Hardtanh(-1, 1) used to clip at 0.5 after conversion."""
    spec = student_spec(digits)
    torch.manual_seed(0)
    model = Classifier(build(spec).normalize, _Clipped(activation)).eval()
    found = calibration(model, digits)
    quantized = found.quantize(fit_to_cpu(PLAN, found))
    if learned:  # as if training had increased the scales
        for quantizer in quantizers_of(quantized).values():
            if quantizer.highest < float("inf"):
                quantizer.scale.data *= 3
    converted = convert(quantized)
    export_onnx(converted, spec, tmp_path / "int8.onnx", digest="", stage="quantize")
    images = next(iter(digits.test.batches(200))).images
    with torch.no_grad():
        simulated, exact = converted(images), model(images)
    got = torch.from_numpy(run_file(tmp_path / "int8.onnx", images))
    assert (got - simulated).abs().mean() < 0.02 * exact.std()
    assert (got - exact).abs().mean() < 0.06 * exact.std()
