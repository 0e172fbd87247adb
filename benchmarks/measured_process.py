"""What a process takes, from outside: time, memory, bytes read and written."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

Command = Sequence[str | os.PathLike[str]]
SAMPLE_SECONDS = 0.02
PEAKS = ("VmHWM", "RssAnon", "RssFile")
BYTES = ("rchar", "read_bytes", "wchar", "write_bytes")
# The beginning and the end that `cores_amid` leaves out: of the CPU time, not of the time.
_EDGE = 0.02


@dataclass
class Samples:
    """What is seen of a living process: peaks of its memory, and its CPU time by moments.

    Attributes:
        peaks: bytes of resident memory: of all (the kernel's own peak), of its own, of mapped
            files.
        moments: seconds since the beginning, seconds of CPU time until then.
    """

    peaks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PEAKS, 0))
    moments: list[tuple[float, float]] = field(default_factory=list)

    def take(self, pid: int, seconds: float) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            times = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return
        for line in status.splitlines():
            name, _, value = line.partition(":")
            if name in self.peaks:
                self.peaks[name] = max(self.peaks[name], int(value.split()[0]) * 1024)
        # The name of the program, in brackets, may hold anything.
        user, system = times.rpartition(")")[2].split()[11:13]
        ticks = os.sysconf("SC_CLK_TCK")
        self.moments.append((seconds, (int(user) + int(system)) / ticks))

    def merge(self, other: Samples) -> None:
        self.peaks = {name: max(peak, other.peaks[name]) for name, peak in self.peaks.items()}

    def cores_amid(self) -> float:
        """CPU time over time, without the first and the last 2% of the CPU time."""
        if not self.moments:
            return 0.0
        seconds, cpu = np.array(self.moments).T
        edges = np.array([_EDGE, 1 - _EDGE]) * cpu[-1]
        begin, end = np.interp(edges, cpu, seconds)
        return float((edges[1] - edges[0]) / (end - begin)) if end > begin else 0.0

    def __str__(self) -> str:
        return ", ".join(f"{name} {peak / 1e6:.0f} MB" for name, peak in self.peaks.items())


@dataclass(frozen=True)
class Usage:
    """What a process took.

    Attributes:
        seconds: from its start to its end.
        cpu_seconds: of it and of the processes that it waited for.
        samples: what was seen every 20 ms, of the process alone.
        bytes: what /proc/PID/io counted to the end, of it and of the processes that it waited for:
            bytes of calls that read, read from the disk, of calls that write, sent to the disk.
        said: what it wrote to stdout.
        said_bytes: how much it wrote to stdout and stderr.
    """

    seconds: float
    cpu_seconds: float
    samples: Samples
    bytes: Mapping[str, int]
    said: str
    said_bytes: int


def measure(command: Command) -> Usage:
    """Runs a command to its end; one that fails ends this program, with what it said."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        usage, status = _run(command, stdout, stderr)
        if status != 0:
            stderr.seek(0)
            sys.stderr.write(stderr.read().decode("utf-8", "replace"))
            sys.exit(f"{' '.join(str(part) for part in command)}: it ended with {status}")
        return usage


def _run(command: Command, stdout: IO[bytes], stderr: IO[bytes]) -> tuple[Usage, int]:
    samples, over = Samples(), threading.Event()
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
    ) as process:
        pid = process.pid

        def watch() -> None:
            while not over.wait(SAMPLE_SECONDS):
                samples.take(pid, time.perf_counter() - started)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        # Not reaped yet: of a process that has ended the kernel still tells what it read and wrote.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        seconds = time.perf_counter() - started
        over.set()
        watcher.join()
        counted = dict(
            line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines()
        )
        _, status, resources = os.wait4(pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    stdout.seek(0)
    said = stdout.read()
    usage = Usage(
        seconds=seconds,
        cpu_seconds=resources.ru_utime + resources.ru_stime,
        samples=samples,
        bytes={name: int(counted[name]) for name in BYTES},
        said=said.decode("utf-8", "replace"),
        said_bytes=len(said) + os.fstat(stderr.fileno()).st_size,
    )
    return usage, process.returncode
