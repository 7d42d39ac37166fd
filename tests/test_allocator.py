"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

PAGES_TAKEN = """
import resource, torch
from compress.allocator import keep_freed_memory

def pages_taken():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16 * 2**20)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(pages_taken())
keep_freed_memory()
pages_taken()
print(pages_taken())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_blocks_are_fetched_from_the_kernel_once() -> None:
    command = [sys.executable, "-c", PAGES_TAKEN]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    given_back, kept = map(int, answer.stdout.split())
    assert given_back > 100  # with huge pages 32 a block, with small ones 16384
    assert kept < given_back / 10
