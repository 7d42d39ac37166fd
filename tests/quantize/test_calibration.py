import dataclasses
from pathlib import Path

import pytest
import torch

from compress.data.dataset import Data
from compress.host import Host
from compress.int8.graph import layers_of
from compress.int8.ptq import CALIBRATION_BATCH, Plan, fit_to_cpu
from compress.quantize.calibration import calibrate, plan_of
from compress.quantize.config import QuantizeConfig
from tests.conftest import saved, student_spec
from tests.int8.helpers import PLAN, trained_student
from tests.quantize.helpers import context_for


def test_a_plan_has_the_settings_and_all_layers_in_int8() -> None:
    assert plan_of(QuantizeConfig()) == Plan(observer="mse", weights="mse")
    config = QuantizeConfig(
        observer="entropy", weights="max", equalization=True, bias_correction=True, adaround=True
    )
    assert plan_of(config) == Plan(
        observer="entropy", weights="max", equalization=True, bias_correction=True, adaround=True
    )
    assert plan_of(QuantizeConfig(observer="auto")).observer == "minmax"


@pytest.mark.parametrize("exact", [True, False])
def test_all_layers_get_7_bits_where_sums_saturate(
    monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    monkeypatch.setattr(Host, "multiplies_bytes_exactly", exact)
    _, found = trained_student()
    names = set(layers_of(found.lowered(equalized=False)))
    assert fit_to_cpu(PLAN, found) == dataclasses.replace(
        PLAN, reduced_layers=frozenset(set() if exact else names)
    )


def test_calibration_sees_so_many_training_images_in_batches(digits: Data, tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "float", student_spec(digits), digits)
    found = calibrate(checkpoint, QuantizeConfig(calib=40), context_for(digits, tmp_path))
    for _ in range(2):  # each time from the start
        batches = list(found._batches())
        assert [len(batch) for batch in batches] == [CALIBRATION_BATCH, CALIBRATION_BATCH, 8]
        assert {batch.dtype for batch in batches} == {torch.uint8}
    training = {image.numpy().tobytes() for image in next(iter(digits.train.batches(5000))).images}
    assert {image.numpy().tobytes() for batch in batches for image in batch} <= training
