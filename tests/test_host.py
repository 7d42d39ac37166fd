"""CPU quotas, in trees as the kernel shows them to a process; and this machine."""

import os
from pathlib import Path

import pytest

from compress import host
from compress.host import (
    UNLIMITED,
    allowed_cores,
    busy_seconds,
    cpu_quota,
    describe_host,
    throttled_seconds,
)

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
33 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
"""


def tree(root: Path, *, cgroup: str, mounts: str, limits: dict[str, str]) -> Path:
    files = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts}
    files |= {f"sys/fs/cgroup/{name}": text for name, text in limits.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({}, UNLIMITED),
        ({"job/cpu.max": "max 100000\n"}, UNLIMITED),
        ({"job/cpu.max": "150000 100000\n"}, 1.5),
        ({"job/cpu.max": "400000 100000\n", "cpu.max": "50000 50000\n"}, 1.0),
        ({"job/cpu.max": "max 100000\n", "cpu.max": "20000 100000\n"}, 0.2),
        ({"job/cpu.max": "nonsense\n"}, UNLIMITED),
    ],
)
def test_version_2_takes_the_least_of_all_groups_above(
    tmp_path: Path, limits: dict[str, str], cores: float
) -> None:
    root = tree(tmp_path, cgroup="0::/job\n", mounts=V2_MOUNT, limits=limits)
    assert cpu_quota(root) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", UNLIMITED), ("250000", 2.5)])
@pytest.mark.parametrize("seen_from", ["host", "container"])
def test_version_1_also_from_inside_a_container(
    tmp_path: Path, quota: str, cores: float, seen_from: str
) -> None:
    """A container sees its own group at the top of the mount, and the host's path of it."""
    group = "/docker/3f"
    inside = seen_from == "container"
    folder = "cpu,cpuacct" if inside else f"cpu,cpuacct{group}"
    root = tree(
        tmp_path,
        cgroup=f"4:memory:/other\n3:cpu,cpuacct:{group}\n1:name=systemd:/\n",
        mounts=V1_MOUNTS.format(root=group if inside else "/"),
        limits={
            f"{folder}/cpu.cfs_quota_us": f"{quota}\n",
            f"{folder}/cpu.cfs_period_us": "100000\n",
        },
    )
    assert cpu_quota(root) == cores


def test_without_proc_there_is_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) == UNLIMITED
    assert throttled_seconds(tmp_path) == 0
    assert busy_seconds(tmp_path) is None


def test_the_time_of_being_throttled_is_that_of_the_worst_group(tmp_path: Path) -> None:
    stat = "usage_usec 9000000\nnr_throttled 4\nthrottled_usec {}\n"
    limits = {"job/cpu.stat": stat.format(1_500_000), "cpu.stat": stat.format(250_000)}
    root = tree(tmp_path / "v2", cgroup="0::/job\n", mounts=V2_MOUNT, limits=limits)
    assert throttled_seconds(root) == 1.5
    limits = {"cpu,cpuacct/cpu.stat": "nr_periods 9\nthrottled_time 2500000000\n"}
    mounts = V1_MOUNTS.format(root="/")
    root = tree(tmp_path / "v1", cgroup="3:cpu,cpuacct:/\n", mounts=mounts, limits=limits)
    assert throttled_seconds(root) == 2.5


def test_busy_time_is_that_of_the_cores_in_the_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle time and waiting for disks are not work; what a hypervisor took is someone's."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(
        "cpu  9 9 9 9 9 9 9 9 9 9\n"
        "cpu0 100 20 30 4000 500 6 7 37 0 0\n"
        "cpu1 5000 0 0 1 1 0 0 0 0 0\n"
        "cpu12 100 0 0 1 1 0 0 0 0 0\n"
        "intr 1 2 3\n"
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 12}, raising=False)
    assert busy_seconds(tmp_path) == 300 / os.sysconf("SC_CLK_TCK")


def test_without_an_affinity_mask_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(host, "cpu_quota", lambda: UNLIMITED)
    assert allowed_cores() == os.cpu_count()


def test_the_host_is_described() -> None:
    found = describe_host()
    assert found.cpu
    assert 1 <= found.cores == allowed_cores()
    assert set(found.versions) >= {"torch", "onnxruntime"}
