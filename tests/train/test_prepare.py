"""Setup of a training run."""

import pytest
import torch
from torch import nn

from compress.architectures.build import build
from compress.data.dataset import Data
from compress.train.config import MUON, TrainConfig
from compress.train.muon import Muon
from compress.train.prepare import (
    accepts_start_size,
    data_on,
    make_ema,
    make_optimizer,
    raise_batchnorm_momentum,
)
from tests.conftest import student_spec
from tests.train.test_epoch import Linear

CPU = torch.device("cpu")


@pytest.mark.parametrize("config", [TrainConfig(), MUON], ids=["sgd", "muon"])
def test_biases_norms_and_frozen_parameters_do_not_decay(config: TrainConfig) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    model[2].weight.requires_grad = False
    decayed, others = make_optimizer(model, config, "fp32").param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 1, 3, 3)]
    assert decayed["weight_decay"] == config.weight_decay
    assert [tuple(p.shape) for p in others["params"]] == [(2,)] * 4
    assert others["weight_decay"] == 0


def test_the_optimizer_is_the_configured_one() -> None:
    model = nn.Linear(2, 2)
    sgd = make_optimizer(model, TrainConfig(lr=0.3, momentum=0.7), "fp32")
    assert isinstance(sgd, torch.optim.SGD)
    facts = {name: sgd.defaults[name] for name in ("lr", "momentum", "nesterov")}
    assert facts == {"lr": 0.3, "momentum": 0.7, "nesterov": True}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        muon = make_optimizer(model, MUON, precision)  # type: ignore[arg-type]
        assert isinstance(muon, Muon)
        assert muon.dtype == dtype
        assert muon.defaults["momentum"] == 0.95


def test_statistics_of_slow_batchnorms_are_those_of_the_images(digits: Data) -> None:
    """MNASNet's momentum of 0.0003 keeps the initial variance of 1 through a short training."""
    torch.manual_seed(0)
    model = nn.BatchNorm2d(1, momentum=0.0003, affine=False)
    raise_batchnorm_momentum(model, steps=60)
    images = next(iter(digits.train.batches(200))).images.float() / 255
    for _ in range(60):
        model(images)
    assert model.running_var is not None
    assert model.running_var.item() == pytest.approx(float(images.var()), rel=1e-4)
    fast = nn.BatchNorm2d(1)
    raise_batchnorm_momentum(fast, steps=100_000)
    assert fast.momentum == 0.1


def test_the_ema_warms_up() -> None:
    """Weights 0, 1, 2, ...: by hand up to the third, and close behind the last after 200."""
    model = nn.Linear(1, 1, bias=False)
    average = make_ema(model, 0.999)
    assert average is not None
    means = []
    for step in range(200):
        nn.init.constant_(model.weight, step)
        average.update_parameters(model)
        means.append(next(average.module.parameters()).item())
    second = 2 / 11 * 0 + 9 / 11 * 1
    third = 3 / 12 * second + 9 / 12 * 2
    assert means[:3] == pytest.approx([0, second, third])
    assert 199 - means[-1] < 25  # without a warm-up it would be 181 behind
    assert make_ema(model, 0) is None


def test_the_ema_forgets_no_faster_than_its_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = make_ema(model, 0.5)
    assert average is not None
    for weight in (*[0.0] * 10, 1.0):
        nn.init.constant_(model.weight, weight)
        average.update_parameters(model)
    assert next(average.module.parameters()).item() == pytest.approx(0.5)


def test_networks_with_a_fixed_input_size_are_recognized(digits: Data) -> None:
    config = TrainConfig(start_size=0.5)
    convolutional = build(student_spec(digits)).train()
    assert accepts_start_size(config, convolutional, digits, CPU) is True
    assert convolutional.training is True
    assert accepts_start_size(config, Linear(), digits, CPU) is False


def test_data_stays_on_the_cpu(digits: Data) -> None:
    assert data_on(digits, CPU) is digits
