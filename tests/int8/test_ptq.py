import subprocess
import sys

import pytest
import torch

from compress.data.dataset import Data
from compress.int8.config import OBSERVERS, Observer
from compress.int8.graph import quantizers_of
from compress.int8.lowering import lower
from compress.int8.ptq import Calibration, Plan
from compress.train.evaluate import evaluate
from tests.conftest import settled, student_spec
from tests.int8.helpers import PLAN, calibration, trained_student


@pytest.mark.parametrize("observer", OBSERVERS)
def test_every_observer_keeps_the_accuracy(digits: Data, observer: Observer) -> None:
    model, found = trained_student()
    _, before = evaluate(model, digits.test)
    plan = Plan(observer=observer, weights="mse")
    _, after = evaluate(found.quantize(plan), digits.test)
    assert before > 80
    assert after > before - 2


def test_batch_size_does_not_matter_for_the_extremes(digits: Data) -> None:
    lowered = lower(settled(student_spec(digits), digits.train))

    def ranges(batch: int) -> dict[str, float]:
        batches = digits.train.batches
        found = Calibration(lowered, lambda: (b.images for b in batches(batch))).quantize(PLAN)
        return {name: float(module.scale) for name, module in quantizers_of(found).items()}

    assert ranges(1300) == pytest.approx(ranges(7), rel=1e-2)


MEMORY = """
import resource, torch
from compress.data.config import DataConfig
from compress.data.load import load_data
from compress.int8.lowering import lower
from compress.int8.ptq import Calibration, Plan
from tests.conftest import student_spec
from compress.architectures.build import build
data = load_data("digits", DataConfig(size=32), seed=0)
model = build(student_spec(data)).eval()
for count in (32, 1024):
    order = torch.arange(count) % len(data.train)
    calibration = Calibration(
        lower(model), lambda: (b.images for b in data.train.batches(32, order=order))
    )
    calibration.quantize(Plan(observer="entropy", weights="mse"))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_is_flat_from_32_to_1024_images() -> None:
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    few, many = map(int, done.stdout.split()[-2:])
    # All activations of 1,024 images would take hundreds of megabytes.
    assert many - few < 40_000, f"{few} kB, then {many} kB"


def test_the_original_model_is_left_alone(digits: Data) -> None:
    model = settled(student_spec(digits), digits.train)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = Plan(observer="mse", weights="mse", equalization=True, bias_correction=True)
    calibration(model, digits).quantize(plan)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
