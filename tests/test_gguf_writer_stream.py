"""Writing as tensors come: what does not fit into memory, and headers that grow or shrink."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

import gguf_bytes as gb
from phiggml import gguf_part, gguf_tensor_data, gguf_writer
from phiggml.atomic_file import AtomicFile
from phiggml.errors import InputError
from phiggml.gguf import GGUFFile, GGUFWriter

PADDING = "phiggml.padding"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.gguf"


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors go to the disk from 4096 bytes on, behind a room that the gguf package reads soon."""
    monkeypatch.setattr(gguf_writer, "_MAX_HELD_BYTES", 4096)
    monkeypatch.setattr(gguf_part, "_SLACK", 1000)
    monkeypatch.setattr(gguf_part, "_PAGE", 512)


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and tensors as the gguf package reads them; the padding is looked at and left."""
    reader = gguf.GGUFReader(path)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    if PADDING in fields:
        assert next(iter(fields)) == PADDING
        field = fields.pop(PADDING)
        assert field.types == [gguf.GGUFValueType.STRING]
        assert not field.contents().strip(" ")
    assert all(tensor.data_offset % reader.alignment == 0 for tensor in reader.tensors)
    last = reader.tensors[-1]
    assert path.stat().st_size == last.data_offset + aligned(last.n_bytes, int(reader.alignment))
    metadata = {name: field.contents() for name, field in fields.items()}
    return metadata, {tensor.name: tensor.data for tensor in reader.tensors}


def assert_tensors(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def aligned(nbytes: int, alignment: int) -> int:
    return int(-(-int(nbytes) // alignment) * alignment)


def test_a_streamed_file_byte_by_byte(path, monkeypatch):
    monkeypatch.setattr(gguf_writer, "_MAX_HELD_BYTES", 4096)
    big, small = numbers(1, 1024), numbers(2, 3)
    with GGUFWriter(path) as w:
        w.metadata["a"] = "b"
        w.add_tensor("big", big)
        w.add_tensor("small", small)
        w.metadata["late"] = "c"
    late, pairs = (
        gb.pair("late", gb.STRING, gb.string("c")),
        [gb.pair("a", gb.STRING, gb.string("b"))],
    )
    tensors = [gb.tensor("big", (1024,), gb.F32), gb.tensor("small", (3,), gb.F32, offset=4096)]
    # What was known when the big tensor came, 128 KiB to spare, up to a multiple of 4096.
    room = aligned(24 + len(pairs[0]) + len(tensors[0]) + 131072, 4096)
    used = 24 + sum(map(len, [*pairs, late, *tensors]))
    empty = gb.pair(PADDING, gb.STRING, gb.string(b""))
    filled = room - used - len(empty)
    padding = gb.pair(PADDING, gb.STRING, gb.string(b" " * filled))
    data = big.tobytes() + small.tobytes() + bytes(20)
    assert path.read_bytes() == gb.gguf([padding, *pairs, late], tensors, data)


def test_files_are_held_up_to_the_limit(path):
    zeros = np.zeros(64 << 20, np.int8)
    folder = path.parent
    with GGUFWriter(path) as w:
        w.add_tensor("a", zeros[: (64 << 20) - 1])
        assert list(folder.iterdir()) == []
        w.add_tensor("b", zeros[:1])
        (begun,) = folder.iterdir()
        assert begun.stat().st_size > 64 << 20
        w.discard()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("spare", [1, 300])
def test_a_header_that_outgrows_its_room_moves_the_data(path, eager, monkeypatch, spare):
    monkeypatch.setattr(gguf_part, "_SLACK", spare)
    monkeypatch.setattr(gguf_part, "_PAGE", 1)
    monkeypatch.setattr("phiggml.atomic_file._ONE_MOVE", 1000)
    expected = {f"tensor-{i}": numbers(i, 3, 400 + i) for i in range(60)}
    with GGUFWriter(path) as w:
        for name, array in expected.items():
            w.add_tensor(name, array)
        w.metadata["late"] = "x" * 5000
    metadata, found = read(path)
    assert metadata == {"late": "x" * 5000}
    assert_tensors(found, expected)
    assert PADDING not in gguf.GGUFReader(path).fields


def test_data_are_moved_a_few_times_not_many(path, eager, monkeypatch):
    moves = []
    monkeypatch.setattr(AtomicFile, "move", lambda self, *ranges: moves.append(ranges))
    w = GGUFWriter(path)
    for i in range(1000):
        w.add_tensor_stream(f"tensor-{i}", (8,), "I8")
        w.write_rows(np.zeros(8, np.uint8).reshape(1, 8))
    w.discard()
    # 43 bytes of header each, room for 1000 to begin with, and twice as much each time.
    assert 4 <= len(moves) <= 6


def test_data_are_moved_as_soon_as_the_room_is_too_small(path, monkeypatch):
    """And not sooner: a header may fill it to the last byte."""
    monkeypatch.setattr(gguf_part, "_SLACK", 3 * 25)
    monkeypatch.setattr(gguf_part, "_PAGE", 1)
    monkeypatch.setattr(gguf_writer, "_MAX_HELD_BYTES", 1)
    moves = []
    move = AtomicFile.move

    def counted(self: AtomicFile, *ranges: int) -> None:
        moves.append(ranges)
        move(self, *ranges)

    monkeypatch.setattr(AtomicFile, "move", counted)
    seen = []
    with GGUFWriter(path) as w:
        w.metadata["general.alignment"] = 1
        for i in range(5):
            # 8 + 1 bytes of name, 4 + 8 of shape, 4 of type, 8 of offset.
            w.add_tensor(str(i), np.full(3, i, np.int8))
            seen.append(len(moves))
        w.discard()
    assert 8 + 1 + 4 + 8 + 4 + 8 == 33
    # 75 bytes to spare take two more tensors.
    assert seen == [0, 0, 0, 1, 1]


def test_a_header_fills_its_room_to_the_last_byte(path, monkeypatch):
    monkeypatch.setattr(gguf_part, "_SLACK", 66)
    monkeypatch.setattr(gguf_part, "_PAGE", 1)
    monkeypatch.setattr(gguf_writer, "_MAX_HELD_BYTES", 1)
    monkeypatch.setattr(AtomicFile, "move", lambda *ranges: pytest.fail("moved"))
    with GGUFWriter(path) as w:
        w.metadata["general.alignment"] = 1
        for i in range(3):
            w.add_tensor(str(i), np.full(3, i, np.int8))
    assert_tensors(read(path)[1], {str(i): np.full(3, i, np.int8) for i in range(3)})


def declared(path: Path, before: int, after: int, alignment: int) -> dict[str, np.ndarray]:
    """A text of `before` bytes when the data are written, and of `after` bytes at close."""
    expected = {"a": numbers(1, 3, 5), "b": numbers(2, 7)}
    with GGUFWriter(path, overwrite=True) as w:
        w.metadata["general.alignment"] = alignment
        w.metadata["text"] = "x" * before
        for name, array in expected.items():
            w.add_tensor_stream(name, array.shape, "F32")
        for array in expected.values():
            w.write_rows(array.view(np.uint8))
        w.metadata["text"] = "y" * after
    return expected


@pytest.mark.parametrize("alignment", [1, 32])
def test_every_change_of_the_headers_size(path, alignment):
    """In its room, with a padding, or moved: each gap up to 80 bytes, and 40 beyond the room."""
    padded = 0
    for after in range(120):
        expected = declared(path, 80, after, alignment)
        metadata, found = read(path)
        assert metadata == {"general.alignment": alignment, "text": "y" * after}
        assert_tensors(found, expected)
        filled = PADDING in gguf.GGUFReader(path).fields
        # Without a padding it is the file that is written at once: its gap is of zeros.
        assert filled != (path.read_bytes() == at_once(path, expected, after, alignment))
        padded += filled
    assert 0 < padded < 80


def at_once(beside: Path, tensors: dict[str, np.ndarray], text: int, alignment: int) -> bytes:
    path = beside.with_name("whole.gguf")
    with GGUFWriter(path, overwrite=True) as w:
        w.metadata["general.alignment"] = alignment
        w.metadata["text"] = "y" * text
        for name, array in tensors.items():
            w.add_tensor(name, array)
    return path.read_bytes()


def test_an_unchanged_header_is_exact(tmp_path):
    """Declared before the first rows: the bytes of a file that was held until close."""
    streamed, whole = tmp_path / "streamed.gguf", tmp_path / "whole.gguf"
    expected = declared(streamed, 40, 40, 32)
    with GGUFWriter(whole) as w:
        w.metadata["general.alignment"] = 32
        w.metadata["text"] = "y" * 40
        for name, array in expected.items():
            w.add_tensor(name, array)
    assert streamed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("limit", [0, 4096, 1 << 20])
def test_rows_and_arrays_in_any_order(path, eager, monkeypatch, limit):
    monkeypatch.setattr(gguf_writer, "_MAX_HELD_BYTES", limit)
    a, b, c = numbers(1, 4, 32), numbers(2, 3, 5, 7), numbers(3, 2000)
    with GGUFWriter(path) as w:
        w.add_tensor("first", b)
        w.add_tensor_stream("a", a.shape, "F32")
        w.add_tensor("behind", c)
        w.write_rows(a.view(np.uint8)[:1])
        w.add_tensor_stream("b", b.shape, "F32")
        w.metadata["late"] = True
        w.write_rows(a.view(np.uint8)[1:])
        w.add_tensor("c", c[::-1])
        w.write_rows(b.view(np.uint8)[:2])
        w.add_tensor("d", c.astype(">f4"))
        w.write_rows(b.view(np.uint8)[2])
        with pytest.raises(InputError, match="all are complete"):
            w.write_rows(a.view(np.uint8))
        w.add_tensor_stream("e", c.shape, "F32")
        w.write_rows(c.view(np.uint8))
    metadata, found = read(path)
    assert metadata == {"late": True}
    expected = {"first": b, "a": a, "behind": c, "b": b, "c": c[::-1], "d": c, "e": c}
    assert_tensors(found, expected)


def test_rows_that_nobody_asked_for_begin_nothing(path):
    with GGUFWriter(path) as w:
        w.add_tensor("a", numbers(1, 4))
        with pytest.raises(InputError, match="no tensor waits"):
            w.write_rows(np.zeros(4, np.uint8))
        assert list(path.parent.iterdir()) == []
        w.add_tensor("b", numbers(2, 4))
    assert PADDING not in gguf.GGUFReader(path).fields


def test_the_alignment_is_fixed_by_the_first_data(path, eager):
    with GGUFWriter(path) as w:
        w.metadata["general.alignment"] = 128
        w.add_tensor("a", numbers(1, 1025))
        w.metadata["general.alignment"] = 128
        for change in (
            lambda: w.metadata.__setitem__("general.alignment", 64),
            lambda: w.metadata.__delitem__("general.alignment"),
        ):
            with pytest.raises(InputError, match="multiples of 128"):
                change()
        w.add_tensor("b", numbers(2, 3))
    metadata, found = read(path)
    assert metadata == {"general.alignment": 128}
    assert_tensors(found, {"a": numbers(1, 1025), "b": numbers(2, 3)})


def test_metadata_are_copied_without_decoding(tmp_path, eager):
    """A padding is not copied on, nor what is skipped; what was set stays where it stood."""
    first, second, third = (tmp_path / f"{i}.gguf" for i in range(3))
    with GGUFWriter(first) as w:
        w.metadata["general.alignment"] = 64
        w.metadata["tokens"] = ["a", b"\xff".decode("utf-8", "surrogateescape"), ""]
        w.metadata["number"] = np.float64(0.1)
        w.metadata["array"] = np.array([1, 2], np.uint16)
        w.metadata["skipped"] = 1
        w.add_tensor("a", numbers(1, 1025))
    for source, target in ((first, second), (second, third)):
        with GGUFFile(source) as f, GGUFWriter(target) as w:
            w.metadata["number"] = "old"
            w.copy_metadata(f.metadata, skip={"skipped"})
            assert w.metadata["tokens"] == f.metadata["tokens"]
            assert PADDING not in w.metadata
            for name, tensor in f.tensors.items():
                w.add_tensor(name, tensor.data, type=tensor.type)
    values = {
        "number": gb.Layout().number("number", gb.FLOAT64, 0.1),
        "general.alignment": gb.Layout().number("general.alignment", gb.UINT32, 64),
        "tokens": gb.Layout().strings("tokens", ["a", b"\xff", ""]),
        "array": gb.Layout().numbers("array", gb.UINT16, [1, 2]),
    }
    for written in (second, third):
        with GGUFFile(written) as f:
            assert list(f.metadata) == [PADDING, *values]
            for key, encoded in values.items():
                assert f.metadata.encoded(key) == encoded[8 + len(key) :]
            np.testing.assert_array_equal(f.tensors["a"].dequantize(), numbers(1, 1025))
        assert written.stat().st_size == second.stat().st_size


def test_a_padding_that_is_set_is_not_written(path):
    with GGUFWriter(path) as w:
        w.metadata[PADDING] = np.zeros(1000, np.uint8)
        w.metadata["k"] = 1
        w.add_tensor("a", numbers(1, 4))
    assert read(path)[0] == {"k": 1}
    assert path.stat().st_size < 300


ODD_LAYOUTS = {
    "transposed": lambda x: x.T,
    "strided": lambda x: x[::2, ::3],
    "reversed": lambda x: x[::-1, ::-1],
    "swapped": lambda x: x.astype(">f4"),
    "deep": lambda x: x.reshape(2, 50, 3, 40).transpose(3, 1, 2, 0),
    "row": lambda x: x.reshape(1, -1)[:, ::2],
    "flat": lambda x: x.reshape(-1)[::-1],
    "broadcast": lambda x: np.broadcast_to(x[:, :1], (100, 120)),
}


def test_other_layouts_are_copied_in_pieces(path, monkeypatch):
    monkeypatch.setattr(gguf_tensor_data, "_PIECE_BYTES", 1000)
    x = numbers(4, 100, 120)
    arrays = {name: layout(x) for name, layout in ODD_LAYOUTS.items()}
    for array in arrays.values():
        pieces = list(gguf_tensor_data.little_endian_pieces(array))
        assert all(piece.nbytes <= 1000 and piece.flags.c_contiguous for piece in pieces)
    with GGUFWriter(path) as w:
        for name, array in arrays.items():
            w.add_tensor(name, array)
    assert_tensors(read(path)[1], arrays)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("kind", ["F16", "F32", "F64", "BF16"])
def test_floats_become_floats_of_any_width(path, dtype, kind):
    """Against ml_dtypes and numpy: to the nearest, ties to even, from float32 on."""
    given = (numbers(5, 4, 64) * 100).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    names = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "BF16": ml_dtypes.bfloat16}
    target = np.dtype(names[kind])
    through = given if kind == "F64" or dtype == target.name else given.astype(np.float32)
    expected = through.astype(target)
    with GGUFWriter(path) as w:
        w.add_tensor("a", given[::-1], type=kind)
    with GGUFFile(path) as f:
        assert f.tensors["a"].type == kind
        assert f.tensors["a"].data.tobytes() == expected[::-1].tobytes()


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_memory_is_bounded(path):
    """400 MB of tensors of which nobody else keeps a reference."""
    script = """
        import resource, sys
        import numpy as np
        from phiggml.gguf import GGUFWriter
        with GGUFWriter(sys.argv[1]) as w:
            w.add_tensor("warm", np.ones((4, 4), np.float32).T)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for i in range(80):
                w.add_tensor(f"t{i}", np.full(5 << 20, i, np.int8))
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            w.discard()
        print(grown)
    """
    finished = run(script, path)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) * 1024 < 90 << 20
    assert list(path.parent.iterdir()) == []


FAILING = """
    import pathlib, sys
    import numpy as np
    from phiggml import gguf_writer
    from phiggml.gguf import GGUFWriter
    {setup}
    gguf_writer._MAX_HELD_BYTES = 4096
    folder = pathlib.Path(sys.argv[1])
    def attempt(steps, **options):
        writer = GGUFWriter(folder / "out.gguf", overwrite=True, **options)
        before = list(folder.iterdir())
        try:
            steps(writer)
            writer.close()
        except OSError as error:
            assert list(folder.iterdir()) == before, (steps.__name__, list(folder.iterdir()))
            print(steps.__name__, type(error).__name__)
    def streamed(writer):
        for i in range(10):
            writer.add_tensor(f"t{{i}}", np.ones(50_000, np.float32))
    def declared(writer):
        writer.add_tensor_stream("t", (10, 50_000), "F32")
        for i in range(10):
            writer.write_rows(np.ones((1, 200_000), np.uint8))
    def moved(writer):
        writer.add_tensor("t", np.ones(100_000, np.float32))
        writer.metadata["late"] = "x" * 700_000
    def small(writer):
        writer.add_tensor("t", np.ones(100_000, np.float32))
    attempt(small)
    kept = (folder / "out.gguf").read_bytes()
    attempt(streamed)
    attempt(declared)
    attempt(moved)
    attempt(streamed, split_max_tensors=1)
    assert (folder / "out.gguf").read_bytes() == kept
"""
FAILED = "streamed OSError\ndeclared OSError\nmoved OSError\nstreamed OSError\n"


def test_a_write_that_fails_leaves_nothing(tmp_path):
    """The file system refuses more than 900 kB per file."""
    setup = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (900_000, 900_000))"
    finished = run(textwrap.dedent(FAILING).format(setup=setup), tmp_path)
    assert finished.returncode == 0, finished.stderr
    # Each file of the split one is small enough.
    assert finished.stdout == "streamed OSError\ndeclared OSError\nmoved OSError\n"


def mounted(folder: Path, script: str, options: str) -> subprocess.CompletedProcess[str]:
    """Runs a script where `folder` is a small file system of its own."""
    shell = f'mount -t tmpfs -o {options} none "$1" && shift && exec "$@" "$0"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", shell, folder, folder]
    command += [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def may_mount(tmp_path: Path) -> None:
    try:
        finished = mounted(tmp_path, "pass", "size=64k")
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if finished.returncode != 0:
        pytest.skip(f"file systems cannot be mounted here: {finished.stderr}")


@pytest.mark.usefixtures("may_mount")
def test_a_full_disk_leaves_nothing(tmp_path):
    finished = mounted(tmp_path, FAILING.format(setup=""), "size=1400k")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == FAILED


@pytest.mark.usefixtures("may_mount")
def test_a_read_only_folder(tmp_path):
    script = """
        import pathlib, sys
        import numpy as np
        from phiggml.gguf import GGUFWriter
        for options in ({}, {"split_max_tensors": 1}):
            w = GGUFWriter(pathlib.Path(sys.argv[1]) / "out.gguf", **options)
            w.add_tensor("t", np.ones(100, np.float32))
            try:
                w.close()
            except OSError as error:
                print(error.strerror)
    """
    finished = mounted(tmp_path, script, "ro,size=64k")
    assert finished.stdout == "Read-only file system\n" * 2, finished.stderr
