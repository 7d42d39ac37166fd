"""Micro-batch size: the largest part of a batch that fits into free memory."""

import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from compress import distributed
from compress.errors import CompressError
from compress.host import groups
from compress.train.config import Precision
from compress.train.precision import autocast

MAX_SHARE = 0.5
"""Fraction of the free memory that a step may use."""
OVERHEAD = 1.8
"""Peak memory of a step relative to the tensors saved for the backward pass: activation gradients,
copies in other layouts, fragmentation."""
SMALLEST = 2
"""BatchNorm cannot normalize a single image."""
PROBE_IMAGES = 2 * SMALLEST
"""Enough to separate memory per image from fixed memory."""


def fitting_batch(
    model: nn.Module, images: Tensor, batch_size: int, device: torch.device, precision: Precision
) -> int:
    """Returns the batch size, halved until a step fits into `MAX_SHARE` of the free memory.

    Gradients are accumulated, so the step is that of the full batch, except that BatchNorm
    normalizes each micro-batch separately.

    Args:
        model: takes images; on the device; not modified.
        images: uint8 `[N, C, H, W]` at full size, N up to `PROBE_IMAGES`.
        batch_size: images per step in this process.
        device: where to train.
        precision: precision of the forward pass.

    Raises:
        CompressError: not even two images fit.
    """
    need = OVERHEAD * bytes_per_image(model, images, device, precision)
    budget = MAX_SHARE * free_memory(device) / distributed.processes_here()
    micro_batch = batch_size
    while micro_batch > SMALLEST and micro_batch * need > budget:
        micro_batch = max(SMALLEST, math.ceil(micro_batch / 2))
    micro_batch = distributed.minimum(micro_batch)
    if micro_batch * need > budget / MAX_SHARE:
        raise CompressError(
            f"not enough memory: a batch of {micro_batch} images needs about "
            f"{_gib(micro_batch * need)}, {_gib(budget / MAX_SHARE)} is free; use smaller images "
            "(--set data.size=128) or a smaller network"
        )
    return micro_batch


def bytes_per_image(
    model: nn.Module, images: Tensor, device: torch.device, precision: Precision
) -> float:
    """Returns the bytes per image that a forward pass saves for the backward pass.

    Args:
        model: takes images; not modified.
        images: uint8 `[N, C, H, W]`, N at least 2.
        device: where to train.
        precision: precision of the forward pass.
    """
    probe = copy.deepcopy(model).train()
    few, more = SMALLEST, min(PROBE_IMAGES, len(images))
    saved = {n: _saved_bytes(probe, images[:n].to(device), precision) for n in {few, more}}
    if few == more:
        return saved[few] / few
    return (saved[more] - saved[few]) / (more - few)  # weights cancel out


def _saved_bytes(model: nn.Module, images: Tensor, precision: Precision) -> int:
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = images.float().contiguous(memory_format=torch.channels_last)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        autocast(precision, images.device),
    ):
        logits = model(inputs)  # kept alive: a freed storage could pass its address to another
    del logits
    return sum(storages.values())


def free_memory(device: torch.device) -> int:
    """Returns the free memory of a device in bytes; for a CPU, of this machine.

    On Linux: MemAvailable, or what the cgroup limit leaves if that is less. On other systems: a
    number so large that batches are never split.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = _proc_value(Path("/proc/meminfo"), "MemAvailable:")
    left = [] if available is None else [1024 * available]
    for group in groups("memory"):
        left += _cgroup_free(group)
    return min(left, default=2**60)


def _cgroup_free(group: Path) -> list[int]:
    """Returns the bytes that a cgroup limit leaves, page cache excluded; empty without a limit."""
    for limit, used, inactive in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = int((group / limit).read_text(encoding="utf-8"))
            now = int((group / used).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # no such file, or "max"
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
