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


THREADS = """
import os, sys
import click
from compress import host
from compress.cli.group import Program

if sys.argv[1] == "mask":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
else:
    host.cpu_quota = lambda: float(sys.argv[1])

@click.group(cls=Program)
@click.option("--debug", is_flag=True)
def program(debug): ...

@program.command()
def work():
    import torch
    print(host.allowed_cores(), torch.get_num_threads())

program(["work"])
"""


@LINUX_ONLY
@pytest.mark.parametrize(
    ("limit", "users_own", "threads", "spins"),
    [
        ("mask", {}, 1, SPINS),
        ("0.3", {"GOMP_SPINCOUNT": "77"}, 1, 77),
        ("1.0", {"OMP_WAIT_POLICY": "PASSIVE"}, 1, 0),
        ("0.3", {"OMP_NUM_THREADS": "2"}, 2, SPINS),
    ],
)
def test_threads_are_as_many_as_cores_and_soon_sleep_unless_the_user_says_otherwise(
    limit: str, users_own: dict[str, str], threads: int, spins: int
) -> None:
    """Asks OpenMP itself what it read when a command imported torch."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP"))
    }
    environment = {**inherited, **users_own, "OMP_DISPLAY_ENV": "VERBOSE"}
    command = [sys.executable, "-c", THREADS, limit]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["1", str(threads)]
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)) == {str(spins)}
