"""Facts about this machine, written into every report."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from compress.measure.cgroup import UNLIMITED, cpu_quota

LIBRARIES = (
    *("torch", "torchvision", "torch-pruning", "onnx", "onnxruntime"),
    *("numpy", "pillow", "scipy"),
)
"""Those that compute what is reported."""
ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""Instruction sets that decide how fast int8 and bf16 run."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """What a latency means nothing without."""

    cpu: str
    isa: tuple[str, ...]
    cores: int
    """Cores this process may use."""
    system: str
    python: str
    versions: dict[str, str]

    @property
    def multiplies_bytes_exactly(self) -> bool:
        """False on x86 chips without VNNI, whose sums of uint8 times int8 saturate."""
        return "x86" not in self.system or bool({"avx512_vnni", "avx_vnni"} & set(self.isa))


def describe_host() -> Host:
    """Returns the facts of this machine."""
    flags = set(_cpuinfo("flags").split())
    return Host(
        cpu=cpu_name(),
        isa=tuple(flag for flag in ISA_FLAGS if flag in flags),
        cores=allowed_cores(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=library_versions(),
    )


def library_versions() -> dict[str, str]:
    """Returns the versions of the libraries that decide a result."""
    return {name: version(name) for name in LIBRARIES}


def cpu_name() -> str:
    """Returns the processor's model name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def allowed_cores() -> int:
    """Returns on how many cores this process may compute at once.

    That is the cores of its affinity mask, but no more than the CPU quota of its cgroups pays for,
    rounded up: of further threads the kernel would always hold one back while the others wait.
    """
    quota = cpu_quota()
    cores = _cores_in_mask()
    return cores if quota == UNLIMITED else max(1, min(cores, math.ceil(quota)))


def is_quota_short() -> bool:
    """Tells whether the quota allows less than the affinity mask does."""
    return allowed_cores() < _cores_in_mask()


def _cores_in_mask() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpuinfo(field: str) -> str:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return ""
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""
