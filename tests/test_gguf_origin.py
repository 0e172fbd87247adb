"""Where a GGUF file may come from: paths, bytes, file objects, URLs; whole or in parts."""

from __future__ import annotations

import gzip
import io
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

import gguf_bytes as gb
from phiggml import GGUFFile
from phiggml.errors import FormatError, InputError, UnsupportedError
from range_server import serving

VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)
TOKENS = [f"token {i}" for i in range(1000)]


def small(seed: int = 0) -> bytes:
    return gb.gguf(
        [
            gb.number("answer", gb.UINT32, 42),
            gb.strings("tokens", TOKENS),
            gb.array("scores", gb.FLOAT32, 3, struct.pack("<3f", 1, 2, 3)),
            gb.array("flags", gb.BOOL, 2, b"\1\0"),
        ],
        [gb.tensor("t", (6, 4), gb.F32)],
        (VALUES + seed).tobytes(),
    )


def check(file: GGUFFile) -> None:
    assert file.metadata["answer"] == 42
    assert list(file.metadata["tokens"]) == TOKENS
    assert file.metadata["tokens"][-1] == TOKENS[-1]
    assert file.metadata["scores"].tolist() == [1, 2, 3]
    assert file.metadata["flags"].tolist() == [True, False]
    tensor = file.tensors["t"]
    assert tensor.data.shape == (4, 24)
    assert not tensor.data.flags.writeable
    np.testing.assert_array_equal(tensor.dequantize(), VALUES)
    np.testing.assert_array_equal(tensor.read_rows(1, 3).view(np.float32), VALUES[1:3])
    with pytest.raises(InputError, match="rows"):
        tensor.read_rows(3, 5)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_bytes(kind):
    with GGUFFile(kind(small())) as file:
        check(file)
        data = file.tensors["t"].data
    assert data.tobytes() == VALUES.tobytes()


def test_bytes_that_can_change_are_copied():
    buffer = bytearray(small())
    with GGUFFile(buffer) as file:
        buffer[:] = bytes(len(buffer))
        check(file)


def test_immutable_bytes_are_not_copied():
    content = small()
    with GGUFFile(content) as file:
        data = file.tensors["t"].data
    address = np.frombuffer(content, np.uint8).__array_interface__["data"][0]
    assert data.__array_interface__["data"][0] == address + len(content) - VALUES.nbytes


@pytest.mark.parametrize("content", [b"", b"GGUF", small()[:100]])
def test_bytes_that_are_no_file(content):
    for source in (content, io.BytesIO(content)):
        with pytest.raises(FormatError) as caught:
            GGUFFile(source)
        assert caught.value.offset is not None


def test_views_of_all_kinds():
    content = small()
    check(GGUFFile(memoryview(bytes(x for byte in content for x in (byte, 0)))[::2]))
    words = np.frombuffer(content + bytes(-len(content) % 4), np.float32)
    check(GGUFFile(memoryview(words)))
    released = memoryview(content)
    released.release()
    with pytest.raises(InputError, match="released"):
        GGUFFile(released)


def test_views_of_what_can_change_are_copied():
    buffer = bytearray(small())
    with GGUFFile(memoryview(buffer).toreadonly()) as file:
        buffer[:] = bytes(len(buffer))
        check(file)


@pytest.mark.parametrize("path", ["\ud800", Path("\ud800x")])
def test_paths_that_cannot_be(path):
    with pytest.raises(InputError, match="cannot hold"):
        GGUFFile(path)


def test_file_objects(tmp_path):
    path = tmp_path / "small.gguf"
    path.write_bytes(small())
    with path.open("rb") as stream, GGUFFile(stream) as file:
        stream.read(5)
        check(file)
        assert file.path == str(path)
        assert stream.tell() == 5
    with path.open("rb", buffering=0) as stream:
        file = GGUFFile(stream)
    check(file)  # it holds the file open itself
    with tempfile.NamedTemporaryFile() as stream:
        stream.write(small())  # which stands in its buffer
        check(GGUFFile(stream))


def test_file_objects_whose_descriptor_leads_elsewhere(tmp_path):
    packed = tmp_path / "small.gguf.gz"
    packed.write_bytes(gzip.compress(small()))
    with gzip.open(packed) as stream, GGUFFile(stream) as file:
        check(file)
    archive = tmp_path / "small.zip"
    with zipfile.ZipFile(archive, "w") as pack:
        pack.writestr("small.gguf", small())
    with zipfile.ZipFile(archive) as pack, pack.open("small.gguf") as stream:
        with GGUFFile(stream) as file:
            check(file)
        assert not stream.closed


def test_a_file_object_that_was_closed():
    with zipfile.ZipFile(io.BytesIO(), "w") as pack:
        pack.writestr("small.gguf", small())
        stream = pack.open("small.gguf")
        file = GGUFFile(stream)
        stream.close()
        with pytest.raises(InputError, match="closed"):
            file.tensors["t"].read_rows()


class Shrinking(io.RawIOBase):
    """A file object whose end comes sooner than it said."""

    def __init__(self, content: bytes, end: int) -> None:
        self._content, self._end, self._position = content, end, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset if whence == 0 else len(self._content) + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        stop = min(self._position + max(size, 0), self._end)
        piece = self._content[self._position : stop]
        self._position += len(piece)
        return piece


def test_a_file_object_that_ends_too_soon():
    content = small()
    with pytest.raises(FormatError, match="promised"):
        GGUFFile(Shrinking(content, 50))


class Lying(io.BytesIO):
    """A file object that gives something else once its header is read."""

    answer: object = b""
    end: object = None

    def seek(self, offset: int, whence: int = 0) -> object:
        place = super().seek(offset, whence)
        return self.end if whence == 2 and self.end is not None else place

    def read(self, size: int | None = -1) -> object:
        given = super().read(size)
        return given if self.tell() <= len(given) or not size else self.answer


@pytest.mark.parametrize("answer", ["text", 7, None, bytes(97), np.zeros(96, np.uint8), [b"x"]])
def test_file_objects_that_give_what_was_not_asked_for(answer):
    stream = Lying(small())
    stream.answer = answer
    with GGUFFile(stream) as file, pytest.raises(FormatError, match=r"gives|ends before"):
        file.tensors["t"].read_rows()


@pytest.mark.parametrize("end", [-1, float("inf"), 1 << 63, "many", None])
def test_file_objects_of_no_size(end):
    stream = Lying(small())
    stream.end = end
    if end is None:
        check(GGUFFile(io.BytesIO(small())))
        return
    with pytest.raises(InputError, match="bytes"):
        GGUFFile(stream)


def test_failures_behind_a_file_object_stay_os_errors():
    class Failing(io.BytesIO):
        def seek(self, offset: int, whence: int = 0) -> int:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        GGUFFile(Failing(small()))


def test_sources_that_are_none():
    for source in (None, 7, 3.5, ["a"]):
        with pytest.raises(InputError, match="no path"):
            GGUFFile(source)
    with pytest.raises(InputError, match="text"):
        GGUFFile(io.StringIO("GGUF"))


def test_a_url_is_read_by_ranges():
    data = np.zeros(40 << 20, np.uint8)
    data[-6:] = 7
    content = gb.gguf(
        [gb.number("answer", gb.UINT32, 42), gb.strings("tokens", ["x" * 100] * 30000)],
        [gb.tensor("t", (data.size,), gb.I8)],
        data.tobytes(),
    )
    with serving({"big.gguf": content}) as server:
        with GGUFFile(f"{server.url}/big.gguf") as file:
            assert file.metadata["answer"] == 42
            assert len(file.metadata["tokens"]) == 30000
            assert file.tensors["t"].shape == (data.size,)
            assert file.nbytes == len(content)
            # The header has 3.24 MB, and pieces of it double.
            assert server.bytes_given <= 8 << 20
            assert file.tensors["t"].data[-6:].tolist() == [7] * 6
        with pytest.raises(FileNotFoundError):
            GGUFFile(f"{server.url}/absent.gguf")


def test_urls_that_cannot_be_read():
    large = gb.gguf([], [gb.tensor("t", (1 << 23,), gb.I8)], bytes(1 << 23))
    with serving({"large.gguf": large}, with_ranges=False) as server:
        file = GGUFFile(f"{server.url}/large.gguf")
        with file, pytest.raises(UnsupportedError, match="ranges"):
            file.tensors["t"].read_rows()
    for url in ("nonsense://small.gguf", "zip://a::http://127.0.0.1:1/b.zip", "github://x"):
        with pytest.raises((UnsupportedError, OSError)) as caught:
            GGUFFile(url)
        assert url in str(caught.value)


def test_chained_urls(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as pack:
        pack.writestr("small.gguf", small())
    with GGUFFile(f"zip://small.gguf::file://{tmp_path}/a.zip") as file:
        check(file)
    with pytest.raises(InputError, match="closed"):
        file.tensors["t"].read_rows()
    (tmp_path / "b.zip").write_bytes(b"PK")
    with pytest.raises(UnsupportedError, match="BadZipFile"):
        GGUFFile(f"zip://small.gguf::file://{tmp_path}/b.zip")


def test_a_server_that_goes_away():
    content = gb.gguf([], [gb.tensor("t", (1 << 22,), gb.I8)], bytes(1 << 22))
    with serving({"large.gguf": content}) as server:
        file = GGUFFile(f"{server.url}/large.gguf")
    with file, pytest.raises(OSError):
        file.tensors["t"].dequantize()


def test_hostile_headers_behind_a_url():
    files = {
        "claims.gguf": gb.header(0, 1) + gb.pair("k", gb.STRING, gb.size(1 << 40) + b"abc"),
        "cut.gguf": small()[:200],
        "magic.gguf": b"\x89PNG" + bytes(100),
    }
    with serving(files) as server:
        for name in files:
            with pytest.raises(FormatError) as caught:
                GGUFFile(f"{server.url}/{name}")
            assert caught.value.path == f"{server.url}/{name}"


def part(number: int, count: int, names: list[str], total: int | bytes, *extra: bytes) -> bytes:
    pairs = [
        *extra,
        gb.number("split.no", gb.UINT16, number),
        gb.number("split.count", gb.UINT16, count),
        gb.number("split.tensors.count", gb.INT32, total) if isinstance(total, int) else total,
    ]
    tensors = [gb.tensor(name, (8,), gb.F32, offset=32 * i) for i, name in enumerate(names)]
    data = b"".join(np.full(8, ord(name), np.float32).tobytes() for name in names)
    return gb.gguf(pairs, tensors, data)


def parts() -> dict[str, bytes]:
    first = gb.number("answer", gb.UINT32, 42)
    return {
        "m-00001-of-00003.gguf": part(0, 3, ["a", "b"], 4, first),
        "m-00002-of-00003.gguf": part(1, 3, ["c"], 4),
        "m-00003-of-00003.gguf": part(2, 3, ["d"], 4),
    }


def write_parts(folder: Path, files: dict[str, bytes]) -> list[Path]:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def check_whole(file: GGUFFile, paths: list[str]) -> None:
    assert file.metadata["answer"] == 42
    assert list(file.tensors) == ["a", "b", "c", "d"]
    assert list(file.paths) == paths
    for name, tensor in file.tensors.items():
        assert tensor.dequantize().tolist() == [ord(name)] * 8
    assert [tensor.path for tensor in file.tensors.values()] == [paths[i] for i in (0, 0, 1, 2)]


def test_any_part_opens_the_whole(tmp_path):
    paths = write_parts(tmp_path, parts())
    for path in paths:
        with GGUFFile(path) as file:
            check_whole(file, [str(path) for path in paths])
            assert file.nbytes == sum(path.stat().st_size for path in paths)
            data = file.tensors["d"].data
        assert data.tobytes() == np.full(8, ord("d"), np.float32).tobytes()
        with pytest.raises(InputError, match="closed"):
            file.tensors["d"].read_rows()


def test_any_part_behind_a_url():
    with serving(parts()) as server:
        names = [f"{server.url}/{name}?download=true" for name in parts()]
        for name in names:
            with GGUFFile(name) as file:
                check_whole(file, names)


def test_one_part_alone(tmp_path):
    paths = write_parts(tmp_path, parts())
    with GGUFFile(paths[1], follow_split=False) as file:
        assert list(file.tensors) == ["c"]
        assert file.paths == (str(paths[1]),)
    content = paths[1].read_bytes()
    with GGUFFile(content, follow_split=False) as file:
        assert list(file.tensors) == ["c"]
    with pytest.raises(InputError, match="part 2 of 3"):
        GGUFFile(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"m-00002-of-00003.gguf": part(2, 3, ["c"], 4)}, "part 2 of 3"),
        ({"m-00002-of-00003.gguf": part(1, 2, ["c"], 4)}, "part 2 of 3"),
        ({"m-00002-of-00003.gguf": part(1, 3, ["a"], 4)}, "another part"),
        ({"m-00003-of-00003.gguf": part(2, 3, ["d", "e"], 4)}, "hold 5 tensors, and"),
        ({"m-00003-of-00003.gguf": b"GGUF"}, "ends at byte 4"),
        ({"m-00003-of-00003.gguf": small()}, "part 3 of 3"),
    ],
)
def test_parts_that_do_not_belong_together(tmp_path, changes, message):
    paths = write_parts(tmp_path, {**parts(), **changes})
    with pytest.raises(FormatError, match=message):
        GGUFFile(paths[0])


@pytest.mark.parametrize(
    "count",
    [
        gb.number("split.tensors.count", gb.FLOAT32, 4.0),
        gb.array("split.tensors.count", gb.INT32, 1, struct.pack("<i", 4)),
        gb.strings("split.tensors.count", ["4"]),
    ],
    ids=["float", "array", "strings"],
)
def test_a_count_of_tensors_that_is_no_integer(tmp_path, count):
    files = {**parts(), "m-00001-of-00003.gguf": part(0, 3, ["a", "b"], count)}
    with pytest.raises(FormatError, match="hold 4 tensors, and"):
        GGUFFile(write_parts(tmp_path, files)[0])


def test_parts_of_several_byte_orders(tmp_path):
    files = parts()
    name = "m-00003-of-00003.gguf"
    big = gb.Layout(order=">")
    keys = {"split.no": 2, "split.count": 3}
    pairs = [big.number(key, gb.UINT16, value) for key, value in keys.items()]
    files[name] = big.gguf(pairs, [big.tensor("d", (8,), gb.F32)], bytes(32))
    with pytest.raises(FormatError, match="byte order"):
        GGUFFile(write_parts(tmp_path, files)[0])


def test_parts_that_are_missing_or_renamed(tmp_path):
    paths = write_parts(tmp_path, parts())
    renamed = paths[0].rename(tmp_path / "model.gguf")
    with pytest.raises(FormatError, match="00001-of-00003"):
        GGUFFile(renamed)
    with pytest.raises(FileNotFoundError):
        GGUFFile(paths[1])


@pytest.mark.parametrize(
    "pairs",
    [
        [gb.number("split.count", gb.FLOAT32, 3.0)],
        [gb.pair("split.count", gb.STRING, gb.string("3"))],
        [gb.array("split.count", gb.UINT16, 2, struct.pack("<2H", 3, 3))],
        [gb.number("split.count", gb.UINT32, 1 << 31)],
        [gb.number("split.count", gb.UINT16, 3), gb.number("split.no", gb.UINT16, 3)],
        [gb.number("split.count", gb.UINT16, 3), gb.number("split.no", gb.INT16, -1)],
        [gb.number("split.count", gb.UINT16, 3), gb.number("split.no", gb.BOOL, 1)],
        [gb.number("split.count", gb.BOOL, 1)],
    ],
)
def test_split_keys_that_make_no_sense(tmp_path, pairs):
    path = tmp_path / "m-00001-of-00003.gguf"
    path.write_bytes(gb.gguf(pairs))
    with pytest.raises(FormatError, match="split"):
        GGUFFile(path)


def test_a_count_of_one_is_a_whole_file(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(part(0, 1, ["a"], 1))
    with GGUFFile(path) as file:
        assert list(file.tensors) == ["a"]
