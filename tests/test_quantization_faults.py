"""What convert and quantize_model leave when they are killed, stopped, cheated or out of room."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import gguf_bytes as gb
import phiggml as pg
from killed_quantizers import (
    MAX_MEMORY,
    OLD,
    TYPE,
    VERBS,
    WAYS,
    Quantizers,
    remove,
    replace,
    shorten,
)
from killer_run import run_killer
from phiggml.errors import FormatError
from phiggml.gguf_split import split_gguf
from phiggml.quantization import Progress, QuantizeOptions
from phiggml.source import gguf_source
from test_convert_reading import run
from test_interrupt import check, interrupted

KINDS = [f"{verb}-{kind}" for verb in VERBS for kind in ("new", "old")]
WEIGHT = "blk.0.ffn_up.weight"


@pytest.fixture(scope="module", params=VERBS)
def quantizers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Quantizers:
    """A verb with a source that takes dozens of chunks."""
    return Quantizers(tmp_path_factory.mktemp("faults"), request.param, 1 << 12)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Killed, stopped, spoiled at any moment -----------------------------------------------------------


@pytest.mark.parametrize(
    "times", [pytest.param(times, marks=[pytest.mark.slow] * (times > 9)) for times in (3, 50)]
)
def test_killed_at_random_moments(times: int, tmp_path: Path) -> None:
    found = run_killer("killed_quantizers.py", tmp_path, f"killed:{times}")
    assert list(found) == KINDS
    assert [killed for killed, _, _ in found.values()] == [times] * 4
    # How many came in the middle is the machine's; test_killed_before_and_after_every_step leaves
    # none of them to chance.
    assert sum(left for _, left, _ in found.values()) >= 1


@pytest.mark.slow
def test_killed_before_and_after_every_step(tmp_path: Path) -> None:
    """Each call of the writing thread that changes what others see, while threads convert."""
    found = run_killer("killed_quantizers.py", tmp_path, "killed:steps")
    assert list(found) == KINDS
    for kind, (killed, left, new) in found.items():
        assert killed >= 40 and left >= 40, kind
        assert 1 <= new <= killed - left, kind


@pytest.mark.parametrize(
    "times", [pytest.param(times, marks=[pytest.mark.slow] * (times > 9)) for times in (2, 25)]
)
def test_ctrl_c_at_random_moments(times: int, tmp_path: Path) -> None:
    found = run_killer("killed_quantizers.py", tmp_path, f"interrupted:{times}")
    assert list(found) == KINDS
    assert [(stopped, left) for stopped, left, _ in found.values()] == [(times, 0)] * 4


@pytest.mark.parametrize(
    "times", [pytest.param(times, marks=[pytest.mark.slow] * (times > 9)) for times in (2, 10)]
)
def test_sources_spoiled_at_random_moments(times: int, tmp_path: Path) -> None:
    found = run_killer("killed_quantizers.py", tmp_path, f"spoiled:{times}")
    assert list(found) == [f"{verb}-{way.__name__}" for verb in VERBS for way in WAYS]
    # One that is removed may be gone before it is opened.
    assert [found[f"{verb}-replace"][1] for verb in VERBS] == [0, 0]
    if times > 9:
        for kind in (f"{verb}-{way.__name__}" for verb in VERBS for way in WAYS[:3]):
            assert found[kind][1] > 0, found


def test_two_at_once_onto_one_target(tmp_path: Path) -> None:
    found = run_killer("killed_quantizers.py", tmp_path, "together:2")
    assert found == {kind: (2, 2, 2) if kind.endswith("new") else (2, 4, 0) for kind in KINDS}


# Spoiled, stopped in the middle -------------------------------------------------------------------


def model(order: str = "<", *, wide: int = 4096) -> bytes:
    """Two weights of 256 rows, numbers of 16 bits in this order."""
    layout, rng = gb.Layout(order=order), np.random.default_rng(0)
    pairs = [
        layout.pair("general.architecture", gb.STRING, layout.string("phi3")),
        layout.number("phi3.block_count", gb.UINT32, 1),
    ]
    shape = (wide, 256)
    weights = [rng.standard_normal(shape).astype(f"{order}f2").tobytes() for _ in range(2)]
    infos = [
        layout.tensor(name, shape, gb.F16, offset=i * len(weights[0]))
        for i, name in enumerate((WEIGHT, "blk.0.ffn_down.weight"))
    ]
    return layout.gguf(pairs, infos, b"".join(weights))


def write_model(folder: Path, form: str) -> tuple[Path, Path]:
    """The model in this form: the file to name, and the one that its last rows lie in."""
    folder.mkdir()
    source = folder / "m.gguf"
    source.write_bytes(model(">" if form == "big-endian" else "<"))
    if form != "split":
        return source, source
    parts = [Path(part) for part in split_gguf(source, source, max_tensors=1)]
    source.unlink()
    return parts[0], parts[-1]


@pytest.mark.parametrize("form", ["whole", "split", "big-endian"])
def test_who_reads_a_gguf_source(form: str, tmp_path: Path) -> None:
    """The pipeline's threads where rows lie as they are; else the thread that calls."""
    source, _ = write_model(tmp_path / "source", form)
    with ExitStack() as files:
        runs = [tensor.runs for tensor in gguf_source(source, files).tensors]
    assert [found is None for found in runs] == [form == "big-endian"] * 2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["whole", "split", "big-endian"])
def test_a_gguf_source_spoiled_in_the_middle(
    form: str, way: Callable[[Path, bytes], None], tmp_path: Path
) -> None:
    """As for checkpoints in test_convert_reading; here for what is a GGUF file."""
    source, last = write_model(tmp_path / "source", form)
    options = QuantizeOptions(max_memory=MAX_MEMORY)
    pg.quantize_model(source, tmp_path / "before.gguf", TYPE, options=options)
    expected = (tmp_path / "before.gguf").read_bytes()
    assert pg.GGUFFile(tmp_path / "before.gguf").tensors[WEIGHT].type == "Q4_K"
    spoiled: list[Progress] = []

    def meanwhile(progress: Progress) -> None:
        if progress.done >= progress.total // 4 and not spoiled:
            spoiled.append(progress)
            way(last, bytes(last.stat().st_size))

    out = tmp_path / "out" / "m.gguf"
    out.parent.mkdir()
    if way in (replace, remove):
        pg.quantize_model(source, out, TYPE, options=options, progress=meanwhile)
        assert out.read_bytes() == expected
    else:
        what = "shorter" if way is shorten else "written to|shorter"
        with pytest.raises(FormatError, match=what) as raised:
            pg.quantize_model(source, out, TYPE, options=options, progress=meanwhile)
        assert raised.value.path == str(last)
        assert names(out.parent) == []
    assert spoiled[0].done < spoiled[0].total // 2


class Stop(BaseException):
    """As what a handler of a signal raises."""


def test_progress_reaches_its_total(quantizers: Quantizers, tmp_path: Path) -> None:
    pieces: list[Progress] = []
    quantizers.run(quantizers.sources[0], tmp_path / "m.gguf", progress=pieces.append)
    done = [piece.done for piece in pieces]
    assert done == sorted(done) and done[0] == 0
    assert {piece.total for piece in pieces} == {done[-1]}


def open_files_and_threads() -> list[int]:
    """How many there are; none where the system does not tell."""
    folders = [Path("/proc/self") / of for of in ("fd", "task")]
    return [len(list(folder.iterdir())) for folder in folders if folder.is_dir()]


@pytest.mark.parametrize("kind", [ValueError, StopIteration, KeyboardInterrupt, SystemExit, Stop])
def test_a_callback_that_raises(
    kind: type[BaseException], quantizers: Quantizers, tmp_path: Path
) -> None:
    """At the first, a middle and the last piece; threads were at work on the next ones."""
    out, pieces = tmp_path / "m.gguf", list[Progress]()
    quantizers.run(quantizers.sources[0], out, progress=pieces.append)
    out.write_bytes(OLD)
    gc.collect()
    before = open_files_and_threads()

    def stopped_at(last: int) -> None:
        error, heard = kind("mine"), list[Progress]()

        def stop(progress: Progress) -> None:
            heard.append(progress)
            if len(heard) == last:
                raise error

        with pytest.raises(kind) as raised:
            quantizers.run(quantizers.sources[0], out, overwrite=True, progress=stop)
        assert raised.value is error
        assert len(heard) == last
        # The threads have ended, although the exception keeps all that it came through.
        assert open_files_and_threads()[1:] == before[1:]

    for last in (1, len(pieces) // 2, len(pieces)):
        stopped_at(last)
        assert names(tmp_path) == ["m.gguf"]
        assert out.read_bytes() == OLD
    gc.collect()  # the exceptions, and what their tracebacks hold
    assert open_files_and_threads() == before
    quantizers.run(quantizers.sources[0], out, overwrite=True)
    assert out.read_bytes() == quantizers.expected[0]


def test_a_callback_that_begins_another(quantizers: Quantizers, tmp_path: Path) -> None:
    def begin(progress: Progress) -> None:
        if progress.done >= progress.total // 2 and not (tmp_path / "inner.gguf").exists():
            quantizers.run(quantizers.sources[1], tmp_path / "inner.gguf")

    quantizers.run(quantizers.sources[0], tmp_path / "outer.gguf", progress=begin)
    assert names(tmp_path) == ["inner.gguf", "outer.gguf"]
    assert (tmp_path / "outer.gguf").read_bytes() == quantizers.expected[0]
    assert (tmp_path / "inner.gguf").read_bytes() == quantizers.expected[1]


def test_threads_that_write_one_target(quantizers: Quantizers, tmp_path: Path) -> None:
    """Of those that may not overwrite, one succeeds; of those that may, all do."""
    out = tmp_path / "m.gguf"

    def attempt(overwrite: bool) -> bool:
        try:
            quantizers.run(quantizers.sources[0], out, overwrite=overwrite)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(attempt, [False] * 3)) == 1
        assert sum(pool.map(attempt, [True] * 3)) == 3
    assert names(tmp_path) == ["m.gguf"]
    assert out.read_bytes() == quantizers.expected[0]


def test_a_child_forked_meanwhile_leaves_its_parents_work_alone(
    quantizers: Quantizers, tmp_path: Path
) -> None:
    """It unwinds what it inherited, and then does the same work itself."""
    source = quantizers.sources[0]
    verb = "convert" if source.is_dir() else "quantize_model"
    said = run(
        f"""
        import json, os, signal, sys, phiggml as pg
        class Child(BaseException): pass
        children = []
        def fork(progress):
            if progress.done >= progress.total // 2 and not children:
                children.append(os.fork())
                if children[0] == 0:
                    raise Child
        def work(name, **more):
            pg.{verb}(sys.argv[1], sys.argv[2] + "/" + name, {TYPE!r},
                options=pg.QuantizeOptions(max_memory={MAX_MEMORY}), threads=2, **more)
        try:
            work("parent.gguf", progress=fork)
        except Child:
            signal.alarm(60)
            work("child.gguf")
            os._exit(0)
        print(json.dumps(os.waitpid(children[0], 0)[1]))
        """,
        source,
        tmp_path,
    )
    assert said == 0
    assert names(tmp_path) == ["child.gguf", "parent.gguf"]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == quantizers.expected[0]


@pytest.mark.parametrize("shape", [(4096, 4096), (2, 1 << 23)])
def test_ctrl_c_in_the_middle_of_one_chunk(shape: tuple[int, int], tmp_path: Path) -> None:
    """One thread, which takes seconds for a tensor that is one chunk; or rows of half of it."""
    rows, wide = shape
    block = np.random.default_rng(0).standard_normal(1 << 20, np.float32).astype(np.float16)
    source, folder = tmp_path / "m.gguf", tmp_path / "out"
    source.write_bytes(head_of_one(rows, wide) + block.tobytes() * (rows * wide >> 20))
    folder.mkdir()
    check(
        interrupted(
            f"""
            import numpy as np
            pg.quantize_model({str(source)!r}, folder + "/m.gguf", "IQ2_XS", threads=1,
                imatrix={{{WEIGHT!r}: np.ones({wide}, np.float32)}},
                options=pg.QuantizeOptions(max_memory=1 << 30), progress=started)
            """,
            folder,
        )
    )


def head_of_one(rows: int, wide: int) -> bytes:
    """A model of one weight of 16 bits; its data are to follow."""
    layout = gb.Layout()
    pairs = [
        layout.pair("general.architecture", gb.STRING, layout.string("phi3")),
        layout.number("phi3.block_count", gb.UINT32, 1),
    ]
    return layout.gguf(pairs, [layout.tensor(WEIGHT, (wide, rows), gb.F16)])


# Memory -------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_memory_is_bounded_by_max_memory(tmp_path: Path) -> None:
    """A tensor of 256 MB, whose data are a hole; sampled every millisecond and at each piece."""
    rows, wide = 32 << 10, 4096
    for name, n_rows in (("small", 64), ("large", rows)):
        head = head_of_one(n_rows, wide)
        (tmp_path / name).write_bytes(head)
        os.truncate(tmp_path / name, len(head) + 2 * n_rows * wide)
    said = run(
        """
        import json, os, sys, threading, phiggml as pg
        def seen(*_):
            with open("/proc/self/status") as file:
                peak[0] = max(peak[0], next(
                    int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon")))
        def watch():
            while not over.wait(0.001):
                seen()
        def quantize(name, max_memory, type):
            pg.quantize_model(f"{sys.argv[1]}/{name}", f"{sys.argv[1]}/out", type, threads=2,
                options=pg.QuantizeOptions(max_memory=max_memory), progress=seen, overwrite=True)
        peak, over, grown = [0], threading.Event(), []
        quantize("small", 1 << 20, "Q8_0")
        peak = [0]
        seen()
        before = peak[0]
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for max_memory in json.loads(sys.argv[2]):
                quantize("large", max_memory, "Q8_0")
                grown.append(peak[0] - before)
        finally:
            over.set()
            watcher.join()
        print(json.dumps(grown))
        """,
        tmp_path,
        Path("[1048576, 16777216]"),
    )
    # Beside the rows: numbers of each thread's piece, its stack, and what malloc keeps of rows that
    # were freed, as much as there are at a time.
    for max_memory, grown in zip((1 << 20, 16 << 20), said, strict=True):
        assert grown <= 2 * max_memory + (12 << 20), said
