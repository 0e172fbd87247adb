"""Writing: what the gguf package reads back, and what is left when writing fails."""

from __future__ import annotations

import os
import signal
import stat
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest

import gguf_bytes as gb
import phiggml
from phiggml.errors import InputError
from phiggml.gguf import GGUFFile, GGUFWriter

TYPES = gguf.GGUFValueType


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.gguf"


def read_with_gguf(path: Path) -> tuple[dict[str, tuple[list[TYPES], object]], dict]:
    """Metadata with their types, and tensors, as the gguf package reads them."""
    reader = gguf.GGUFReader(path)
    fields = {
        name: (field.types, field.contents())
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    return fields, {tensor.name: tensor for tensor in reader.tensors}


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "x" * 64, "ü" * 32])
def test_tensor_names_that_cannot_be_written(path, name):
    writer = GGUFWriter(path)
    with pytest.raises(InputError, match="name"):
        writer.add_tensor(name, np.zeros(1, np.float32))


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    normal = rng.normal(size=(4, 6)).astype(np.float32)
    return {
        "f32": normal,
        "f16": normal.astype(np.float16),
        "f64": normal.astype(np.float64),
        "strided": normal[::2, 1::2],
        "reversed": normal[::-1, ::-1],
        "transposed": normal.T,
        "fortran": np.asfortranarray(normal),
        "swapped": normal.astype(">f4"),
        "swapped16": normal.astype(">f2")[:, ::3],
        "i8": rng.integers(-128, 128, (3, 2, 2, 2)).astype(np.int8),
        "i16": rng.integers(-99, 99, 7).astype(np.int16),
        "i32": rng.integers(-99, 99, 7).astype(">i4"),
        "i64": rng.integers(-(2**60), 2**60, 7),
        "broadcast": np.broadcast_to(np.float32(3), (2, 3)),
    }


@pytest.mark.parametrize("alignment", [None, 8, 32, 512])
def test_tensors_as_the_gguf_package_reads_them(path, alignment):
    with GGUFWriter(path) as w:
        if alignment is not None:
            w.metadata["general.alignment"] = alignment
        for name, array in arrays().items():
            w.add_tensor(name, array)
    fields, tensors = read_with_gguf(path)
    assert fields == (
        {} if alignment is None else {"general.alignment": ([TYPES.UINT32], alignment)}
    )
    assert list(tensors) == list(arrays())
    for name, array in arrays().items():
        read = tensors[name]
        assert read.tensor_type.name == array.dtype.newbyteorder("=").name.upper().replace(
            "FLOAT", "F"
        ).replace("INT", "I")
        np.testing.assert_array_equal(read.data, array)
        assert read.data_offset % (alignment or 32) == 0
    assert path.stat().st_size % (alignment or 32) == 0


def test_bfloat16_arrays_and_bits(path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).astype(ml_dtypes.bfloat16)
    with GGUFWriter(path) as w:
        w.add_tensor("array", array[:, ::-1])
        w.add_tensor("bits", array.view(np.uint16), type="bf16")
    _, tensors = read_with_gguf(path)
    for name, expected in (("array", array[:, ::-1]), ("bits", array)):
        assert tensors[name].tensor_type.name == "BF16"
        assert tensors[name].data.tobytes() == expected.tobytes()
    with GGUFFile(path) as f:
        np.testing.assert_array_equal(f.tensors["bits"].dequantize(), array.astype(np.float32))


def test_quantized_tensors_from_blocks_arrays_and_floats(path):
    x = np.random.default_rng(2).normal(size=(3, 64)).astype(np.float32)
    expected = gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0)
    quantized = phiggml.quantize(x, "Q8_0")
    with GGUFWriter(path) as w:
        w.add_tensor("blocks", expected, type="q8_0")
        w.add_tensor("quantized", quantized)
        w.add_tensor("same", quantized, type="Q8_0")
        w.add_tensor("floats", x, type="Q8_0")
        w.add_tensor("half", x, type="F16")
        with pytest.raises(InputError, match="Q4_0"):
            w.add_tensor("other", quantized, type="Q4_0")
    _, tensors = read_with_gguf(path)
    for name in ("blocks", "quantized", "same", "floats"):
        assert tensors[name].tensor_type.name == "Q8_0"
        assert list(tensors[name].shape) == [64, 3]
        np.testing.assert_array_equal(tensors[name].data, expected)
    np.testing.assert_array_equal(tensors["half"].data, x.astype(np.float16))


BAD_TENSORS = [
    (np.zeros((2, 3), np.uint8), None, "uint8"),
    (np.zeros(3, bool), None, "bool"),
    (np.zeros(3, complex), None, "complex"),
    (np.array(["a"]), None, "<U1"),
    (np.array([None]), None, "object"),
    (np.float32(1), None, "0 axes"),
    (np.zeros((1, 1, 1, 1, 1), np.float32), None, "5 axes"),
    (np.zeros((0, 4), np.float32), None, "at least 1"),
    (np.zeros((4, 0), np.float32), None, "at least 1"),
    (np.zeros((2, 33), np.float32), "Q8_0", "no multiple of 32"),
    (np.zeros((2, 35), np.uint8), "Q8_0", "multiple of 34"),
    (np.zeros((2, 68), np.uint8)[:, ::2], "Q8_0", "C-contiguous"),
    (np.zeros((2, 32), np.int32), "Q8_0", "int32"),
    (np.full((2, 32), np.nan, np.float32), "Q8_0", "(?i)nan|finite"),
    (np.zeros(32, np.float32), "Q9_9", "Q9_9"),
]


@pytest.mark.parametrize(("array", "kind", "message"), BAD_TENSORS)
def test_tensors_that_cannot_be_written(path, array, kind, message):
    with GGUFWriter(path) as w:
        w.add_tensor("taken", np.zeros(1, np.float32))
        with pytest.raises(InputError, match=message):
            w.add_tensor("t", array, type=kind)
        with pytest.raises(InputError, match="already"):
            w.add_tensor("taken", np.zeros(1, np.float32))
    assert list(read_with_gguf(path)[1]) == ["taken"]


def test_streams_write_the_same_bytes_as_arrays(tmp_path):
    x = np.random.default_rng(5).normal(size=(2, 5, 32)).astype(np.float32)
    blocks = gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q4_0)
    whole, streamed = tmp_path / "whole.gguf", tmp_path / "streamed.gguf"
    with GGUFWriter(whole) as w:
        w.metadata["k"] = 1
        w.add_tensor("first", x[0])
        w.add_tensor("a", blocks, type="Q4_0")
        w.add_tensor("between", x[1])
        w.add_tensor("b", x)
        w.add_tensor("last", x[1, :1])
    with GGUFWriter(streamed) as w:
        w.add_tensor("first", x[0])
        w.add_tensor_stream("a", (*blocks.shape[:-1], 32), "q4_0")
        w.add_tensor("between", x[1])
        w.add_tensor_stream("b", x.shape, "F32")
        w.add_tensor("last", x[1, :1])
        w.metadata["k"] = 1
        w.write_rows(blocks[0])
        w.write_rows(blocks[1, :3])
        w.write_rows(blocks[1, 3:])
        w.write_rows(x.view(np.uint8)[0])
        w.write_rows(x.view(np.uint8)[1])
        with pytest.raises(InputError, match="all are complete"):
            w.write_rows(x.view(np.uint8)[1])
    assert streamed.read_bytes() == whole.read_bytes()


def test_rows_that_do_not_fit_are_refused_and_the_writer_goes_on(path):
    rows = np.zeros((3, 18), np.uint8)
    with GGUFWriter(path) as w:
        w.add_tensor_stream("a", (2, 32), "Q4_0")
        w.add_tensor_stream("b", (1, 32), "Q4_0")
        for bad, message in (
            (rows, "lacks 36"),
            (rows.reshape(-1)[:17], "whole rows of 18"),
            (rows.astype(np.int8), "uint8"),
            (rows[:, ::2], "C-contiguous"),
            (rows.tobytes(), "uint8"),
        ):
            with pytest.raises(InputError, match=message):
                w.write_rows(bad)
        w.write_rows(rows[:2])
        w.write_rows(rows[:1])
    assert list(read_with_gguf(path)[1]) == ["a", "b"]


@pytest.mark.parametrize("shape", [(), (0, 32), (2, 33), (1, 1, 1, 1, 32), (2.0, 32), (2**62, 32)])
def test_stream_shapes_that_cannot_be(path, shape):
    with pytest.raises(InputError, match=r"add_tensor_stream: tensor 'a'"):
        GGUFWriter(path).add_tensor_stream("a", shape, "Q4_0")


def test_an_incomplete_stream_leaves_nothing(path):
    writer = GGUFWriter(path)
    writer.add_tensor_stream("a", (2, 32), "Q4_0")
    writer.write_rows(np.zeros((1, 18), np.uint8))
    with pytest.raises(InputError, match="lacks 18"):
        writer.close()
    assert list(path.parent.iterdir()) == []
    for use in (
        writer.close,
        lambda: writer.add_tensor("b", np.zeros(1, np.float32)),
        lambda: writer.write_rows(np.zeros((1, 18), np.uint8)),
    ):
        with pytest.raises(InputError, match="the file was given up"):
            use()
    writer.discard()
    writer.close()
    with pytest.raises(InputError, match="closed"):
        writer.add_tensor("b", np.zeros(1, np.float32))


def refuse(descriptor: int, data: object) -> int:
    raise OSError(28, "No space left on device")


def test_a_failure_that_is_swallowed_is_told_at_the_end(path, monkeypatch):
    writer = GGUFWriter(path)
    writer.add_tensor_stream("a", (2, 32), "Q4_0")
    with pytest.raises(InputError, match="given up"), writer, monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        with pytest.raises(OSError, match="No space left"):
            writer.write_rows(np.zeros((1, 18), np.uint8))
    assert list(path.parent.iterdir()) == []


def close_after_all(writer: GGUFWriter) -> None:
    try:
        writer.write_rows(np.zeros((1, 18), np.uint8))
    finally:
        writer.close()


def test_an_exception_under_way_is_not_replaced(path, monkeypatch):
    writer = GGUFWriter(path)
    writer.add_tensor_stream("a", (2, 32), "Q4_0")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        with pytest.raises(OSError, match="No space left"):
            close_after_all(writer)


def test_what_was_discarded_on_purpose_is_closed(path):
    with GGUFWriter(path) as w:
        w.add_tensor("a", np.zeros(3, np.float32))
        w.discard()
    w.close()
    assert list(path.parent.iterdir()) == []


def fail_in_block(path: Path) -> None:
    with GGUFWriter(path) as w:
        w.add_tensor_stream("a", (2, 32), "Q4_0")
        w.write_rows(np.zeros((1, 18), np.uint8))
        assert len(list(path.parent.iterdir())) == 1
        raise KeyboardInterrupt


def test_an_exception_in_the_block_leaves_nothing(path):
    with pytest.raises(KeyboardInterrupt):
        fail_in_block(path)
    assert list(path.parent.iterdir()) == []


def test_a_forgotten_writer_leaves_nothing(path):
    writer = GGUFWriter(path)
    writer.add_tensor_stream("a", (2, 32), "Q4_0")
    writer.write_rows(np.zeros((1, 18), np.uint8))
    del writer
    assert list(path.parent.iterdir()) == []


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_full_disk_leaves_nothing(path):
    script = """
        import resource, sys
        import numpy as np
        from phiggml.gguf import GGUFWriter
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            with GGUFWriter(sys.argv[1]) as w:
                w.add_tensor("a", np.zeros(100_000, np.float32))
        except OSError as error:
            print(type(error).__name__)
    """
    finished = run(script, path)
    assert (finished.returncode, finished.stdout) == (0, "OSError\n"), finished.stderr
    assert list(path.parent.iterdir()) == []


def test_a_killed_writer_leaves_nothing_under_the_name(path):
    script = """
        import os, signal, sys
        import numpy as np
        from phiggml.gguf import GGUFWriter
        with GGUFWriter(sys.argv[1]) as w:
            w.add_tensor_stream("a", (2, 32), "Q4_0")
            w.write_rows(np.zeros((1, 18), np.uint8))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(script, path).returncode == -signal.SIGKILL
    assert not path.exists()
    with GGUFWriter(path) as w:
        w.add_tensor("a", np.zeros(4, np.float32))
    assert list(read_with_gguf(path)[1]) == ["a"]
    assert list(path.parent.iterdir()) == [path]


def test_existing_targets(path, tmp_path):
    path.write_text("mine")
    with pytest.raises(FileExistsError) as caught:
        GGUFWriter(path)
    assert caught.value.filename == str(path)
    with GGUFWriter(path, overwrite=True) as w:
        assert path.read_text() == "mine"
    assert path.read_bytes()[:4] == b"GGUF"
    with pytest.raises(IsADirectoryError):
        GGUFWriter(tmp_path, overwrite=True)
    with pytest.raises(FileNotFoundError):
        GGUFWriter(tmp_path / "absent" / "out.gguf")
    assert w.path == str(path)


def test_a_target_that_appears_meanwhile_is_not_replaced(path):
    writer = GGUFWriter(path)
    path.write_text("theirs")
    with pytest.raises(FileExistsError):
        writer.close()
    assert path.read_text() == "theirs"
    assert list(path.parent.iterdir()) == [path]


def test_permissions_are_kept_and_links_are_written_through(tmp_path):
    target, link = tmp_path / "real.gguf", tmp_path / "link.gguf"
    target.write_text("old")
    target.chmod(0o604)
    link.symlink_to(target)
    before = os.umask(0o027)
    try:
        with GGUFWriter(link, overwrite=True) as w:
            w.metadata["k"] = 1
    finally:
        os.umask(before)
    assert link.is_symlink()
    assert target.read_bytes()[:4] == b"GGUF"
    assert target.stat().st_mode & 0o777 == 0o604


def test_tensors_written_from_their_data_are_the_same_file(tmp_path):
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    with GGUFWriter(first) as w:
        w.metadata["general.alignment"] = 64
        for name, array in arrays().items():
            w.add_tensor(name, array)
    with GGUFFile(first) as f, GGUFWriter(second) as w:
        w.metadata["general.alignment"] = f.metadata["general.alignment"]
        for name, tensor in f.tensors.items():
            w.add_tensor(name, tensor.data, type=tensor.type)
    assert first.read_bytes() == second.read_bytes()


def test_the_header_of_a_small_file_byte_by_byte(path):
    with GGUFWriter(path) as w:
        w.metadata["a"] = "b"
        w.add_tensor("t", np.array([[1, 2], [3, 4]], np.float32))
        w.add_tensor("u", np.array([5], np.int8))
    pairs = [gb.pair("a", gb.STRING, gb.string("b"))]
    tensors = [gb.tensor("t", (2, 2), gb.F32), gb.tensor("u", (1,), gb.I8, offset=32)]
    data = struct.pack("<4f", 1, 2, 3, 4) + bytes(16) + b"\5" + bytes(31)
    assert path.read_bytes() == gb.gguf(pairs, tensors, data)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="no regular file"):
        GGUFWriter(pipe, overwrite=True)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
