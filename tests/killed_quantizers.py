"""A process that forks quantizers and kills them, or spoils their source, or runs two at once.

Run by test_quantization_faults. Prints for each verb and kind of

    killed   how many were killed; of those, how many left a temporary file before the new file had
             its name, and how often it had (interrupted: the same)
    spoiled  how many sources; how often that was refused, and how often the result was whole
    together how many pairs; how many finished, and how many were refused
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

import checkpoints
import phiggml as pg
from killed_writers import kill_at_step

TYPE = "Q4_K_M"
OLD = b"an older file\n" * 1000
VERBS = ("convert", "quantize")
WIDE = 1 << 13
# Small enough that dozens of chunks are written while others wait.
MAX_MEMORY = 1 << 20
ONE_WRITE = 256 << 10
# How a child ends. A source that is gone before it is opened is refused, too.
FINISHED, FAILED, REFUSED, INTERRUPTED = 0, 1, 3, 4
REFUSALS = (pg.FormatError, FileNotFoundError, FileExistsError)


def write_checkpoint(folder: Path, wide: int, seed: int) -> Path:
    """The same but for the numbers of its weights, whatever the seed.

    A feed-forward part so wide has rows that become Q4_K and Q6_K.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    checkpoints.write_json(folder / "config.json", checkpoints.config(intermediate_size=wide))
    checkpoints.write_tokenizer(folder)
    stored = {
        name: ("BF16", shape, rng.integers(0x3C00, 0x3F80, shape, np.uint16).tobytes())
        for name, shape in checkpoints.shapes(feed_forward=wide).items()
    }
    checkpoints.write_weights(folder, stored)
    return folder


class Quantizers:
    """One verb and two sources of the same shape, what becomes of each, and children that work."""

    def __init__(self, root: Path, verb: str, wide: int) -> None:
        self._convert = verb == "convert"
        self.target = root / verb / "out" / "m.gguf"
        self.target.parent.mkdir(parents=True)
        self.sources = [write_checkpoint(root / verb / str(i) / "m", wide, i) for i in range(2)]
        self.weights = [folder / "model.safetensors" for folder in self.sources]
        if not self._convert:
            for i, folder in enumerate(self.sources):
                pg.convert(folder, folder / "m.gguf", "BF16")
                self.sources[i] = self.weights[i] = folder / "m.gguf"
        self.contents = [path.read_bytes() for path in self.weights]
        self.expected = []
        for source in self.sources:
            started = time.perf_counter()
            self.run(source, self.target, overwrite=True)
            self.seconds = time.perf_counter() - started
            self.expected.append(self.target.read_bytes())
        self.target.unlink()

    def run(
        self,
        source: Path,
        out: Path,
        *,
        overwrite: bool = False,
        progress: Callable[[pg.Progress], object] | None = None,
    ) -> None:
        """In the calling process."""
        verb = pg.convert if self._convert else pg.quantize_model
        options = pg.QuantizeOptions(max_memory=MAX_MEMORY)
        more = {"options": options, "threads": 2, "overwrite": overwrite, "progress": progress}
        verb(source, out, TYPE, **more)

    def start(
        self, source: int, *, overwrite: bool, before: Callable[[], None] = lambda: None
    ) -> int:
        """A child that works, and hears Ctrl-C only meanwhile."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        child = os.fork()
        if child > 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            return child
        try:
            os._exit(self._ended(source, overwrite=overwrite, before=before))
        except KeyboardInterrupt:
            os._exit(INTERRUPTED)
        finally:
            traceback.print_exc()
            os._exit(FAILED)

    def _ended(self, source: int, *, overwrite: bool, before: Callable[[], None]) -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            before()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            self.run(self.sources[source], self.target, overwrite=overwrite)
        except REFUSALS:
            return REFUSED
        except KeyboardInterrupt:
            return INTERRUPTED
        return FINISHED

    def found(self) -> bytes | None:
        return self.target.read_bytes() if self.target.exists() else None

    def temporary(self) -> list[Path]:
        return [path for path in self.target.parent.iterdir() if path != self.target]

    def finish(self, *, overwrite: bool) -> None:
        """Whatever was left is not in the way of the next one, which takes it away."""
        if not overwrite:
            self.target.unlink(missing_ok=True)
        self.run(self.sources[0], self.target, overwrite=overwrite)
        assert self.found() == self.expected[0]
        assert self.temporary() == []


def wait(child: int) -> int:
    """How it ended: FINISHED and so on, or less than zero for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Struck:
    """Counts what killed or interrupted ones leave under the name, the old file or the new one.

    A killed one leaves a temporary file beside it, and an interrupted one none.
    """

    def __init__(self, quantizers: Quantizers, signal_number: int, *, overwrite: bool) -> None:
        self._quantizers, self._signal = quantizers, signal_number
        self._overwrite = overwrite
        self._old = OLD if overwrite else None
        self.struck = self.left = self.new = 0

    def attempt(self, moment: float, before: Callable[[], None] = lambda: None) -> bool:
        """False when it ended by itself."""
        q = self._quantizers
        if q.found() != self._old:
            q.target.unlink(missing_ok=True)
            if self._old is not None:
                q.target.write_bytes(self._old)
        child = q.start(0, overwrite=self._overwrite, before=before)
        if moment >= 0:
            time.sleep(moment)
            os.kill(child, self._signal)
        status = wait(child)
        expected = INTERRUPTED if self._signal == signal.SIGINT else -self._signal
        assert status in (FINISHED, expected), status
        found, temporary = q.found(), q.temporary()
        assert found in (self._old, q.expected[0]), "neither the old file nor the new one"
        # However many were killed: each removes what the one before it left.
        assert len(temporary) <= (status == -signal.SIGKILL), temporary
        assert [path.read_bytes() for path in q.weights] == q.contents
        if status == FINISHED:
            assert found == q.expected[0]
            return False
        self.struck += 1
        self.new += found == q.expected[0]
        self.left += found == self._old and len(temporary) == 1
        return True

    def at_random_moments(self, times: int, rng: random.Random) -> None:
        """One in each of so many parts of the run; those that come after it, again."""
        seconds = self._quantizers.seconds * 1.2
        while self.struck < times:
            if not self.attempt((self.struck + rng.random()) / times * seconds):
                seconds *= 0.9

    def at_every_step(self) -> None:
        n = 1
        while self.attempt(-1, kill_at_step(n)):
            n += 1


def strike_all(root: Path, signal_number: int, times: str) -> None:
    rng = random.Random(50)
    for verb in VERBS:
        wide = WIDE // 4 if times == "steps" else WIDE if int(times) < 10 else 8 * WIDE
        quantizers = Quantizers(root, verb, wide)
        for kind in ("new", "old"):
            struck = Struck(quantizers, signal_number, overwrite=kind == "old")
            if times == "steps":
                struck.at_every_step()
            else:
                struck.at_random_moments(int(times), rng)
            quantizers.finish(overwrite=kind == "old")
            print(f"{verb}-{kind}", struck.struck, struck.left, struck.new)


def shorten(path: Path, other: bytes) -> None:
    os.truncate(path, len(other) // 2)


def fill(path: Path, other: bytes) -> None:
    """As what empties a file and writes it anew does."""
    os.truncate(path, 0)
    os.truncate(path, len(other))


def write_over(path: Path, other: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        for i in range(0, len(other), ONE_WRITE):
            file.write(other[i : i + ONE_WRITE])


def replace(path: Path, other: bytes) -> None:
    new = path.with_name("new")
    new.write_bytes(other)
    new.replace(path)


def remove(path: Path, other: bytes) -> None:
    path.unlink()


WAYS = (shorten, fill, write_over, replace, remove)


def spoil_all(root: Path, times: int) -> None:
    """The result is of the old bytes or of the new ones; where it is neither, there is none."""
    rng = random.Random(51)
    for verb in VERBS:
        q = Quantizers(root, verb, WIDE if times < 10 else 8 * WIDE)
        for way in WAYS:
            ended = {FINISHED: 0, REFUSED: 0}
            for i in range(times):
                child = q.start(0, overwrite=False)
                time.sleep((i + rng.random()) / times * q.seconds)
                way(q.weights[0], q.contents[1])
                status = wait(child)
                assert status in ended, (verb, way.__name__, status)
                ended[status] += 1
                assert q.found() in (q.expected if status == FINISHED else [None]), way.__name__
                assert q.temporary() == []
                replace(q.weights[0], q.contents[0])
                q.target.unlink(missing_ok=True)
            q.finish(overwrite=False)
            q.target.unlink()
            print(f"{verb}-{way.__name__}", times, ended[REFUSED], ended[FINISHED])


def run_together(root: Path, times: int) -> None:
    """Of two that may not overwrite, one finishes; of two that may, the later one stays."""
    for verb in VERBS:
        q = Quantizers(root, verb, WIDE)
        for kind in ("new", "old"):
            ended = {FINISHED: 0, REFUSED: 0}
            for _ in range(times):
                q.target.unlink(missing_ok=True)
                if kind == "old":
                    q.target.write_bytes(OLD)
                children = [q.start(i, overwrite=kind == "old") for i in range(2)]
                statuses = [wait(child) for child in children]
                for status in statuses:
                    ended[status] += 1
                assert q.found() in [q.expected[i] for i in range(2) if statuses[i] == FINISHED], (
                    statuses
                )
                assert q.temporary() == []
            print(f"{verb}-{kind}", times, ended[FINISHED], ended[REFUSED])


def main() -> None:
    root, (how, _, times) = Path(sys.argv[1]), sys.argv[2].partition(":")
    {
        "killed": lambda: strike_all(root, signal.SIGKILL, times),
        "interrupted": lambda: strike_all(root, signal.SIGINT, times),
        "spoiled": lambda: spoil_all(root, int(times)),
        "together": lambda: run_together(root, int(times)),
    }[how]()
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
