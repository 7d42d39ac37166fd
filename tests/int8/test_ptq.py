import dataclasses
import subprocess
import sys

import pytest
import torch

from compress.data.load import Data
from compress.int8.config import OBSERVERS, Observer
from compress.int8.conversion import convert
from compress.int8.graph import layers_of, quantizers_of, set_mode
from compress.int8.lowering import lower
from compress.int8.ptq import Calibration, Plan
from compress.train.evaluate import evaluate
from tests.conftest import settled, student_spec
from tests.int8.helpers import PLAN, briefly_trained, calibration


@pytest.mark.parametrize("observer", OBSERVERS)
def test_every_observer_keeps_the_accuracy(digits: Data, observer: Observer) -> None:
    model = briefly_trained(student_spec(digits), digits)
    _, before = evaluate(model, digits.test)
    plan = Plan(observer=observer, weights="mse")
    _, after = evaluate(calibration(model, digits).quantize(plan), digits.test)
    assert before > 80
    assert after > before - 2


def test_batches_do_not_matter_for_the_extremes(digits: Data) -> None:
    lowered = lower(settled(student_spec(digits), digits.train))

    def ranges(batch: int) -> dict[str, float]:
        batches = digits.train.batches
        found = Calibration(lowered, lambda: (b.images for b in batches(batch))).quantize(PLAN)
        return {name: float(module.scale) for name, module in quantizers_of(found).items()}

    assert ranges(1300) == pytest.approx(ranges(7), rel=1e-2)


MEMORY = """
import resource, sys, torch
from compress.data.config import DataConfig
from compress.data.load import load_data
from compress.int8.lowering import lower
from compress.int8.ptq import Calibration, Plan
from tests.conftest import student_spec
from compress.architectures.build import build
data = load_data("digits", DataConfig(size=32), seed=0)
model = build(student_spec(data)).eval()
order = torch.arange(int(sys.argv[1])) % len(data.train)
calibration = Calibration(
    lower(model), lambda: (b.images for b in data.train.batches(32, order=order))
)
calibration.quantize(Plan(observer="entropy", weights="mse"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_is_flat_from_32_to_4096_images() -> None:
    def peak(images: int) -> int:
        command = [sys.executable, "-c", MEMORY, str(images)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return int(done.stdout.split()[-1])

    few, many = peak(32), peak(4096)
    # All activations of 4,096 images would take gigabytes.
    assert many - few < 40_000, f"{few} kB, then {many} kB"


def test_equalizing_changes_nothing_in_float_and_evens_the_weights(digits: Data) -> None:
    model = settled(student_spec(digits), digits.train)
    found = calibration(model, digits)
    plain, equal = found.lowered(equalized=False), found.lowered(equalized=True)
    images = next(iter(digits.test.batches(50))).images
    for network in (plain, equal):
        set_mode(network, "float")
    with torch.no_grad():
        expected = plain(images)
        assert (equal(images) - expected).abs().max() < 1e-3 * expected.std()
    weights = [layers_of(network)["blocks.0.conv1"].weight for network in (plain, equal)]
    spread = [float(weight.flatten(1).abs().amax(1).log().std().detach()) for weight in weights]
    assert spread[1] != pytest.approx(spread[0])


def errors(network: torch.nn.Module, reference: torch.nn.Module, data: Data) -> torch.Tensor:
    images = next(iter(data.train.batches(300))).images
    with torch.no_grad():
        difference: torch.Tensor = network(images) - reference(images)
    return difference


@pytest.fixture(scope="module")
def coarse(digits: Data) -> tuple[torch.nn.Module, Calibration, Plan]:
    """A network with 7-bit weights, which leave something to correct."""
    model = briefly_trained(student_spec(digits), digits)
    found = calibration(model, digits)
    names = frozenset(layers_of(found.lowered(equalized=False)))
    return model, found, Plan(observer="minmax", weights="max", reduced_layers=names)


def test_corrected_biases_bring_the_mean_outputs_back(
    digits: Data, coarse: tuple[torch.nn.Module, Calibration, Plan]
) -> None:
    model, found, plan = coarse
    corrected = dataclasses.replace(plan, bias_correction=True)
    before = errors(convert(found.quantize(plan)), model, digits).mean(0).abs().mean()
    after = errors(convert(found.quantize(corrected)), model, digits).mean(0).abs().mean()
    assert after < 0.5 * before


def test_learnt_rounding_comes_nearer_to_float(
    digits: Data, coarse: tuple[torch.nn.Module, Calibration, Plan]
) -> None:
    model, found, plan = coarse
    corrected = dataclasses.replace(plan, adaround=True)
    before = errors(convert(found.quantize(plan)), model, digits).pow(2).mean()
    after = errors(convert(found.quantize(corrected)), model, digits).pow(2).mean()
    assert after < 0.8 * before
