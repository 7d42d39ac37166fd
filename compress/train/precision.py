"""Training precision: bf16 or fp32, whichever a short benchmark finds faster on this machine."""

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.cache import Measurement, cached_measurement, spread_of
from compress.train.config import Precision

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
PROBE_STEPS = 5
MIN_BF16_SPEEDUP = 1.1
"""Required speedup, above the noise of a short benchmark."""


@dataclass(frozen=True, kw_only=True)
class StepSeconds:
    """Seconds per step."""

    fp32: float
    bf16: float


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Returns the autocast context for forward passes."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def choose_precision(
    model: nn.Module, images: Tensor, device: torch.device, *, training: bool
) -> Precision:
    """Benchmarks fp32 and bf16 and returns the faster one; fp32 if the device lacks bf16.

    On CPUs with bf16 instructions it doubles the speed of dense convolutions and halves that of
    depthwise ones, so each network is measured. A stable result is cached: the same machine always
    picks the same precision, which keeps results reproducible.

    Args:
        model: takes images; not modified.
        images: uint8 `[N, C, H, W]`, N as in real use: bf16 gains more on larger batches.
        device: where to run.
        training: whether to include the backward pass.
    """
    if not has_bf16(device):
        return "fp32"

    def measure() -> Measurement[StepSeconds]:
        steps = {name: _stepper(model, images, device, name, training) for name in PRECISIONS}
        # Interleaved, so that noise hits both; the minimum is the most reliable.
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(1 + PROBE_STEPS):  # the first step builds the kernels
            for name, step in steps.items():
                times[name].append(step())
        seconds = StepSeconds(**{name: min(values) for name, values in times.items()})
        spread = max(spread_of(values[1:]) for values in times.values())
        return Measurement(value=seconds, spread=spread)

    structure = {
        "training": training,
        "shapes": {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        "images": tuple(images.shape),
        "device": _device_name(device),
    }
    seconds = cached_measurement(StepSeconds, "steps in fp32 and bf16", structure, measure)
    return "bf16" if seconds.fp32 > MIN_BF16_SPEEDUP * seconds.bf16 else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Returns whether bf16 is native; emulated, a step with a large batch can take a minute."""
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
    """Returns a function that runs one step on a copy of the model and returns its seconds."""
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
