"""What the control groups of this process allow: containers and services are limited by them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

UNLIMITED = math.inf
V2 = ""
"""In place of a controller's name: the unified hierarchy has all of them."""


def cpu_quota(root: Path = Path("/")) -> float:
    """Returns how many cores' worth of time this process may use, infinite without a limit.

    Each group on the way up may set a limit, and the least holds. Source: the kernel's
    admin-guide/cgroup-v2 (`cpu.max`) and scheduler/sched-bwc (`cpu.cfs_quota_us`).

    Args:
        root: where /proc and the mounted hierarchies are looked for.
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


def groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Yields the folders of the groups of this process, from its own to the topmost that it sees.

    Args:
        controller: of version 1; version 2 is looked at in any case.
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
        # In a container the mount may show only the container's own part of the hierarchy.
        below = inside.relative_to(mounted) if inside.is_relative_to(mounted) else Path()
        for part in (below, *below.parents):
            yield top / part


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
