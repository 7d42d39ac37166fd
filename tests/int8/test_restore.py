from pathlib import Path

import pytest
import torch
from torch import fx

from compress.checkpoint import (
    Checkpoint,
    Product,
    QuantizedLayout,
    load_checkpoint,
    write_checkpoint,
)
from compress.data.dataset import Data
from compress.errors import CheckpointError
from compress.int8.conversion import convert
from compress.int8.graph import layers_of
from compress.int8.restore import load_model
from tests.conftest import student_spec
from tests.int8.helpers import PLAN, trained_student


@pytest.fixture(scope="module")
def network() -> fx.GraphModule:
    _, found = trained_student()
    return convert(found.quantize(PLAN))


def saved_int8(
    network: fx.GraphModule, data: Data, folder: Path, layout: QuantizedLayout
) -> Checkpoint:
    folder.mkdir()
    write_checkpoint(
        folder,
        Product(model=network, spec=student_spec(data), quantized=layout, result=None),
        stage="quantize",
        lineage=(),
    )
    return load_checkpoint(folder)


def test_an_int8_network_is_restored_bit_by_bit(
    network: fx.GraphModule, digits: Data, tmp_path: Path
) -> None:
    checkpoint = saved_int8(network, digits, tmp_path / "int8", QuantizedLayout())
    restored = load_model(checkpoint)
    images = next(iter(digits.test.batches(50))).images
    with torch.no_grad():
        assert torch.equal(restored(images), network(images))


def test_tensors_of_another_layout_are_refused_by_name(
    network: fx.GraphModule, digits: Data, tmp_path: Path
) -> None:
    name = list(layers_of(network))[1]
    layout = QuantizedLayout(float_layers=(name,))
    checkpoint = saved_int8(network, digits, tmp_path / "int8", layout)
    with pytest.raises(CheckpointError, match=f"{name}.bias is missing there, but float32"):
        load_model(checkpoint)
