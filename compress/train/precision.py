"""Which arithmetic trains faster here: a short probe, its answer remembered per machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.cache import Measurement, cached_measurement, spread_of

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
PROBE_STEPS = 5
BF16_MUST_GAIN = 1.1
"""bf16 is taken only if it is faster by more than the noise of a short probe."""


@dataclass(frozen=True, kw_only=True)
class StepSeconds:
    """What a step takes."""

    fp32: float
    bf16: float


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Returns the context in which forward passes run."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def choose_precision(
    model: nn.Module, images: Tensor, device: torch.device, *, training: bool
) -> Precision:
    """Times some steps in fp32 and bf16, if the device has it, and returns the faster arithmetic.

    bf16 doubles dense convolutions on CPUs that have it and halves depthwise ones, so this is
    measured for each network. A steady answer is remembered: the same machine decides the same way
    every time, and so gives the same result.

    Args:
        model: takes images; it is left as it was.
        images: uint8 `[N, C, H, W]`, as large a batch as it will be given: bf16 gains more on
            larger ones.
        device: where it will run.
        training: whether a step has a backward pass.
    """
    if not has_bf16(device):
        return "fp32"

    def measure() -> Measurement[StepSeconds]:
        steps = {name: _stepper(model, images, device, name, training) for name in PRECISIONS}
        # In turns, so that a moment's noise hits both; the least is the truest.
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(1 + PROBE_STEPS):  # the first builds the kernels
            for name, step in steps.items():
                times[name].append(step())
        seconds = StepSeconds(**{name: min(found) for name, found in times.items()})
        spread = max(spread_of(found[1:]) for found in times.values())
        return Measurement(value=seconds, spread=spread)

    structure = {
        "training": training,
        "shapes": {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        "images": tuple(images.shape),
        "device": _device_name(device),
    }
    seconds = cached_measurement(StepSeconds, "steps in fp32 and bf16", structure, measure)
    return "bf16" if seconds.fp32 > BF16_MUST_GAIN * seconds.bf16 else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Tells whether there are bf16 kernels; emulated, one step of a large batch takes a minute."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    mkldnn = torch.backends.mkldnn.is_available()
    return mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads"


def _stepper(
    model: nn.Module, images: Tensor, device: torch.device, precision: Precision, training: bool
) -> Callable[[], float]:
    """Returns a function that makes one step on a copy and tells its seconds."""
    probe = copy.deepcopy(model).to(device).to(memory_format=torch.channels_last)
    probe.train(training).requires_grad_(training)
    images = images.to(device)
    labels = torch.zeros(len(images), dtype=torch.int64, device=device)

    def step() -> float:
        start = time.perf_counter()
        with torch.set_grad_enabled(training), autocast(precision, device):
            logits = probe(images)
        if training:
            F.cross_entropy(logits.float(), labels).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return step
