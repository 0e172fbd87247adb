"""Cores within an affinity and a container's quota, told from made-up /proc and /sys trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from phiggml import cores
from phiggml.cores import available_cores, count_cores, cpu_quota, physical_cores

V2 = "31 23 0:28 {root} {point} rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "32 31 0:29 {root} {point} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
OTHERS = (
    "22 1 254:1 / / rw,relatime - ext4 /dev/vda rw\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "36 31 0:33 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
)


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def groups(cgroup: str, mounts: str, **files: str) -> dict[str, str]:
    return {"proc/self/cgroup": cgroup, "proc/self/mountinfo": OTHERS + mounts, **files}


MOUNTED = V2.format(root="/", point="/sys/fs/cgroup")
TREES = {
    "nothing there": ({}, None),
    "a container's own root": (
        groups("0::/\n", MOUNTED, **{"sys/fs/cgroup/cpu.max": "150000 100000\n"}),
        1.5,
    ),
    "no limit": (groups("0::/\n", MOUNTED, **{"sys/fs/cgroup/cpu.max": "max 100000\n"}), None),
    "the host's root, which has no such file": (groups("0::/\n", MOUNTED), None),
    "a slice above is narrower": (
        groups(
            "0::/a.slice/b:c.scope\n",
            MOUNTED,
            **{
                "sys/fs/cgroup/a.slice/b:c.scope/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a.slice/cpu.max": "250000 100000\n",
                "sys/fs/cgroup/other.slice/cpu.max": "1000 100000\n",
            },
        ),
        2.5,
    ),
    "mounted from the group itself": (
        groups(
            "0::/docker/1234\n",
            V2.format(root="/docker/1234", point="/sys/fs/cgroup"),
            **{"sys/fs/cgroup/cpu.max": "50000 100000\n"},
        ),
        0.5,
    ),
    "a path of another namespace": (
        groups("0::/../../x\n", MOUNTED, **{"sys/fs/cgroup/cpu.max": "300000 100000\n"}),
        3.0,
    ),
    "a blank in the mount's path": (
        groups(
            "0::/\n",
            V2.format(root="/", point="/my\\040groups"),
            **{"my groups/cpu.max": "200000 100000\n"},
        ),
        2.0,
    ),
    "version 1": (
        groups(
            "4:cpu,cpuacct:/docker/1234\n3:cpuset:/elsewhere\n0::/\n",
            V1.format(root="/docker/1234", point="/sys/fs/cgroup/cpu,cpuacct"),
            **{
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "350000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "50000\n",
            },
        ),
        7.0,
    ),
    "version 1, no limit": (
        groups(
            "1:cpu:/\n",
            V1.format(root="/", point="/sys/fs/cgroup/cpu"),
            **{
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
        ),
        None,
    ),
    "both versions": (
        groups(
            "1:cpu:/x\n0::/y\n",
            V1.format(root="/", point="/one") + V2.format(root="/", point="/two"),
            **{
                "one/x/cpu.cfs_quota_us": "300000\n",
                "one/x/cpu.cfs_period_us": "100000\n",
                "two/y/cpu.max": "200000 100000\n",
            },
        ),
        2.0,
    ),
    "what no kernel writes": (
        groups("\nnone\n0:\n", MOUNTED + "- cgroup2\n", **{"sys/fs/cgroup/cpu.max": "1 0\n"}),
        None,
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_quotas(name: str, tmp_path: Path) -> None:
    files, quota = TREES[name]
    assert cpu_quota(root=tree(tmp_path, files)) == quota


def siblings(*lists: str) -> dict[str, str]:
    """The n-th CPU's siblings, itself among them."""
    folder = "sys/devices/system/cpu"
    return {
        f"{folder}/cpu{cpu}/topology/thread_siblings_list": f"{text}\n"
        for cpu, text in enumerate(lists)
    }


PAIRS = siblings("0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7")
HYBRID = siblings("0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7") | {
    "sys/devices/cpu_core/cpus": "0-3\n",
    "sys/devices/cpu_atom/cpus": "4-7\n",
}


@pytest.mark.parametrize(
    ("files", "cpus", "n_cores"),
    [
        (siblings("0", "1"), {0, 1}, 2),
        (PAIRS, set(range(8)), 4),
        (PAIRS, {0, 4}, 1),
        (PAIRS, {0, 1, 4}, 2),
        (HYBRID, set(range(8)), 2),
        (HYBRID, {1, 2, 5}, 2),
        (HYBRID, {5, 6}, 2),  # the large ones are not ours
        ({}, {3, 9}, 2),
        ({}, set(), 1),
    ],
)
def test_cores(files: dict[str, str], cpus: set[int], n_cores: int, tmp_path: Path) -> None:
    assert count_cores(cpus, root=tree(tmp_path, files)) == n_cores


@pytest.mark.parametrize(
    ("quota", "n_cores"), [(None, 6), (0.25, 1), (2.1, 3), (6.0, 6), (64.0, 6)]
)
def test_a_quota_is_rounded_up(
    quota: float | None, n_cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "_quota_at", lambda second: quota)
    monkeypatch.setattr(cores, "_own_cpus", lambda: set(range(1000, 1006)))
    assert (available_cores(), physical_cores()) == (n_cores, n_cores)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="asks for Linux")
def test_a_changed_affinity_is_seen() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert (available_cores(), physical_cores()) == (1, 1)
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= physical_cores() <= available_cores() <= len(before)
