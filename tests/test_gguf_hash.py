"""hash_gguf against hashlib over what the gguf package reads; manifests."""

from __future__ import annotations

import concurrent.futures
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import gguf_bytes as gb
import phiggml as pg
from phiggml.gguf_hash import HASH_ALGORITHMS
from phiggml.gguf_manifest import check_manifest, manifest_algorithm, read_manifest
from phiggml.progress import Progress

LAYOUTS = [gb.Layout(version, order) for version in (1, 2, 3) for order in "<>"]


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("algorithm", HASH_ALGORITHMS)
@pytest.mark.parametrize("threads", [1, 2])
def test_against_hashlib(algorithm: str, threads: int, nano_q4: Path) -> None:
    found = pg.hash_gguf(nano_q4, algorithm=algorithm, threads=threads)
    whole = hashlib.new(algorithm)
    expected = {}
    for tensor in gguf.GGUFReader(nano_q4).tensors:
        data = tensor.data.tobytes()
        expected[tensor.name] = hashlib.new(algorithm, data).hexdigest()
        whole.update(data)
    assert list(found.tensors.items()) == list(expected.items())
    assert found.data == whole.hexdigest()
    assert (found.path, found.algorithm) == (str(nano_q4), algorithm)


@pytest.mark.parametrize("threads", [1, 2])
def test_tensors_of_many_pieces(threads: int, tmp_path: Path) -> None:
    """Rows in pieces, a row that is longer than a piece, and many small tensors between them."""
    rng = np.random.default_rng(3)
    arrays = {
        "rows": rng.standard_normal((1500, 1024)).astype(np.float32),
        **{f"small {i}": rng.standard_normal(5).astype(np.float32) for i in range(40)},
        "long": rng.integers(-99, 99, (1 << 21) + 3).astype(np.int8),
    }
    path = tmp_path / "x.gguf"
    with pg.GGUFWriter(path) as writer:
        for name, array in arrays.items():
            writer.add_tensor(name, array)
    found = pg.hash_gguf(path, threads=threads)
    assert found.tensors == {
        name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()
    }
    together = b"".join(array.tobytes() for array in arrays.values())
    assert found.data == hashlib.sha256(together).hexdigest()


PAIRS = ["b", "a", "ä", "general.alignment", "phiggml.padding", "split.no", "split.count"]


def small(g: gb.Layout, alignment: int, order: list[str]) -> bytes:
    pairs = {
        "b": g.strings("b", ["one", "", "two"]),
        "a": g.numbers("a", gb.FLOAT32, [1.5, -2.5]),
        "ä": g.number("ä", gb.INT64, -7),
        "general.alignment": g.number("general.alignment", gb.UINT32, alignment),
        "phiggml.padding": g.numbers("phiggml.padding", gb.UINT8, [0] * 9),
        "split.no": g.number("split.no", gb.UINT16, 0),
        "split.count": g.number("split.count", gb.UINT16, 1),
    }
    data = g.pack("3f", 1, 2, 3), b"\1\2"
    offset = -(-12 // alignment) * alignment
    tensors = [g.tensor("t", (3,), gb.F32), g.tensor("u", (2,), gb.I8, offset=offset)]
    body = data[0] + bytes(offset - 12) + data[1] + bytes(-2 % alignment)
    return g.gguf([pairs[key] for key in order], tensors, body, alignment=alignment)


def test_the_layout_does_not_matter(tmp_path: Path) -> None:
    """Version, byte order, alignment, padding, the order of keys, and being split or not."""
    # What the docstring promises: sorted keys, each with its length, then type and value.
    packed = (
        struct.pack("<Q1sIIQff", 1, b"a", 9, 6, 2, 1.5, -2.5)
        + struct.pack("<Q1sIIQ", 1, b"b", 9, 8, 3)
        + struct.pack("<Q3sQQ3s", 3, b"one", 0, 3, b"two")
        + struct.pack("<Q2sIq", 2, "ä".encode(), 11, -7)
    )
    path = tmp_path / "x.gguf"
    for g in LAYOUTS:
        for alignment, order in ((32, PAIRS[:3]), (256, PAIRS[::-1]), (8, PAIRS)):
            found = pg.hash_gguf(written(path, small(g, alignment, order)))
            assert found.metadata == hashlib.sha256(packed).hexdigest()
            data = struct.pack("<3f", 1, 2, 3), b"\1\2"
            assert list(found.tensors.values()) == [hashlib.sha256(d).hexdigest() for d in data]
            assert found.data == hashlib.sha256(b"".join(data)).hexdigest()


def test_split_models_hash_like_whole_ones(nano_q4: Path, tmp_path: Path) -> None:
    parts = pg.split_gguf(nano_q4, tmp_path / "part", max_tensors=5)
    assert len(parts) == 6
    whole, split = pg.hash_gguf(nano_q4), pg.hash_gguf(parts[2])
    assert (whole.tensors, whole.data) == (split.tensors, split.data)
    assert whole.metadata == split.metadata


def test_metadata_matter(tmp_path: Path) -> None:
    def of(*pairs: bytes) -> str:
        return pg.hash_gguf(written(tmp_path / "x.gguf", gb.gguf(list(pairs)))).metadata

    hashes = {
        of(),
        of(gb.number("k", gb.UINT32, 1)),
        of(gb.number("k", gb.UINT32, 2)),
        of(gb.number("k", gb.INT32, 1)),
        of(gb.number("l", gb.UINT32, 1)),
        of(gb.array("k", gb.UINT32, 1, b"\1\0\0\0")),
        of(gb.number("k", gb.UINT32, 1), gb.number("l", gb.UINT32, 1)),
    }
    assert len(hashes) == 7


def test_what_is_refused(nano_q4: Path, tmp_path: Path) -> None:
    with pytest.raises(pg.InputError, match="md5"):
        pg.hash_gguf(nano_q4, algorithm="md5")
    with pytest.raises(pg.InputError, match="threads"):
        pg.hash_gguf(nano_q4, threads=0)
    with pytest.raises(pg.FormatError):
        pg.hash_gguf(written(tmp_path / "x.gguf", b"GGUF"))


def test_progress_and_interruption(nano_q4: Path) -> None:
    seen: list[Progress] = []
    pg.hash_gguf(nano_q4, progress=seen.append)
    assert (seen[-1].stage, seen[-1].done) == ("hash", seen[-1].total)
    assert [event.done for event in seen] == sorted(event.done for event in seen)

    def interrupt(_event: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pg.hash_gguf(nano_q4, threads=2, progress=interrupt)


# manifests ---------------------------------------------------------------------------------------


def test_the_format_is_that_of_llama_gguf_hash(nano_q4: Path) -> None:
    found = pg.hash_gguf(nano_q4, algorithm="sha1")
    *tensors, whole, metadata = str(found).splitlines()
    first = next(iter(found.tensors))
    assert tensors[0] == f"sha1      {found.tensors[first]}  {nano_q4}:{first}"
    assert whole == f"sha1      {found.data}  {nano_q4}"
    assert metadata == f"sha1      {found.metadata}  {nano_q4}#metadata"


def test_a_manifest_of_ones_own_agrees(nano_q4: Path, tmp_path: Path) -> None:
    for algorithm in HASH_ALGORITHMS:
        found = pg.hash_gguf(nano_q4, algorithm=algorithm)
        entries = read_manifest(written(tmp_path / "m", str(found)), f"else/{nano_q4.name}")
        assert manifest_algorithm(entries, "m", "x") == algorithm
        findings = check_manifest(found, entries)
        assert {finding.verdict for finding in findings} == {"Ok"}
        assert len(findings) == 29


def test_what_a_manifest_tells(tmp_path: Path) -> None:
    tensors = [gb.tensor(name, (8,), gb.F32, offset=32 * i) for i, name in enumerate("abc")]
    path = written(tmp_path / "x.gguf", gb.gguf([], tensors, bytes(96)))
    found = pg.hash_gguf(path)
    same = found.tensors["a"]
    lines = [
        "xxh64     0123456789abcdef  /some/where/x.gguf",
        f"sha256    {'0' * 64}  other.gguf:a",
        f"sha256    {'0' * 64}  not-{path.name}",
        f"sha256    {same.upper()}  /some/where/x.gguf:a",
        f"sha256    {same[:-1]}f0  /some/where/x.gguf:b",
        f"sha256    {same}  /some/where/x.gguf:gone",
        "",
        f"sha256  {found.data}  /some/where/x.gguf\r",
    ]
    entries = read_manifest(written(tmp_path / "m", "\n".join(lines)), str(path))
    assert manifest_algorithm(entries, "m", "x") == "sha256"
    findings = {finding.what: finding.verdict for finding in check_manifest(found, entries)}
    assert findings == {
        f"{path}:a": "Ok",
        f"{path}:b": "Mismatch",
        f"{path}:c": "Not Found",
        str(path): "Ok",
        f"{path}:gone": "Missing",
    }
    # One that says nothing about tensors, as llama-gguf-hash --no-layer makes it.
    entries = read_manifest(written(tmp_path / "m", lines[-1]), str(path))
    assert [finding.verdict for finding in check_manifest(found, entries)] == ["Ok"]


def test_manifests_that_are_none(nano_q4: Path, tmp_path: Path) -> None:
    good = f"sha256    {'0' * 64}  x.gguf\n"
    with pytest.raises(pg.FormatError, match="line 2"):
        read_manifest(written(tmp_path / "m", good + "Lorem ipsum\n"), "x.gguf")
    only = read_manifest(written(tmp_path / "m", "xxh64  01ab  x.gguf\n"), "x.gguf")
    with pytest.raises(pg.InputError, match="xxh64"):
        manifest_algorithm(only, "m", "x.gguf")
    with pytest.raises(pg.InputError, match="xxh64"):
        check_manifest(pg.hash_gguf(nano_q4), only)
    assert read_manifest(written(tmp_path / "m", good), "y.gguf") == {}


def test_hostile_names_stay_on_their_line(tmp_path: Path) -> None:
    """Names that would write lines of their own, or that look alike when escaped."""
    names = [
        "a\nsha256    00  x.gguf:b",
        "a\\nb",
        "a\nb",
        "\x1b[2J",
        "\u2028",
        "a b",
        "b:c#metadata",
    ]
    tensors = [gb.tensor(name, (8,), gb.F32, offset=32 * i) for i, name in enumerate(names)]
    data = b"".join(bytes([i]) * 32 for i in range(len(names)))
    path = written(tmp_path / "x.gguf", gb.gguf([], tensors, data))
    found = pg.hash_gguf(path)
    assert len(str(found).splitlines()) == len(names) + 2
    assert str(found).replace("\n", "").isprintable()
    entries = read_manifest(written(tmp_path / "m", str(found)), str(path))
    assert [finding.verdict for finding in check_manifest(found, entries)] == ["Ok"] * 9


@pytest.mark.parametrize(
    "name",
    [" lead.gguf", "a:b.gguf", "trail.gguf ", "x#y.gguf", "a\nb.gguf", "-d.gguf", "é.gguf", "a+b"],
)
def test_files_of_odd_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["tail ", " lead", "\r", "a/b:c", "  ", "x  -  Ok"]
    tensors = [gb.tensor(t, (8,), gb.F32, offset=32 * i) for i, t in enumerate(names)]
    path = written(Path(name), gb.gguf([], tensors, bytes(192)))
    found = pg.hash_gguf(path)
    for ends in ("\n", "\r\n"):
        manifest = written(tmp_path / "m", str(found).replace("\n", ends))
        for asked in (str(path), f"else/{name}"):
            findings = check_manifest(found, read_manifest(manifest, asked))
            assert [finding.verdict for finding in findings] == ["Ok"] * 8


def test_folders_of_odd_names(tmp_path: Path) -> None:
    """A folder with a colon is taken as it was given; elsewhere it may be a tensor's name."""
    line = f"sha256    {'0' * 64}  a:b/x.gguf"
    manifest = written(tmp_path / "m", f"{line}:t\n{line}\n{line}#metadata\n")
    zeros = dict.fromkeys((":t", "", "#metadata"), "0" * 64)
    assert read_manifest(manifest, "a:b/x.gguf") == {"sha256": zeros}
    assert read_manifest(manifest, "x.gguf") == {}


def test_names_are_no_patterns(tmp_path: Path) -> None:
    manifest = written(tmp_path / "m", f"sha256    {'0' * 64}  xAgguf\n")
    assert read_manifest(manifest, "x.gguf") == {}
    manifest = written(tmp_path / "m", f"sha256    {'0' * 64}  x.gguf#other\n")
    assert read_manifest(manifest, "x.gguf") == {}


def test_a_tensor_cannot_speak_for_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its line in the manifest of several files looks as if the other lay in a folder."""
    monkeypatch.chdir(tmp_path)
    good = written(Path("good.gguf"), gb.gguf([], [gb.tensor("w", (8,), gb.F32)], bytes(32)))
    tensors = [
        gb.tensor(name, (8,), gb.F32, offset=32 * i)
        for i, name in enumerate(("x/good.gguf", "x/good.gguf:w", "good.gguf", "/good.gguf:w"))
    ]
    evil = written(Path("evil.gguf"), gb.gguf([], tensors, b"\1" * 128))
    both = written(tmp_path / "m", f"{pg.hash_gguf(evil)}\n{pg.hash_gguf(good)}\n")
    for asked in ("good.gguf", "./good.gguf", "x/good.gguf"):
        found = pg.hash_gguf(good)
        findings = check_manifest(found, read_manifest(both, asked))
        assert [finding.verdict for finding in findings] == ["Ok"] * 3, asked
    findings = check_manifest(pg.hash_gguf(evil), read_manifest(both, str(evil)))
    assert [finding.verdict for finding in findings] == ["Ok"] * 6


def test_files_of_one_name_in_several_folders(tmp_path: Path) -> None:
    lines = [f"sha256    {'0' * 64}  a/x.gguf", f"sha256    {'1' * 64}  b/x.gguf"]
    manifest = written(tmp_path / "m", "\n".join(lines))
    assert read_manifest(manifest, "b/x.gguf") == {"sha256": {"": "1" * 64}}
    with pytest.raises(pg.InputError, match=r"'a/x\.gguf', 'b/x\.gguf'"):
        read_manifest(manifest, "c/x.gguf")
    manifest = written(tmp_path / "m", "\n".join([*lines, f"sha256    {'2' * 64}  b/x.gguf"]))
    with pytest.raises(pg.FormatError, match="line 3"):
        read_manifest(manifest, "b/x.gguf")


class _LazyExecutor:
    """Does its work when somebody asks for the result; counts what waits."""

    waiting = most = 0

    def __init__(self, _threads: int) -> None:
        pass

    def __enter__(self) -> _LazyExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[[Any], None], data: Any) -> _LazyExecutor._Future:
        _LazyExecutor.waiting += 1
        _LazyExecutor.most = max(_LazyExecutor.most, _LazyExecutor.waiting)
        return _LazyExecutor._Future(work, data)

    class _Future:
        def __init__(self, work: Callable[[Any], None], data: Any) -> None:
            self._work, self._data = work, data

        def result(self) -> None:
            _LazyExecutor.waiting -= 1
            self._work(self._data)


def test_few_pieces_wait_for_the_other_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = [gb.tensor(f"t{i}", (8,), gb.F32, offset=32 * i) for i in range(30)]
    data = bytes(range(240)) * 4
    path = written(tmp_path / "x.gguf", gb.gguf([], tensors, data))
    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", _LazyExecutor)
    assert pg.hash_gguf(path, threads=2).data == hashlib.sha256(data).hexdigest()
    assert 1 < _LazyExecutor.most <= 5
    assert _LazyExecutor.waiting == 0
