from pathlib import Path

from compress.architectures.resize import remove_blocks
from compress.data.dataset import Data
from compress.int8.conversion import convert
from compress.int8.graph import layers_of
from compress.int8.layer_profile import layer_costs, layer_edges
from compress.onnx_file import export_onnx
from tests.conftest import settled, torchvision_spec
from tests.int8.helpers import MOBILENET_REPEATS, PLAN, calibration


def test_every_layer_of_a_real_network_has_its_time(digits: Data, tmp_path: Path) -> None:
    spec = torchvision_spec("mobilenet_v3_small", digits)
    model = settled(spec, digits.train)
    remove_blocks(model.network, MOBILENET_REPEATS)
    export_onnx(model, spec, tmp_path / "float.onnx", digest="", stage="teacher")
    quantized = convert(calibration(model, digits, n=64).quantize(PLAN))
    export_onnx(quantized, spec, tmp_path / "int8.onnx", digest="", stage="quantize")
    costs, spread = layer_costs(tmp_path / "float.onnx", tmp_path / "int8.onnx", threads=1)
    assert spread >= 0
    names = list(layers_of(quantized))
    assert sorted(costs) == sorted(names)
    assert all(cost.float_ms > 0 and cost.int8_ms > 0 for cost in costs.values())
    edges = layer_edges(tmp_path / "int8.onnx", threads=1)
    assert {name for edge in edges for name in (edge.writer, edge.reader)} == set(names)
    assert all(edge.conversion_ms > 0 for edge in edges)
