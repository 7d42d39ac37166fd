"""What the process sets for itself holds in the libraries that it loads."""

import os
import re
import subprocess
import sys

import pytest

from compress.cli.process import SPINS

LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc, GNU's OpenMP")
PAGES_TAKEN = """
import resource, torch
from compress.cli.process import prepare_process

def pages_taken():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16 * 2**20)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(pages_taken())
prepare_process()
pages_taken()
print(pages_taken())
"""


@LINUX_ONLY
def test_blocks_are_fetched_from_the_kernel_once() -> None:
    command = [sys.executable, "-c", PAGES_TAKEN]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    given_back, kept = map(int, answer.stdout.split())
    assert given_back > 100  # with huge pages 32 a block, with small ones 16384
    assert kept < given_back / 10


@LINUX_ONLY
@pytest.mark.parametrize(
    ("users_own", "spins"),
    [
        ({}, SPINS),
        ({"GOMP_SPINCOUNT": "77"}, 77),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, 0),
    ],
)
def test_threads_soon_sleep_unless_the_user_says_otherwise(
    users_own: dict[str, str], spins: int
) -> None:
    """Asks OpenMP itself what it read when the command imported torch."""
    command = [
        sys.executable,
        "-m",
        "compress",
        "run",
        "resnet18",
        "--data",
        "imagefolder:/nowhere",
    ]
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP"))
    }
    environment = {**inherited, **users_own, "OMP_DISPLAY_ENV": "VERBOSE"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "folder /nowhere does not exist" in done.stderr
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)) == {str(spins)}


THREADS = """
import os, sys
from compress.cli import process
from compress import host
if sys.argv[1] == "mask":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
else:
    host.cpu_quota = lambda: float(sys.argv[1])
process.prepare_process()
import torch
print(host.allowed_cores(), torch.get_num_threads())
"""


@LINUX_ONLY
@pytest.mark.parametrize(
    ("limit", "users_own"), [("mask", None), ("0.3", None), ("1.0", None), ("0.3", 2)]
)
def test_there_are_no_more_threads_than_cores_that_may_be_used(
    limit: str, users_own: int | None
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if users_own:
        environment["OMP_NUM_THREADS"] = str(users_own)
    command = [sys.executable, "-c", THREADS, limit]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["1", str(users_own or 1)]
