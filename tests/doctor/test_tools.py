"""What other tools write: ONNX Runtime's quantizer, PyTorch's exporter for timm, Caffe2."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from bench.peers import run_peer
from compress.checkpoint import MODEL_FILE
from compress.data.dataset import Data
from compress.data.splits import as_numpy
from compress.doctor.examine import examine
from tests.doctor.helpers import float_model, saved


class Noise(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        images = np.random.default_rng(0).random((4, 1, 3, 16, 16), np.float32)
        self.feeds: Iterator[dict[str, np.ndarray]] = iter([{"images": one} for one in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


QDQ, OPERATORS = QuantFormat.QDQ, QuantFormat.QOperator
INT8, UINT8 = QuantType.QInt8, QuantType.QUInt8


@pytest.mark.parametrize(
    ("form", "activations", "symmetric", "expected"),
    [  # beside the saturation of 8-bit weights
        pytest.param(QDQ, UINT8, False, set(), id="recommended"),
        # ONNX Runtime turns int8 into uint8, but a ReLU whose zero point is in the middle stays.
        pytest.param(QDQ, INT8, False, set(), id="the default"),
        pytest.param(QDQ, INT8, True, {"unfused-qdq"}, id="symmetric"),
        pytest.param(OPERATORS, UINT8, False, set(), id="operators"),
        pytest.param(OPERATORS, INT8, False, {"int8-activations"}, id="operators, int8"),
    ],
)
def test_quantize_static(
    form: QuantFormat,
    activations: QuantType,
    symmetric: bool,
    expected: set[str],
    tmp_path: Path,
) -> None:
    quantize_static(
        saved(float_model(), tmp_path),
        tmp_path / "int8.onnx",
        Noise(),
        quant_format=form,
        activation_type=activations,
        weight_type=INT8,
        per_channel=True,
        extra_options={"ActivationSymmetric": symmetric},
    )
    found = {finding.check for finding in examine(tmp_path / "int8.onnx").findings}
    assert found == expected | {"saturation"}


@pytest.mark.slow  # installs NNCF into an environment of its own
def test_nncf(finished_run: Path, digits: Data, tmp_path: Path) -> None:
    source, out = finished_run / "2-prune", tmp_path / "int8.onnx"
    batch = next(iter(digits.train.batches(64)))
    np.save(tmp_path / "images.npy", as_numpy(batch.images))
    run_peer(
        "NNCF",
        float_file=source / MODEL_FILE,
        checkpoint=source,
        images=tmp_path / "images.npy",
        out=out,
    )
    found = {finding.check for finding in examine(out).findings}
    assert found == {"saturation", "dequantized-weights"}  # the last Gemm's


def test_a_layer_excluded_from_quantization_is_quantized_all_the_same(tmp_path: Path) -> None:
    quantize_static(
        saved(float_model(), tmp_path),
        tmp_path / "int8.onnx",
        Noise(),
        quant_format=QDQ,
        activation_type=UINT8,
        weight_type=INT8,
        reduce_range=True,
        nodes_to_exclude=["conv2"],
    )
    (finding,) = examine(tmp_path / "int8.onnx").findings
    assert (finding.check, finding.where) == ("silently-quantized", ("conv2",))


def test_quantize_dynamic(tmp_path: Path) -> None:
    quantize_dynamic(saved(float_model(), tmp_path), tmp_path / "int8.onnx", reduce_range=True)
    assert examine(tmp_path / "int8.onnx").findings == ()


OLD = {"frozen-batch", "old-opset", "missing-metadata"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("densenet121", {"batchnorm", "denormals"}),
        ("inception_v2", {"batchnorm"}),
        ("shufflenet", set()),
        ("squeezenet", set()),
    ],
)
def test_files_of_the_model_zoo(name: str, expected: set[str]) -> None:
    """Of 2019, as the onnx package ships them for its own tests."""
    folder = Path(onnx.__file__).parent / "backend/test/data/light"
    found = {finding.check for finding in examine(folder / f"light_{name}.onnx").findings}
    assert found == expected | OLD


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("convnext_atto", {"mean-pool"}),
        ("densenet121", {"mean-pool", "batchnorm"}),  # before convolutions
        ("ghostnet_050", {"mean-pool", "misaligned-channels"}),
        ("lcnet_035", {"mean-pool"}),
        ("mobilenetv3_small_050", {"mean-pool"}),
        ("mobileone_s0", {"mean-pool", "batchnorm"}),  # beside convolutions
        ("regnetx_002", {"mean-pool", "dead-channels"}),  # untrained gains of zero
        ("resnet18", {"mean-pool", "dead-channels"}),
        ("tf_efficientnet_lite0", {"mean-pool"}),  # its Pads become part of convolutions
        ("tf_mobilenetv3_small_minimal_100", {"mean-pool"}),
        ("tinynet_e", {"mean-pool"}),
        ("vit_tiny_patch16_224", set()),
    ],
)
@pytest.mark.filterwarnings("ignore")  # the exporter's
def test_timm(name: str, expected: set[str], tmp_path: Path) -> None:
    sized: dict[str, Any] = {"img_size": 64} if name.startswith("vit") else {}
    model = timm.create_model(name, pretrained=False, num_classes=10, **sized).eval()
    torch.onnx.export(
        model,
        (torch.randn(2, 3, 64, 64),),
        tmp_path / "model.onnx",
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    found = {finding.check for finding in examine(tmp_path / "model.onnx").findings}
    assert found == expected | {"missing-metadata"}
