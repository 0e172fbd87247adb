"""A process that forks writers and kills them; run by test_gguf_writer_kill.

Prints, for each way of writing, how many were killed, how many of those left a temporary file, and
how often the new file stood under the name.
"""

from __future__ import annotations

import io
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from phiggml import gguf_part, gguf_writer
from phiggml.gguf import GGUFWriter

N_TENSORS = 12
SHAPE = (16, 256)
# What changes or makes durable what another process sees.
STEPS = {"open", "write", "fsync", "rename", "replace", "link", "unlink", "ftruncate", "flock"}
STEPS |= {"chmod", "sendfile", "copy_file_range", "truncate"}


def tensor(version: int, i: int) -> np.ndarray:
    return np.random.default_rng([version, i]).normal(size=SHAPE).astype(np.float32)


def arrays(w: GGUFWriter, version: int) -> None:
    for i in range(N_TENSORS):
        w.add_tensor(f"t{i}", tensor(version, i))


def rows(w: GGUFWriter, version: int) -> None:
    for i in range(N_TENSORS):
        w.add_tensor_stream(f"t{i}", SHAPE, "F32")
    for i in range(N_TENSORS):
        w.write_rows(tensor(version, i).view(np.uint8))


def moved(w: GGUFWriter, version: int) -> None:
    arrays(w, version)
    w.metadata["late"] = "x" * 9000


MODES: dict[str, tuple[Callable[[GGUFWriter, int], None], dict[str, Any]]] = {
    "streamed": (arrays, {}),
    "declared": (rows, {}),
    "moved": (moved, {}),
    "split": (arrays, {"split_max_tensors": 4}),
    "new": (arrays, {"split_max_tensors": 4, "overwrite": False}),
}


def write(folder: Path, mode: str, version: int) -> None:
    work, options = MODES[mode]
    with GGUFWriter(folder / "m.gguf", **{"overwrite": True, **options}) as w:
        w.metadata["version"] = version
        work(w, version)


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.glob("*.gguf")}


class Checked:
    """A folder in which files of version 0 are overwritten by version 1, and what is found.

    Or one in which there are none, where they may not be overwritten.
    """

    def __init__(self, root: Path, mode: str) -> None:
        self.folder, self.mode = root / mode, mode
        self.folder.mkdir()
        self.versions = []
        self.overwrites = MODES[mode][1].get("overwrite", True)
        for version in (0, 1):
            self.remove()
            if version == 1 or self.overwrites:
                write(self.folder, mode, version)
            self.versions.append(contents(self.folder))
        self.first = min(self.versions[1])
        self.killed = self.left = self.new = 0

    def remove(self) -> None:
        for path in self.folder.glob("*.gguf"):
            path.unlink()

    def attempt(self, kill: Callable[[int], None], before: Callable[[], None]) -> bool:
        """Writes in a child that is killed, and looks; False when the child ended by itself."""
        if contents(self.folder) != self.versions[0]:
            self.remove()
            if self.overwrites:
                write(self.folder, self.mode, 0)
        child = os.fork()
        if child == 0:
            before()
            write(self.folder, self.mode, 1)
            os._exit(0)
        kill(child)
        status = os.waitpid(child, 0)[1]
        self._look(status)
        return status != 0

    def _look(self, status: int) -> None:
        found = contents(self.folder)
        assert status in (0, signal.SIGKILL)
        for name, data in found.items():
            assert data in (self.versions[0].get(name), self.versions[1][name]), name
        # Where there is a first file, nothing is missing or another version's.
        assert self.first not in found or found in self.versions, sorted(found)
        assert self.mode in ("split", "new") or self.first in found
        self.killed += status != 0
        self.left += len(list(self.folder.iterdir())) > len(found)
        self.new += found == self.versions[1]
        with GGUFWriter(self.folder / "next.gguf") as w:
            w.metadata["k"] = 1
        if not self.overwrites and found:
            self._replace(found)
        (self.folder / "next.gguf").unlink()
        assert sorted(contents(self.folder)) == sorted(
            entry.name for entry in self.folder.iterdir()
        )

    def _replace(self, found: dict[str, bytes]) -> None:
        """A part is named before any work, and what is left makes no harm when it may go."""
        try:
            GGUFWriter(self.folder / "m.gguf", split_max_tensors=4)
        except FileExistsError as error:
            assert Path(error.filename).name in found
        else:
            raise AssertionError(sorted(found))
        with GGUFWriter(self.folder / "m.gguf", split_max_tensors=4, overwrite=True) as w:
            w.metadata["version"] = 1
            arrays(w, 1)
        assert contents(self.folder).items() >= self.versions[1].items()


def kill_at_step(n: int) -> Callable[[], None]:
    """The process kills itself before or after its n-th call that others can see."""

    def begin() -> None:
        count = 0

        def watch(frame: FrameType, event: str, function: object) -> None:
            nonlocal count
            if event not in ("c_call", "c_return") or not hasattr(function, "__name__"):
                return
            of_file = isinstance(getattr(function, "__self__", None), io.IOBase)
            known = function.__module__ in ("posix", "fcntl", "_io") or of_file
            if known and function.__name__ in STEPS:
                count += 1
                if count == n:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(watch)

    return begin


def kill_at_every_step(checked: Checked) -> None:
    n = 1
    while checked.attempt(lambda child: None, kill_at_step(n)):
        n += 1


def kill_at_random_moments(checked: Checked, times: int, random_moment: random.Random) -> None:
    started = time.perf_counter()
    for _ in range(3):
        if not checked.overwrites:
            checked.remove()
        write(checked.folder, checked.mode, 1)
    longest = (time.perf_counter() - started) / 3 * 1.5
    # A child that ended before its moment does not count.
    while checked.killed < times:
        moment = random_moment.uniform(0, longest)

        def kill(child: int, moment: float = moment) -> None:
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)

        checked.attempt(kill, lambda: None)


def main() -> None:
    root, how = Path(sys.argv[1]), sys.argv[2]
    gguf_writer._MAX_HELD_BYTES = 1 << 15
    gguf_part._SLACK = 1000
    random_moment = random.Random(50)
    for mode in MODES:
        checked = Checked(root, mode)
        if how == "steps":
            kill_at_every_step(checked)
        else:
            kill_at_random_moments(checked, int(how), random_moment)
        print(mode, checked.killed, checked.left, checked.new)


if __name__ == "__main__":
    main()
