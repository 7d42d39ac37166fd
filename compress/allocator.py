"""Memory that is freed stays with the process, so that no step has to fetch its own anew."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 2**31 - 1


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
