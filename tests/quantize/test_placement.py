from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from compress.architectures.spec import ModelSpec
from compress.data.load import Data
from compress.export.onnx_file import export_onnx
from compress.quantize.modules import PixelInput, QuantizedLayer
from compress.quantize.placement import freeze, place_quantizers
from compress.quantize.ptq import calibrate
from tests.conftest import settled, student_spec, torchvision_spec

FUSED = {"Conv", "Gemm", "MatMul", "Add", "GlobalAveragePool", "AveragePool", "MaxPool", "Concat"}


def optimised_operators(path: Path, tmp_path: Path) -> Counter[str]:
    """What ONNX Runtime makes of a file."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def quantized_file(spec: ModelSpec, data: Data, folder: Path) -> tuple[torch.nn.Module, Path]:
    model = settled(spec, data.train)
    batches = data.train.batches(32, order=torch.arange(256))
    quantized = freeze(calibrate(model, (batch.images for batch in batches)))
    path = folder / "int8.onnx"
    export_onnx(quantized, spec, path, digest="", stage="quantize")
    return quantized, path


@pytest.mark.parametrize(
    ("name", "layers"),
    [("resnet18", 21), ("resnet50", 54), ("mobilenet_v2", 53), ("vgg11_bn", 11)],
)
def test_no_float_operator_is_left_and_torch_computes_the_same(
    digits: Data, tmp_path: Path, name: str, layers: int
) -> None:
    if name == "vgg11_bn":
        from compress.data.config import DataConfig
        from compress.data.load import load_data

        digits = load_data("digits", DataConfig(size=32), seed=0)
    quantized, path = quantized_file(torchvision_spec(name, digits), digits, tmp_path)
    assert sum(isinstance(module, QuantizedLayer) for module in quantized.modules()) == layers
    operators = optimised_operators(path, tmp_path)
    assert not FUSED & set(operators), operators
    assert operators["QLinearConv"] + operators["QGemm"] == layers
    images = digits.test.labels.new_tensor(range(100))
    pixels = next(iter(digits.test.batches(100, order=images))).images
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"pixels": pixels.numpy()})
    with torch.no_grad():
        expected = quantized(pixels).numpy()
    # ONNX Runtime's addition may round a value the other way, and an untrained network amplifies
    # that; a wrong scale anywhere would give differences of the outputs' own size.
    assert np.abs(got - expected).mean() < 0.2 * expected.std()


def test_a_plain_chain_is_exact(digits: Data, tmp_path: Path) -> None:
    """Without additions, which round differently, both sides agree to float precision."""
    spec = student_spec(digits, depths=[1])
    model = settled(spec, digits.train)
    block = model.get_submodule("network.blocks.0")
    plain = torch.nn.Sequential(block.conv1, block.bn1, torch.nn.ReLU())  # type: ignore[arg-type]
    model.network.blocks = plain
    batches = digits.train.batches(32, order=torch.arange(128))
    quantized = freeze(calibrate(model.eval(), (batch.images for batch in batches)))
    path = tmp_path / "chain.onnx"
    export_onnx(quantized, spec, path, digest="", stage="quantize")
    pixels = next(iter(digits.test.batches(300))).images
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"pixels": pixels.numpy()})
    with torch.no_grad():
        expected = quantized(pixels).numpy()
    assert np.abs(got - expected).max() < 1e-5


def test_the_first_convolution_takes_the_bytes(digits: Data) -> None:
    placed = place_quantizers(settled(student_spec(digits), digits.train))
    first = placed.get_submodule("normalize")
    assert isinstance(first, PixelInput)
    assert int(first.zero_point) == round(255 * digits.preprocess.mean[0])


def test_folding_the_normalisation_changes_nothing_but_the_border(digits: Data) -> None:
    from compress.quantize.placement import observe

    model = settled(student_spec(digits), digits.train)
    placed = place_quantizers(model)
    observe(placed, on=True)  # float arithmetic
    pixels = next(iter(digits.test.batches(64))).images
    with torch.no_grad():
        assert torch.allclose(placed(pixels), model(pixels), atol=2e-3)


def test_the_model_itself_is_left_alone(digits: Data) -> None:
    model = settled(student_spec(digits), digits.train)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calibrate(model, (batch.images for batch in digits.train.batches(64)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_are_stored_as_bytes(digits: Data, tmp_path: Path) -> None:
    _, path = quantized_file(student_spec(digits), digits, tmp_path)
    tensors = onnx.load(path).graph.initializer
    by_type = Counter[int]()
    for tensor in tensors:
        by_type[tensor.data_type] += int(np.prod(tensor.dims))
    assert by_type[onnx.TensorProto.INT8] > 75_000
    assert by_type[onnx.TensorProto.FLOAT] < 2_000  # scales


def test_calibration_keeps_no_images(digits: Data) -> None:
    """The ranges of 1,300 images in one pass equal those of many small batches."""
    model = settled(student_spec(digits), digits.train)
    few = calibrate(model, (batch.images for batch in digits.train.batches(1300)))
    many = calibrate(model, (batch.images for batch in digits.train.batches(7)))
    for name, tensor in few.state_dict().items():
        assert torch.allclose(tensor, many.state_dict()[name], atol=1e-4), name
