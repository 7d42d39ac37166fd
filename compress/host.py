"""Properties of this machine, and the limits that control groups (containers) set."""

import math
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

LIBRARIES = (
    *("torch", "torchvision", "torch-pruning", "onnx", "onnxruntime"),
    *("numpy", "pillow", "scipy"),
)
"""Libraries that affect reported results."""
ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""Instruction sets that affect the speed of int8 and bf16."""
UNLIMITED = math.inf
V2 = ""
"""Used in place of a controller's name: version 2 has a single hierarchy for all of them."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """The machine that a latency was measured on."""

    cpu: str
    isa: tuple[str, ...]
    cores: int
    """Cores that this process may use."""
    system: str
    python: str
    versions: dict[str, str]

    @property
    def multiplies_bytes_exactly(self) -> bool:
        """False on x86 CPUs without VNNI, whose uint8 x int8 sums saturate."""
        return "x86" not in self.system or bool({"avx512_vnni", "avx_vnni"} & set(self.isa))


def describe_host() -> Host:
    """Returns the properties of this machine."""
    flags = set(_cpuinfo("flags").split())
    return Host(
        cpu=_cpuinfo("model name") or platform.processor() or platform.machine(),
        isa=tuple(flag for flag in ISA_FLAGS if flag in flags),
        cores=allowed_cores(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=library_versions(),
    )


def library_versions() -> dict[str, str]:
    """Returns the versions of the libraries that affect results."""
    return {name: version(name) for name in LIBRARIES}


def allowed_cores() -> int:
    """Returns the number of cores that this process may use at once.

    That is the size of its affinity mask, limited to the CPU quota of its cgroups, rounded up. With
    more threads, the kernel would always throttle one while the others wait for it.
    """
    quota = cpu_quota()
    cores = _cores_in_mask()
    return cores if quota == UNLIMITED else max(1, min(cores, math.ceil(quota)))


def is_quota_short() -> bool:
    """Returns whether the quota allows fewer cores than the affinity mask."""
    return allowed_cores() < _cores_in_mask()


def _cores_in_mask() -> int:
    return len(core_numbers())


def core_numbers() -> list[int]:
    """Returns the numbers of the cores in this process's affinity mask."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _cpuinfo(field: str) -> str:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return ""
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""


def cpu_quota(root: Path = Path("/")) -> float:
    """Returns the CPU quota of this process in cores; infinite without a limit.

    Every ancestor group may set a limit, and the smallest applies. Source: the kernel's
    admin-guide/cgroup-v2 (`cpu.max`) and scheduler/sched-bwc (`cpu.cfs_quota_us`).

    Args:
        root: folder that contains /proc and the mounted hierarchies.
    """
    return min([_quota(folder) for folder in groups("cpu", root)], default=UNLIMITED)


def _quota(group: Path) -> float:
    both = _read(group / "cpu.max").split()  # "max 100000" or "150000 100000"
    if not both:
        both = _read(group / "cpu.cfs_quota_us").split()  # -1: none
        both += _read(group / "cpu.cfs_period_us").split()
    try:
        quota, period = map(int, both)
    except ValueError:  # "max", or no such files
        return UNLIMITED
    return quota / period if quota > 0 and period > 0 else UNLIMITED


def throttled_seconds(root: Path = Path("/")) -> float:
    """Returns for how long CPU quotas have stopped this process's cgroups, the longest of them.

    Args:
        root: see `cpu_quota`.
    """
    return max([_throttled(folder) for folder in groups("cpu", root)], default=0.0)


def _throttled(group: Path) -> float:
    """Reads version 2's microseconds or version 1's nanoseconds."""
    facts = dict(line.split() for line in _read(group / "cpu.stat").splitlines())
    return int(facts.get("throttled_usec", 0)) / 1e6 + int(facts.get("throttled_time", 0)) / 1e9


def busy_seconds(root: Path = Path("/")) -> float | None:
    """Returns how long the cores of this process have worked since the start, in all.

    For any process, and for other virtual machines that the hypervisor ran meanwhile. None where
    the system does not tell. Source: proc_stat(5).

    Args:
        root: folder that contains /proc.
    """
    wanted = {f"cpu{number}" for number in core_numbers()}
    rows = [line.split() for line in _read(root / "proc/stat").splitlines()]
    cores = [[int(ticks) for ticks in row[1:9]] for row in rows if row and row[0] in wanted]
    if not cores:
        return None
    ticks = sum(
        user + nice + system + irq + softirq + steal
        for user, nice, system, _idle, _iowait, irq, softirq, steal in cores
    )
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_bytes(*, peak: bool = False) -> int | None:
    """Returns this process's resident memory, or its peak; None where the system does not tell.

    Not `ru_maxrss`: on Linux, a process inherits that of the one that started it.
    """
    entry = "VmHWM:" if peak else "VmRSS:"
    lines = _read(Path("/proc/self/status")).splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(entry)), None)


def forget_peak_memory() -> None:
    """Restarts the kernel's record of this process's peak memory, where there is one."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Yields the cgroup folders of this process, from its own to the topmost visible one.

    Args:
        controller: name of the version 1 controller; version 2 is always included.
        root: see `cpu_quota`.
    """
    paths: dict[str, str] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    for line in _read(root / "proc/self/mountinfo").splitlines():
        mount, _, filesystem = line.partition(" - ")
        mounted, point = mount.split()[3:5]
        kind, _, options = filesystem.split(" ", 2)
        wanted = {"cgroup2": V2, "cgroup": controller}.get(kind)
        if wanted not in paths or (wanted and wanted not in options.split(",")):
            continue
        top = root / point.lstrip("/")
        inside = Path(paths[wanted])
        # A container may see only its own part of the hierarchy.
        below = inside.relative_to(mounted) if inside.is_relative_to(mounted) else Path()
        for part in (below, *below.parents):
            yield top / part


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
