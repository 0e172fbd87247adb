"""A process that forks editors and kills them; run by test_gguf_kill.

Prints, for each kind of edit, how many were killed, after how many different numbers of edits, and
how many of those were within an edit that had taken effect.
"""

from __future__ import annotations

import itertools
import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import edited_files
import gguf_bytes as gb
from gguf_seen import PADDING, without_padding
from killed_writers import STEPS, kill_at_step
from phiggml.gguf_edit import edit_gguf
from phiggml.gguf_split import merge_gguf, split_gguf

Step = Callable[[], object]
DATA = bytes(range(256)) * 512
MOST_EDITS = 8
STEPS |= {"pwrite", "copy_file_range", "close"}


def model(name: str, room: int = 0) -> bytes:
    pairs = [edited_files.text("general.name", name), *edited_files.pairs()]
    if room:
        pairs = [edited_files.room(room), *pairs]
    infos = [gb.tensor(f"t{i}", (1 << 14,), gb.I8, offset=i << 14) for i in range(8)]
    return gb.gguf(pairs, infos, DATA)


def numbers(path: Path) -> list[Step]:
    path.write_bytes(model("numbers"))
    return [partial(edit_gguf, path, set={"a.count": i, "a.rate": i}) for i in range(50)]


def with_room(path: Path) -> list[Step]:
    """Additions, other lengths and removals; the room suffices for all."""
    path.write_bytes(model("room", 40_000))
    steps: list[Step] = []
    for i in range(10):
        steps += [
            partial(edit_gguf, path, set={f"key{i}": "x" * 977 * i, "a.count": i}),
            partial(edit_gguf, path, set={"template": "{{ y }}" * 1013 * (i % 3)}),
            partial(edit_gguf, path, set={"general.name": "z" * 571 * i}, unset=["template"]),
            partial(edit_gguf, path, rename={f"key{i}": f"other{i}"}),
            partial(edit_gguf, path, unset=[f"other{i}"]),
        ]
    return steps


def anew(path: Path) -> list[Step]:
    path.write_bytes(model("anew"))
    return [partial(edit_gguf, path, set={"general.name": "n" * 97 * i}) for i in range(1, 20)]


def merging(path: Path) -> list[Step]:
    """One model after the other, over the same file."""
    sources = []
    for i in range(2):
        whole = path.with_name(f"source{i}.gguf")
        whole.write_bytes(model(f"model {i}" * 99 * i))
        sources.append(split_gguf(whole, whole, max_tensors=3, overwrite=True)[i])
    path.write_bytes(model("old"))
    return [
        partial(merge_gguf, sources[i % 2], path, overwrite=True, progress=lambda _: None)
        for i in range(20)
    ]


KINDS: dict[str, Callable[[Path], list[Step]]] = {
    "numbers": numbers,
    "room": with_room,
    "anew": anew,
    "merging": merging,
}


class Editors:
    """A file, edits of it, and what it must be after each."""

    def __init__(self, folder: Path, kind: str, most_steps: int | None) -> None:
        folder.mkdir()
        self.path = folder / "m.gguf"
        self.steps: Sequence[Step] = KINDS[kind](self.path)[:most_steps]
        self._begin = self.path.read_bytes()
        self._states = [without_padding(self._begin)]
        self._done = mmap.mmap(-1, 8)  # how many edits are done; the children share it
        inodes = {self.path.stat().st_ino}
        started = time.perf_counter()
        for step in self.steps:
            step()
            inodes.add(self.path.stat().st_ino)
            self._states.append(without_padding(self.path.read_bytes()))
        self.seconds_of_one = (time.perf_counter() - started) / len(self.steps)
        assert kind in ("anew", "merging") or len(inodes) <= len(self.steps) // 5
        assert all(a != b for a, b in itertools.pairwise(self._states))
        self._files = sorted(folder.iterdir())
        self.killed = self.n_new = 0
        self.moments: set[int] = set()

    def attempt(self, kill: Callable[[int], None], before: Step) -> bool:
        """Edits in a child that is killed, and looks; False when the child ended by itself."""
        self.path.write_bytes(self._begin)
        self._done[:] = bytes(8)
        child = os.fork()
        if child == 0:
            before()
            for i, step in enumerate(self.steps, 1):
                step()
                self._done[:] = i.to_bytes(8, "little")
            os._exit(0)
        kill(child)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status
        self._look()
        self.killed += status != 0
        return status != 0

    def kill_at(self, moment: float) -> Callable[[int], None]:
        """What kills after so many edits, of which the last is not a whole one."""

        def kill(child: int) -> None:
            while self._n_done() < int(moment):
                time.sleep(self.seconds_of_one / 10)
            time.sleep(moment % 1 * self.seconds_of_one)
            os.kill(child, signal.SIGKILL)

        return kill

    def _n_done(self) -> int:
        return int.from_bytes(self._done[:], "little")

    def _look(self) -> None:
        done = self._n_done()
        found = without_padding(self.path.read_bytes())
        assert found in self._states[done : done + 2], f"neither old nor new after {done} edits"
        self.n_new += found != self._states[done]
        self.moments.add(done)
        # What was left behind is in nobody's way, and the next one removes it.
        unset = [PADDING] if PADDING.encode() in found else []
        edit_gguf(self.path, set={"general.name": "what is left"}, unset=unset)
        assert sorted(self.path.parent.iterdir()) == self._files


def main() -> None:
    root, how = Path(sys.argv[1]), sys.argv[2]
    moments = random.Random(50)
    for kind in KINDS:
        editors = Editors(root / kind, kind, 5 if how == "steps" else None)
        if how == "steps":
            n = 1
            while editors.attempt(lambda child: None, kill_at_step(n)):
                n += 1
        else:
            while editors.killed < int(how):
                editors.attempt(editors.kill_at(moments.uniform(0, MOST_EDITS)), lambda: None)
        print(kind, editors.killed, len(editors.moments), editors.n_new)


if __name__ == "__main__":
    main()
