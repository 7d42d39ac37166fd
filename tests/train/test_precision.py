"""The faster precision is chosen and cached."""

import math
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress.train.precision import choose_precision, has_bf16

CPU = torch.device("cpu")


class Slow(nn.Module):
    """Sleeps in one of the two precisions."""

    def __init__(self, slow: str) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)
        self.slow = slow

    def forward(self, images: Tensor) -> Tensor:
        """Maps `[N, 1, 2, 2]` to `[N, 2]`."""
        bf16 = torch.is_autocast_enabled("cpu")
        STEPS.append(bf16)
        if bf16 == (self.slow == "bf16"):
            time.sleep(0.02)
        return self.fc(images.float().flatten(1))  # type: ignore[no-any-return]


STEPS: list[bool] = []


@pytest.mark.parametrize(
    ("slow", "supported", "faster"),
    [("bf16", True, "fp32"), ("fp32", True, "bf16"), ("fp32", False, "fp32")],
)
def test_the_faster_precision_is_chosen_and_cached(
    slow: str,
    supported: bool,
    faster: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr("compress.cache.STEADY", math.inf)
    monkeypatch.setattr("compress.train.precision.has_bf16", lambda _device: supported)
    images = torch.zeros(64, 1, 2, 2, dtype=torch.uint8)
    STEPS.clear()
    assert choose_precision(Slow(slow), images, CPU, training=True) == faster
    assert set(STEPS) == ({False, True} if supported else set())  # emulation would take a minute
    STEPS.clear()
    assert choose_precision(Slow(slow), images, CPU, training=True) == faster
    assert not STEPS


class Uneven(nn.Module):
    """Every other step takes many times as long."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Maps `[N, 1, 2, 2]` to `[N, 2]`."""
        STEPS.append(torch.is_autocast_enabled("cpu"))
        time.sleep(0.04 if len(STEPS) // 2 % 2 else 0.001)
        return self.fc(images.float().flatten(1))  # type: ignore[no-any-return]


def test_unstable_timings_are_not_cached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr("compress.train.precision.has_bf16", lambda _device: True)
    images = torch.zeros(64, 1, 2, 2, dtype=torch.uint8)
    for _ in range(2):
        STEPS.clear()
        choose_precision(Uneven(), images, CPU, training=True)
        assert STEPS
        assert "(steps in fp32 and bf16); their repeats differ by" in capsys.readouterr().err


def test_emulated_bf16_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU without it, PyTorch calls bf16 supported unless asked for more."""

    def emulated(*, including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", emulated)
    assert not has_bf16(torch.device("cuda"))
