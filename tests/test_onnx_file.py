from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from compress.data.dataset import Data
from compress.export.parity import check_parity
from compress.onnx_file import INPUT, OPSET, OUTPUT, export_onnx, read_facts
from tests.conftest import settled, student_spec


@pytest.fixture(scope="module")
def exported(
    digits: Data, tmp_path_factory: pytest.TempPathFactory
) -> tuple[torch.nn.Module, Path]:
    spec = student_spec(digits)
    model = settled(spec, digits.train)
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(model, spec, path, digest="abc", stage="distill")
    return model, path


def test_the_signature_is_bytes_in_logits_out(exported: tuple[torch.nn.Module, Path]) -> None:
    session = ort.InferenceSession(exported[1], providers=["CPUExecutionProvider"])
    (put,), (out,) = session.get_inputs(), session.get_outputs()
    assert (put.name, put.type, put.shape) == (INPUT, "tensor(uint8)", ["batch", 1, 16, 16])
    assert (out.name, out.type, out.shape) == (OUTPUT, "tensor(float)", ["batch", 10])
    for batch in (1, 2, 7, 64):
        images = np.zeros((batch, 1, 16, 16), np.uint8)
        assert session.run(None, {INPUT: images})[0].shape == (batch, 10)


def test_the_file_is_valid_and_says_what_it_is(
    exported: tuple[torch.nn.Module, Path], digits: Data
) -> None:
    proto = onnx.load(exported[1])
    onnx.checker.check_model(proto, full_check=True)
    assert proto.opset_import[0].version >= OPSET
    facts = read_facts(exported[1])
    assert facts.class_names == digits.class_names
    assert facts.preprocess == digits.preprocess
    assert (facts.digest, facts.stage) == ("abc", "distill")


def test_no_path_of_this_machine_is_in_the_file(exported: tuple[torch.nn.Module, Path]) -> None:
    content = exported[1].read_bytes()
    assert str(Path(__file__).parents[1]).encode() not in content
    assert b"site-packages" not in content


def test_torch_and_the_file_agree(exported: tuple[torch.nn.Module, Path], digits: Data) -> None:
    model, path = exported
    parity = check_parity(model, path, digits.test)
    assert parity.top1_agreement == 100
    assert parity.max_difference < 1e-4
    assert set(parity.max_difference_by_batch) == {"1", "2", "7"}


def test_a_difference_is_seen(exported: tuple[torch.nn.Module, Path], digits: Data) -> None:
    other = settled(student_spec(digits), digits.train, seed=1)
    parity = check_parity(other, exported[1], digits.test)
    assert parity.top1_agreement < 90
    assert parity.max_difference > 0.1


def test_other_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    with pytest.raises(ValueError, match="not an ONNX file"):
        read_facts(text)
    foreign = tmp_path / "foreign.onnx"
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [out])), foreign)
    with pytest.raises(ValueError, match="not written by compress"):
        read_facts(foreign)


def test_equal_constants_are_stored_once(exported: tuple[torch.nn.Module, Path]) -> None:
    """An untrained network has many: the gains of all BatchNorms are 1."""
    tensors = [
        (tensor.data_type, tuple(tensor.dims), tensor.raw_data)
        for tensor in onnx.load(exported[1]).graph.initializer
    ]
    assert len(tensors) == len(set(tensors))
