"""Cores that this process may compute on: those of its affinity, within its container's quota."""

from __future__ import annotations

import functools
import math
import os
import re
import time
from collections.abc import Iterator, Set
from pathlib import Path

__all__ = ["available_cores", "cpu_quota", "physical_cores"]

_ROOT = Path("/")
# A line of mountinfo: what of the hierarchy is mounted, where, its kind, its controllers.
_MOUNT = re.compile(r"^\S+ \S+ \S+ (\S+) (\S+) .*- (cgroup2?) \S* (\S*)$", re.MULTILINE)


def available_cores() -> int:
    """How many threads this process can run at once, hyperthreads counted; at least 1.

    Source:
        sched_getaffinity, asked anew by each call, and `cpu_quota`, asked once a second.
    """
    return _within_quota(len(_own_cpus()))


def physical_cores() -> int:
    """How many cores this process may compute on, each counted once; at least 1.

    The threads of a model wait for each other after every operation, so that the slowest one sets
    the pace: two hyperthreads share the units that multiply and the way to memory, and the small
    cores of a hybrid processor hold its large ones up. This counts one thread for each large core,
    as llama.cpp's own programs do. That is their experience; it was not measured for phiggml, whose
    machines show every core by itself. Quantizing shares its work piece by piece and takes
    `available_cores`.

    Source:
        thread_siblings_list of each CPU in the affinity, /sys/devices/cpu_core/cpus, `cpu_quota`.
    """
    return _within_quota(count_cores(_own_cpus()))


def count_cores(cpus: Set[int], *, root: Path = _ROOT) -> int:
    """How many different cores these CPUs are, of hybrid processors the large ones."""
    devices = root / "sys" / "devices"
    large = _cpu_list(_text(devices / "cpu_core" / "cpus")) & cpus
    folder = devices / "system" / "cpu"
    siblings = {
        _text(folder / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu)
        for cpu in large or cpus
    }
    return max(len(siblings), 1)


def cpu_quota(*, root: Path = _ROOT) -> float | None:
    """Cores' worth of time that the control groups of this process grant it; None is no limit.

    A group is also held to the limits of those that it lies in, as far as they can be seen from
    within the container.

    Source:
        cpu.max (version 2), or cpu.cfs_quota_us and cpu.cfs_period_us (version 1), where
        /proc/self/mountinfo and /proc/self/cgroup say: the kernel's cgroup-v2.rst, sched-bwc.rst.
    """
    limits = (_limit(folder) for folder in _groups(root))
    return min((limit for limit in limits if limit is not None), default=None)


def _own_cpus() -> Set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return frozenset(range(os.cpu_count() or 1))


def _within_quota(n_cores: int) -> int:
    quota = _quota_at(int(time.monotonic()))
    return n_cores if quota is None else max(1, min(n_cores, math.ceil(quota)))


@functools.lru_cache(maxsize=1)
def _quota_at(second: int) -> float | None:
    """Small arrays are quantized in less time than it takes to look."""
    return cpu_quota()


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's groups that may limit its CPU time, and those above them."""
    paths = {}
    process = root / "proc" / "self"
    for line in _text(process / "cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers or "cpu" in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = path
    for mounted, point, kind, options in _MOUNT.findall(
        _text(root / "proc" / "self" / "mountinfo")
    ):
        if kind == "cgroup2" or "cpu" in options.split(","):
            top = root / _unescaped(point).lstrip("/")
            folder = top / _below(paths.get(kind, "/"), _unescaped(mounted))
            yield folder
            yield from (above for above in folder.parents if above.is_relative_to(top))


def _below(path: str, mounted: str) -> str:
    """A group's path within a mount of the hierarchy; that of another namespace has none."""
    parts, top = Path(path).parts, Path(mounted).parts
    if ".." in parts or parts[: len(top)] != top:
        return ""
    return str(Path(*parts[len(top) :]))


def _limit(folder: Path) -> float | None:
    figures = _text(folder / "cpu.max").split() or [
        *_text(folder / "cpu.cfs_quota_us").split(),
        *_text(folder / "cpu.cfs_period_us").split(),
    ]
    if len(figures) != 2 or not all(map(str.isdecimal, figures)) or int(figures[1]) == 0:
        return None  # "max" and -1 are no limits
    return int(figures[0]) / int(figures[1])


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "surrogateescape").strip()
    except OSError:
        return ""


def _cpu_list(text: str) -> Set[int]:
    """What the kernel writes as 0-3,8."""
    ranges = re.findall(r"(\d+)(?:-(\d+))?", text)
    return {cpu for first, last in ranges for cpu in range(int(first), int(last or first) + 1)}


def _unescaped(field: str) -> str:
    """A field of mountinfo, where blanks are \\040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
