"""How many images a step's gradients are computed for at once, by the memory that is free."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from compress import distributed
from compress.errors import CompressError
from compress.host import groups
from compress.train.precision import Precision, autocast

MOST = 0.5
"""Of the free memory that a step may take."""
OVERHEAD = 1.8
"""A step's peak over the tensors that it keeps for the backward pass: gradients of activations,
copies in other layouts and what the allocator cannot use again."""
SMALLEST = 2
"""Images; BatchNorm cannot normalize one."""
PROBE_IMAGES = 2 * SMALLEST
"""Enough to tell what grows with the images from what does not."""


def fitting_batch(
    model: nn.Module, images: Tensor, batch_size: int, device: torch.device, precision: Precision
) -> int:
    """Returns the batch size, halved until a step fits into `MOST` of the free memory.

    Gradients of the parts are added up, so the step stays that of the whole batch, but for
    BatchNorm, which normalizes each part by itself.

    Args:
        model: takes images; on the device; it is left as it was.
        images: uint8 `[N, C, H, W]`, `PROBE_IMAGES` unless the set has fewer, of full size.
        batch_size: of the step, in this process.
        device: what computes.
        precision: of its arithmetic.

    Raises:
        CompressError: not even the smallest part fits.
    """
    need = OVERHEAD * bytes_an_image(model, images, device, precision)
    budget = MOST * free_memory(device) / distributed.processes_here()
    micro_batch = batch_size
    while micro_batch > SMALLEST and micro_batch * need > budget:
        micro_batch = max(SMALLEST, math.ceil(micro_batch / 2))
    micro_batch = distributed.decide_least(micro_batch)
    if micro_batch * need > 2 * budget:
        raise CompressError(
            f"out of memory before the first step: {micro_batch} images take about "
            f"{_gib(micro_batch * need)}, {_gib(2 * budget)} are free; take smaller images "
            "(--set data.size=128) or a smaller network"
        )
    return micro_batch


def bytes_an_image(
    model: nn.Module, images: Tensor, device: torch.device, precision: Precision
) -> float:
    """Returns the bytes that a forward pass keeps for the backward pass, an image.

    Args:
        model: takes images; it is left as it was.
        images: uint8 `[N, C, H, W]`, two or more.
        device: what computes.
        precision: of its arithmetic.
    """
    probe = copy.deepcopy(model).train()
    few, more = SMALLEST, min(PROBE_IMAGES, len(images))
    kept = {n: _kept_bytes(probe, images[:n].to(device), precision) for n in {few, more}}
    if few == more:
        return kept[few] / few
    return (kept[more] - kept[few]) / (more - few)  # without what does not grow: weights


def _kept_bytes(model: nn.Module, images: Tensor, precision: Precision) -> int:
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = images.float().contiguous(memory_format=torch.channels_last)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        autocast(precision, images.device),
    ):
        kept_alive = model(images)  # a storage that is freed would give its address to another
    del kept_alive
    return sum(storages.values())


def free_memory(device: torch.device) -> int:
    """Returns the bytes that can still be taken, on the device or, for a CPU, on this machine.

    On Linux that is what the kernel calls available, or what the cgroup's limit leaves if that is
    less; elsewhere a guess that splits nothing.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = _proc_value(Path("/proc/meminfo"), "MemAvailable:")
    left = [] if available is None else [1024 * available]
    for group in groups("memory"):
        left += _left_in(group)
    return min(left, default=2**60)


def _left_in(group: Path) -> list[int]:
    """Returns what one cgroup's limit leaves; empty without a limit. Cached files do not count."""
    for limit, used, inactive in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = int((group / limit).read_text(encoding="utf-8"))
            now = int((group / used).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none, or "max"
            continue
        cached = _proc_value(group / "memory.stat", inactive) or 0
        return [max(0, most - now + cached)]
    return []


def _proc_value(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), None)


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
