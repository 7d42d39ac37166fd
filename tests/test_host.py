"""CPU quotas, in trees as the kernel shows them to a process; and this machine."""

import os
from pathlib import Path

import pytest

from compress import host
from compress.host import UNLIMITED, allowed_cores, cpu_quota, describe_host

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
