"""Faults planted one at a time: each is found, and only that; without it, the file is silent."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from compress.doctor.examine import CHECKS, examine
from compress.errors import CompressError
from compress.onnx_file import WITHOUT_VNNI
from tests.doctor.helpers import (
    DENORMAL,
    SCALE,
    Plant,
    float_model,
    insert,
    int8_model,
    node,
    put_values,
    saved,
    values,
)


def _reflect(proto: onnx.ModelProto) -> None:
    put_values(proto, "pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    insert(proto, "Pad", "conv2", ["pads"], mode="reflect")


def _pad_between_quantizers(proto: onnx.ModelProto) -> None:
    put_values(proto, "pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    for operator, name in (("QuantizeLinear", "padded.q"), ("DequantizeLinear", "padded.dq")):
        insert(proto, operator, "conv2", ["relu1.scale", "relu1.zero"])
        node(proto, "planted").output[0] = name
        node(proto, "conv2").input[0] = name
        node(proto, "planted").name = name
    insert(proto, "Pad", "padded.q", ["pads"])


def _batchnorm(proto: onnx.ModelProto, **attributes: int) -> None:
    for name in ("gain", "shift", "mean", "variance"):
        put_values(proto, name, np.ones(16, np.float32))
    insert(proto, "BatchNormalization", "pool", ["gain", "shift", "mean", "variance"], **attributes)


def _training_batchnorm(proto: onnx.ModelProto) -> None:
    _batchnorm(proto, training_mode=1)
    node(proto, "planted").output.extend(["new_mean", "new_variance"])


def _mean_pool(proto: onnx.ModelProto) -> None:
    put_values(proto, "axes", np.array([-1, -2]))
    pool = node(proto, "pool")
    pool.op_type = "ReduceMean"
    pool.input.append("axes")


def _mean_pool_of_old(proto: onnx.ModelProto) -> None:
    """Before opset 18, the axes are an attribute."""
    proto.opset_import[0].version = 13
    pool = node(proto, "pool")
    pool.op_type = "ReduceMean"
    pool.attribute.extend([helper.make_attribute("axes", [2, 3])])


def _mean_pool_with_axes_in_a_node(proto: onnx.ModelProto) -> None:
    pool = node(proto, "pool")
    pool.op_type = "ReduceMean"
    pool.input.append("axes")
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["axes"], value_ints=[2, 3]))


def _in_nodes(proto: onnx.ModelProto) -> None:
    """Weights as Constant nodes, as old exporters wrote them."""
    _denormals(proto)
    for tensor in proto.graph.initializer:
        constant = helper.make_node("Constant", [], [tensor.name], value=tensor)
        proto.graph.node.insert(0, constant)
    del proto.graph.initializer[:]


def _scaled_alike(proto: onnx.ModelProto) -> None:
    """MaxPool with another scale on its output."""
    put_values(proto, "max.scale", np.float32(2 * SCALE))
    put_values(proto, "conv2.b.scale", 2 * values(proto, "conv2.b.scale"))


def _shifted_relu(proto: onnx.ModelProto) -> None:
    put_values(proto, "relu2.zero", np.uint8(3))


def _activation_without_kernel(proto: onnx.ModelProto) -> None:
    node(proto, "relu2").op_type = "HardSigmoid"


def _sum_without_quantizer(proto: onnx.ModelProto) -> None:
    """A residual sum that reads a convolution's float output."""
    insert(proto, "Add", "relu2", ["conv2"])
    node(proto, "planted").input[1] = "twin"
    twin = helper.make_node("Conv", ["max.dq", "conv2.w.dq", "conv2.b.dq"], ["twin"], name="twin")
    twin.attribute.extend(node(proto, "conv2").attribute)
    proto.graph.node.insert(list(proto.graph.node).index(node(proto, "planted")), twin)


def _float_weights(proto: onnx.ModelProto) -> None:
    scale = values(proto, "conv2.w.scale").reshape(-1, 1, 1, 1)
    put_values(proto, "float", values(proto, "conv2.w") * scale)
    node(proto, "conv2").input[1] = "float"
    del node(proto, "conv2").input[2]


def _float_bias(proto: onnx.ModelProto) -> None:
    put_values(proto, "float.b", np.ones(10, np.float32))
    node(proto, "logits").input[2] = "float.b"


def _bias_scale(proto: onnx.ModelProto) -> None:
    put_values(proto, "conv2.b.scale", values(proto, "conv2.b.scale") * np.float32(1.05))


def _bias_overflow(proto: onnx.ModelProto) -> None:
    bias = values(proto, "conv2.b")
    bias[3] = -(2**31) + 1
    put_values(proto, "conv2.b", bias)


def _eight_bits(proto: onnx.ModelProto) -> None:
    levels = values(proto, "conv2.w")
    levels[0, :2, 0, 0] = (127, 2)  # sums of up to 32,895
    put_values(proto, "conv2.w", levels)


def _not_a_number(proto: onnx.ModelProto) -> None:
    weight = values(proto, "conv2.w")
    weight[0, 0, 0, 0] = np.nan
    put_values(proto, "conv2.w", weight)


def _denormals(proto: onnx.ModelProto) -> None:
    weight = values(proto, "conv2.w")
    weight[0, 0] = DENORMAL
    put_values(proto, "conv2.w", weight)


def _dead_channel(proto: onnx.ModelProto) -> None:
    weight = values(proto, "conv2.w")
    weight[5] = 0
    put_values(proto, "conv2.w", weight)


def _copy(proto: onnx.ModelProto) -> None:
    """A third convolution with the weights of the second, stored again."""
    for name in ("conv2.w", "copy"):
        put_values(proto, name, np.ones((16, 16, 1, 1), np.float32))
    insert(proto, "Conv", "pool", ["copy"])


def _frozen(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _no_metadata(proto: onnx.ModelProto) -> None:
    del proto.metadata_props[:]


def _old_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 12
    proto.ir_version = 7


def _names(path: Path) -> set[str]:
    return {finding.check for finding in examine(path).findings}


FLOAT: tuple[tuple[str, Plant], ...] = (
    ("explicit-pad", _reflect),
    ("batchnorm", _batchnorm),
    ("training-batchnorm", _training_batchnorm),
    ("mean-pool", _mean_pool),
    ("mean-pool", _mean_pool_of_old),
    ("mean-pool", _mean_pool_with_axes_in_a_node),
    ("not-finite", _not_a_number),
    ("denormals", _denormals),
    ("denormals", _in_nodes),
    ("dead-channels", _dead_channel),
    ("duplicate-weights", _copy),
    ("frozen-batch", _frozen),
    ("missing-metadata", _no_metadata),
    ("old-opset", _old_opset),
)
INT8: tuple[tuple[str, Plant], ...] = (
    ("unfused-qdq", _scaled_alike),
    ("unfused-qdq", _shifted_relu),
    ("unfused-qdq", _activation_without_kernel),
    ("float-island", _sum_without_quantizer),
    ("dequantized-weights", _float_bias),
    ("silently-quantized", _float_weights),
    ("bias-scale", _bias_scale),
    ("bias-overflow", _bias_overflow),
    ("saturation", _eight_bits),
    ("explicit-pad", _pad_between_quantizers),
    ("mean-pool", _mean_pool),
    ("dead-channels", _dead_channel),
)

CONSEQUENCES = {"bias-scale": {"unfused-qdq"}}
"""What the newest ONNX Runtime makes of a fault, beside the fault itself."""


@pytest.mark.parametrize(
    ("model", "check", "plant"),
    [
        pytest.param(model, check, plant, id=f"{model.__name__}-{plant.__name__.strip('_')}")
        for model, cases in ((float_model, FLOAT), (int8_model, INT8))
        for check, plant in cases
    ],
)
def test_a_planted_fault_is_found_and_nothing_else(
    model: Callable[[], onnx.ModelProto], check: str, plant: Plant, tmp_path: Path
) -> None:
    found = _names(saved(model(), tmp_path, plant))
    assert found == {check} | CONSEQUENCES.get(check, set())


@pytest.mark.parametrize("model", [float_model, int8_model])
def test_the_model_without_a_fault_is_silent(
    model: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    assert examine(saved(model(), tmp_path)).findings == ()


def test_channels_that_are_no_multiple_of_four(tmp_path: Path) -> None:
    (finding,) = examine(saved(float_model(channels=10), tmp_path)).findings
    assert (finding.check, finding.where) == ("misaligned-channels", ("conv1", "conv2"))


def test_weights_in_another_file(tmp_path: Path) -> None:
    proto = float_model()
    onnx.save(
        proto, tmp_path / "model.onnx", save_as_external_data=True, location="data",
        size_threshold=0,
    )  # fmt: skip
    (finding,) = examine(tmp_path / "model.onnx").findings
    assert (finding.check, finding.where) == ("external-data", ("data",))
    external = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    (tmp_path / "data").unlink()
    with pytest.raises(CompressError, match="not a file in the same folder"):
        examine(saved(external, tmp_path))


def test_too_many_weights_in_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.doctor.model.MAX_EXTERNAL", 1000)
    path = tmp_path / "model.onnx"
    onnx.save(float_model(), path, save_as_external_data=True, location="data", size_threshold=0)
    with pytest.raises(CompressError, match="of weights"):
        examine(path)


def test_zero_points_that_fit_nowhere_are_passed_over(tmp_path: Path) -> None:
    """ONNX Runtime loads such a file; the layer is not understood, the others are."""

    def without_axis(proto: onnx.ModelProto) -> None:
        del node(proto, "conv2.w.dq").attribute[:]
        _no_metadata(proto)

    found = _names(saved(int8_model(), tmp_path, without_axis))
    assert "missing-metadata" in found


def test_no_groups_are_one(tmp_path: Path) -> None:
    """Such a convolution cannot run, but ONNX Runtime loads it."""

    def ungroup(proto: onnx.ModelProto) -> None:
        node(proto, "conv2").attribute.append(helper.make_attribute("group", 0))

    assert _names(saved(float_model(), tmp_path, ungroup)) == set()


def test_every_check_has_a_fault() -> None:
    planted = {check for check, _ in (*FLOAT, *INT8)}
    elsewhere = {"misaligned-channels", "external-data", "int8-activations"}
    assert planted | elsewhere == {check.name for check in CHECKS}
    assert len(CHECKS) == len({check.name for check in CHECKS})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"layers": ["conv2"], "top1": 90, "top1_saturated": 90, "n_images": 256}', None),
        (
            '{"layers": ["conv2"], "top1": 90, "top1_saturated": 80, "n_images": 256}',
            "top-1 80.00 % instead of 90.00 % on CPUs without VNNI, measured on 256 images",
        ),
        ("5", "1 layer with sums of two products beyond int16"),
        ("{", "1 layer with sums of two products beyond int16"),
    ],
)
def test_what_was_measured_without_vnni_counts(
    text: str, expected: str | None, tmp_path: Path
) -> None:
    proto = int8_model()
    proto.metadata_props.add(key=WITHOUT_VNNI, value=text)
    findings = examine(saved(proto, tmp_path, _eight_bits)).findings
    assert [finding.what for finding in findings] == ([expected] if expected else [])


def test_int8_weights_of_a_layer_that_computes_in_float_do_not_saturate(tmp_path: Path) -> None:
    proto = int8_model()
    made = {output: one for one in proto.graph.node for output in one.output}
    layer = node(proto, "conv2")
    layer.input[0] = made[made[layer.input[0]].input[0]].input[0]  # before both conversions
    found = _names(saved(proto, tmp_path, _eight_bits))
    assert "dequantized-weights" in found
    assert "saturation" not in found


def test_denormals_are_found_while_they_count_as_zeros(tmp_path: Path) -> None:
    """Training makes a process treat them so."""
    torch.set_flush_denormal(True)
    try:
        assert _names(saved(float_model(), tmp_path, _denormals)) == {"denormals"}
    finally:
        torch.set_flush_denormal(False)


def test_a_clip_that_clips_nothing_keeps_a_layer_in_float_on_purpose(tmp_path: Path) -> None:
    def keep(proto: onnx.ModelProto) -> None:
        put_values(proto, "lowest", np.float32(-1e30))
        put_values(proto, "highest", np.float32(1e30))
        insert(proto, "Clip", "conv2", ["lowest", "highest"])

    assert _names(saved(int8_model(), tmp_path, _float_weights, keep)) == set()


@pytest.mark.parametrize(("axis", "expected"), [(0, set()), (1, {"dead-channels"})])
def test_an_output_of_a_product_is_a_column(axis: int, expected: set[str], tmp_path: Path) -> None:
    def transpose(proto: onnx.ModelProto) -> None:
        weight = values(proto, "logits.w").T.copy()
        np.moveaxis(weight, axis, 0)[3] = 0
        put_values(proto, "logits.w", weight)
        del node(proto, "logits").attribute[:]

    assert _names(saved(float_model(), tmp_path, transpose)) == expected
