"""What is set for the whole process when it starts, before torch is imported.

- Memory that is freed stays with the process, so that no step has to fetch its own anew.
- Threads that wait for each other soon sleep, so that a neighbor on the same cores gets them.
- No more threads than the cgroup's CPU quota pays for. (Fewer cores in the affinity mask are
  noticed by OpenMP itself.)

OpenMP reads its settings once, when torch loads it: what the user has set in the environment is
left alone, and what is set here holds for this process and those that it starts.
"""

from __future__ import annotations

import ctypes
import os
import sys

from compress.host import allowed_cores, is_quota_short

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 2**31 - 1
SPINS = 10_000
"""Looks at a barrier before a thread sleeps. GNU's own 300,000 take milliseconds, in which the
thread that is waited for may have no core. Fewer than these help more beside a neighbor and cost a
small network a fifth of its speed in quiet (`python -m bench.train_speed --neighbor`)."""


def prepare_process() -> None:
    """Sets all of it; to be called before torch is imported."""
    keep_freed_memory()
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    if is_quota_short():
        os.environ.setdefault("OMP_NUM_THREADS", str(allowed_cores()))


def keep_freed_memory() -> None:
    """Tells the C library to keep what is freed, for the rest of the process.

    glibc gives a freed block of over 32 MB straight back to the kernel. A training step takes and
    frees dozens of such blocks, and each time the kernel clears every page anew:
    bench/results/train_speed.md has what that costs. The peak of memory stays what it was.

    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD. Where the C library has no mallopt
    (macOS, Windows, musl), nothing happens.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, LARGEST)
            mallopt(M_TRIM_THRESHOLD, LARGEST)
