"""What others take of the machine, measured beside a busy process."""

import subprocess
import sys
import time

from compress.measure.conditions import conditions_since, read_clocks

SPIN = "import time\nwhile time.process_time() < {seconds}: pass"
"""A program that works for so many seconds of CPU time."""


def test_a_busy_neighbor_is_seen() -> None:
    """It outlives the measurement, so that its time is not yet that of this process's children."""
    with subprocess.Popen([sys.executable, "-c", SPIN.format(seconds=60)]) as neighbor:
        start = read_clocks()
        time.sleep(0.6)
        found = conditions_since(start)
        neighbor.kill()
    assert found.others_cores is not None
    assert found.others_cores > 0.2
    assert found.cores >= 1
    assert found.throttled_share >= 0


def test_own_work_is_not_that_of_others() -> None:
    start, before = read_clocks(), time.process_time()
    while time.process_time() < before + 0.2:
        pass
    subprocess.run([sys.executable, "-c", SPIN.format(seconds=0.2)], check=True)
    end = read_clocks()
    assert start.busy is not None
    assert end.busy is not None
    assert end.own - start.own > 0.35  # whole ticks
    assert end.busy - start.busy > 0.35
