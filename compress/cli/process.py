"""Process settings, applied before torch is imported.

- Freed memory stays with the process, so that a training step does not fetch pages again.
- Waiting OpenMP threads sleep early, so that other processes on the same cores can run.
- No more threads than the cgroup's CPU quota allows. (OpenMP itself heeds the affinity mask.)

OpenMP reads its environment variables once, when torch loads it. Variables that the user has set
take precedence.
"""

import ctypes
import os
import sys

from compress.host import allowed_cores, is_quota_short

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 2**31 - 1
SPINS = 10_000
"""Spins at a barrier before a thread sleeps. GNU's default of 300,000 takes milliseconds, during
which the awaited thread may have no core. Fewer spins help more next to another process, but cost a
small network 15 % of its speed on a quiet machine (bench/results/train_speed_neighbor.md)."""


def prepare_process() -> None:
    """Applies the settings; call it before torch is imported."""
    keep_freed_memory()
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    if is_quota_short():
        os.environ.setdefault("OMP_NUM_THREADS", str(allowed_cores()))


def keep_freed_memory() -> None:
    """Makes the C library keep freed memory.

    glibc returns freed blocks of over 32 MB to the kernel. A training step allocates and frees
    dozens of them, and the kernel clears every page each time; bench/results/train_speed.md has the
    cost. Peak memory stays the same.

    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD. Does nothing where the C library has
    no mallopt (macOS, Windows, musl).
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, LARGEST)
            mallopt(M_TRIM_THRESHOLD, LARGEST)
