"""What the machine left to a measurement: cores, quota, and what others took meanwhile."""

import os
import time
from dataclasses import dataclass

from compress.host import UNLIMITED, busy_seconds, core_numbers, cpu_quota, throttled_seconds


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The machine during a measurement."""

    cores: int
    """In this process's affinity mask."""
    quota_cores: float | None
    """CPU quota of its cgroups; None without a limit."""
    others_cores: float | None
    """Cores that other processes and other virtual machines kept busy, on average; None where the
    system does not tell. The load average would count this process, and the last minutes."""
    throttled_share: float
    """Share of the time for which the quota stopped this process."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Clocks at the start of a measurement, seconds."""

    wall: float
    busy: float | None
    own: float
    throttled: float


def read_clocks() -> Start:
    """Reads the clocks before a measurement."""
    times = os.times()
    return Start(
        wall=time.monotonic(),
        busy=busy_seconds(),
        own=times.user + times.system + times.children_user + times.children_system,
        throttled=throttled_seconds(),
    )


def conditions_since(start: Start) -> Conditions:
    """Returns the conditions of a measurement, whose processes have ended."""
    end, quota, others = read_clocks(), cpu_quota(), None
    seconds = end.wall - start.wall
    if start.busy is not None and end.busy is not None:
        # The kernel counts in ticks, so the difference of two sums may be slightly negative.
        others = max(0.0, (end.busy - start.busy) - (end.own - start.own)) / seconds
    return Conditions(
        cores=len(core_numbers()),
        quota_cores=None if quota == UNLIMITED else quota,
        others_cores=others,
        throttled_share=(end.throttled - start.throttled) / seconds,
    )
