"""Splitting and merging: what the gguf package sees in the parts, and bytes that stay."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest

import gguf_bytes as gb
from gguf_seen import seen
from phiggml.errors import FormatError, InputError
from phiggml.gguf import GGUFFile, GGUFWriter
from phiggml.gguf_split import merge_gguf, split_gguf
from phiggml.progress import Progress

BIG = gb.Layout(3, ">")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven tensors of several types, of 96 to 512 bytes, and metadata of every kind."""
    path = tmp_path_factory.mktemp("whole") / "whole.gguf"
    rng = np.random.default_rng(3)
    with GGUFWriter(path) as w:
        w.metadata["general.architecture"] = "phi3"
        w.metadata["tokens"] = ["a", "", "ü" * 99]
        w.metadata["scores"] = rng.normal(size=9).astype(np.float32)
        w.metadata["flag"] = True
        for i, shape in enumerate([(3, 8), (32,), (4, 32), (2, 2, 2, 8), (1, 32), (128,), (5, 32)]):
            w.add_tensor(f"t{i}", rng.normal(size=shape).astype(np.float32))
        w.add_tensor("q", rng.normal(size=(3, 64)).astype(np.float32), "Q4_0")
    return path


def merged(parts: tuple[Path, ...], folder: Path) -> bytes:
    """Merged from each part in turn, which must not matter."""
    out = [merge_gguf(part, folder / f"merged{i}.gguf") for i, part in enumerate(parts)]
    contents = {path.read_bytes() for path in out}
    for path in out:
        path.unlink()
    assert len(contents) == 1
    return contents.pop()


# Padded sizes: 96, 128, 512, 256, 128, 512, 640, 108 -> 128 bytes.
@pytest.mark.parametrize(
    ("limits", "counts"),
    [
        ({"max_tensors": 1}, [1] * 8),
        ({"max_tensors": 3}, [3, 3, 2]),
        ({"max_tensors": 8}, [8]),
        ({"max_tensors": 9}, [8]),
        ({"max_bytes": 1}, [1] * 8),
        ({"max_bytes": 736}, [3, 2, 1, 1, 1]),
        ({"max_bytes": 735}, [2, 1, 2, 1, 1, 1]),
        ({"max_bytes": 768}, [3, 2, 1, 2]),
        ({"max_bytes": 10**9}, [8]),
        ({"max_bytes": 768, "max_tensors": 2}, [2, 2, 2, 2]),
    ],
)
def test_parts_and_back(
    whole: Path, tmp_path: Path, limits: dict[str, int], counts: list[int]
) -> None:
    parts = split_gguf(whole, tmp_path / "m.gguf", **limits)
    n = len(counts)
    assert parts == tuple(tmp_path / f"m-{i + 1:05}-of-{n:05}.gguf" for i in range(n))
    assert sorted(tmp_path.iterdir()) == sorted(parts)
    views, source = [seen(part) for part in parts], seen(whole)
    assert [len(view.tensors) for view in views] == counts
    assert [tensor for view in views for tensor in view.tensors] == source.tensors
    for i, view in enumerate(views):
        own = [field for field in view.fields if field[0].startswith("split.")]
        assert sorted(own) == [
            ("split.count", ["UINT16"], n),
            ("split.no", ["UINT16"], i),
            ("split.tensors.count", ["INT32"], 8),
        ]
        others = [field for field in view.fields if field not in own]
        assert others == (source.fields if i == 0 else [])
    assert merged(parts, tmp_path) == whole.read_bytes()


def test_parts_are_split_anew(whole: Path, tmp_path: Path) -> None:
    parts = split_gguf(whole, tmp_path / "m.gguf", max_tensors=3)
    again = split_gguf(parts[1], tmp_path / "n.gguf", max_tensors=5)
    assert [path.name for path in again] == ["n-00001-of-00002.gguf", "n-00002-of-00002.gguf"]
    assert [len(seen(path).tensors) for path in again] == [5, 3]
    assert merged(again, tmp_path) == whole.read_bytes()


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("order", ["<", ">"])
def test_any_version_and_byte_order(tmp_path: Path, version: int, order: str) -> None:
    layout = gb.Layout(version, order)
    values = struct.pack(order + "16f", *range(16))
    path = tmp_path / "old.gguf"
    pairs = [layout.numbers("k", gb.INT16, (1, 2)), layout.strings("s", ("a", "b"))]
    infos = [layout.tensor("x", (4, 4), gb.F32), layout.tensor("y", (32,), gb.I8, offset=64)]
    path.write_bytes(layout.gguf(pairs, infos, values + bytes(range(32))))
    parts = split_gguf(path, tmp_path / "new.gguf", max_tensors=1)
    new = [gb.Layout().numbers("k", gb.INT16, (1, 2)), gb.strings("s", ("a", "b"))]
    infos = [gb.tensor("x", (4, 4), gb.F32), gb.tensor("y", (32,), gb.I8, offset=64)]
    expected = gb.gguf(new, infos, struct.pack("<16f", *range(16)) + bytes(range(32)))
    assert merged(parts, tmp_path) == expected


def test_other_alignments_hold_in_every_part(tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    with GGUFWriter(path) as w:
        w.metadata["general.alignment"] = 256
        for name in "abc":
            w.add_tensor(name, np.frombuffer(name.encode() * 40, np.int8))
    parts = split_gguf(path, tmp_path / "m.gguf", max_bytes=512)
    assert [len(seen(part).tensors) for part in parts] == [2, 1]
    for part in parts:
        with GGUFFile(part, follow_split=False) as f:
            assert f.alignment == 256
    assert merged(parts, tmp_path) == path.read_bytes()


def test_gaps_and_other_orders_of_the_data_are_tidied(tmp_path: Path) -> None:
    path = tmp_path / "gaps.gguf"
    infos = [gb.tensor("late", (8,), gb.I8, offset=96), gb.tensor("early", (8,), gb.I8)]
    path.write_bytes(gb.gguf([], infos, b"early678" + bytes(88) + b"late5678" + b"behind"))
    parts = split_gguf(path, tmp_path / "m.gguf", max_tensors=1)
    infos = [gb.tensor("late", (8,), gb.I8), gb.tensor("early", (8,), gb.I8, offset=32)]
    data = b"late5678" + bytes(24) + b"early678" + bytes(24)
    assert merged(parts, tmp_path) == gb.gguf([], infos, data)


def test_what_llama_gguf_split_leaves_in_a_merged_file_goes(whole: Path, tmp_path: Path) -> None:
    """It keeps split.* there, with a count of 0: such a file is whole, and is split as one."""
    path = tmp_path / "merged.gguf"
    with GGUFFile(whole) as f, GGUFWriter(path) as w:
        w.copy_metadata(f.metadata)
        w.metadata["split.no"] = np.uint16(0)
        w.metadata["split.count"] = np.uint16(0)
        w.metadata["split.tensors.count"] = 8
        for tensor in f.tensors.values():
            w.add_tensor(tensor.name, tensor.data, tensor.type)
    with pytest.raises(InputError, match="no part of a split model"):
        merge_gguf(path, tmp_path / "again.gguf")
    assert (
        merged(split_gguf(path, tmp_path / "m.gguf", max_tensors=4), tmp_path) == whole.read_bytes()
    )


def test_tensors_of_no_axes_get_one_as_ggml_gives_them(tmp_path: Path) -> None:
    path = tmp_path / "scalar.gguf"
    infos = [gb.tensor("scalar", (), gb.F32), gb.tensor("x", (32,), gb.I8, offset=32)]
    data = struct.pack("<f", 2.5) + bytes(28) + bytes(range(32))
    path.write_bytes(gb.gguf([], infos, data))
    parts = split_gguf(path, tmp_path / "m.gguf", max_tensors=1)
    infos[0] = gb.tensor("scalar", (1,), gb.F32)
    assert merged(parts, tmp_path) == gb.gguf([], infos, data)


def test_only_the_folder_of_the_output_is_resolved(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link of the prefix's name is no part, and one to the folder leads to the same parts."""
    parts = split_gguf(whole, tmp_path / "s.gguf", max_tensors=4)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "z.gguf").write_bytes(whole.read_bytes())
    (tmp_path / "s.gguf").symlink_to("e/z.gguf")
    (tmp_path / "f").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for out in ("s.gguf", "f/s.gguf", "e/../s.gguf"):
        with pytest.raises(InputError, match="could be replaced"):
            split_gguf(parts[0], out, max_tensors=4, overwrite=True)
    (tmp_path / "n.gguf").symlink_to(parts[0].name.replace("-00001-of-00002", ""))
    again = split_gguf(parts[0], "n.gguf", max_tensors=4)
    assert [path.name for path in again] == ["n-00001-of-00002.gguf", "n-00002-of-00002.gguf"]


def test_pieces_progress_and_cancelling(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of at most 300 bytes: two rows of t2; t5 has a row that is longer."""
    monkeypatch.setattr("phiggml.gguf_split._PIECE_BYTES", 300)
    steps: list[Progress] = []
    parts = split_gguf(whole, tmp_path / "m.gguf", max_tensors=3, progress=steps.append)
    total = sum(len(tensor[3]) for tensor in seen(whole).tensors)
    done = [step.done for step in steps]
    assert done == sorted(done)
    assert done[-1] == total
    assert {(step.stage, step.total) for step in steps} == {("split", total)}
    assert {b - a for a, b in itertools.pairwise([0, *done])} >= {96, 128, 256, 512}
    assert max(b - a for a, b in itertools.pairwise([0, *done])) == 512

    def cancel(step: Progress) -> None:
        if step.done > total // 2:
            raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        merge_gguf(parts[0], tmp_path / "out.gguf", progress=cancel)
    with pytest.raises(KeyboardInterrupt):
        split_gguf(whole, tmp_path / "other.gguf", max_tensors=3, progress=cancel)
    assert sorted(tmp_path.iterdir()) == before
    assert merged(parts, tmp_path) == whole.read_bytes()


def test_refusals(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    with pytest.raises(InputError, match="Pass max_bytes or max_tensors"):
        split_gguf(whole, out)
    for limits in ({"max_bytes": 0}, {"max_tensors": -1}, {"max_tensors": 1.5}):
        with pytest.raises(InputError, match="positive integer"):
            split_gguf(whole, out, **limits)
    with pytest.raises(InputError, match="no part of a split model"):
        merge_gguf(whole, out)
    assert list(tmp_path.iterdir()) == []
    parts = split_gguf(whole, out, max_tensors=4)
    contents = [part.read_bytes() for part in parts]
    with pytest.raises(FileExistsError):
        split_gguf(whole, out, max_tensors=4)
    for overwrite in (True, False):
        with pytest.raises(InputError, match="could be replaced"):
            split_gguf(parts[0], out, max_tensors=4, overwrite=overwrite)
        with pytest.raises(InputError, match="one of the parts"):
            merge_gguf(parts[0], parts[1], overwrite=overwrite)
    assert [part.read_bytes() for part in parts] == contents
    for path in (whole, *parts):
        (tmp_path / "junk.gguf").write_bytes(path.read_bytes()[:-200])
        with pytest.raises(FormatError):
            split_gguf(tmp_path / "junk.gguf", tmp_path / "o.gguf", max_tensors=1)
    parts[1].unlink()
    for do in (lambda: merge_gguf(parts[0], out), lambda: split_gguf(parts[0], out, max_bytes=9)):
        with pytest.raises(FileNotFoundError):
            do()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["junk.gguf", "m-00001-of-00002.gguf"]


def test_overwriting(whole: Path, tmp_path: Path) -> None:
    first = split_gguf(whole, tmp_path / "m.gguf", max_tensors=4)
    second = split_gguf(whole, tmp_path / "m.gguf", max_bytes=1280, overwrite=True)
    assert first == second
    assert [len(seen(part).tensors) for part in second] == [5, 3]
    out = tmp_path / "out.gguf"
    out.write_text("old")
    with pytest.raises(FileExistsError):
        merge_gguf(second[0], out)
    assert merge_gguf(second[0], out, overwrite=True) == out
    assert out.read_bytes() == whole.read_bytes()


def test_llama_cpp_loads_the_parts(nano_f16: Path, tmp_path: Path) -> None:
    import phiggml as pg

    parts = split_gguf(nano_f16, tmp_path / "nano.gguf", max_bytes=3_000_000)
    assert len(parts) == 3
    prompt = np.arange(5, 25)
    logits = []
    for path in (nano_f16, parts[0]):
        with pg.Session(path, threads=1) as session:
            logits.append(session.eval(prompt))
    np.testing.assert_array_equal(*logits)
    assert merged(parts, tmp_path) == nano_f16.read_bytes()
