"""verify_gguf of split models: every part, and whether they belong together."""

from __future__ import annotations

from pathlib import Path

import pytest

import gguf_bytes as gb
import phiggml as pg
from phiggml.gguf_verify import verify_gguf

THREE = gb.number("split.tensors.count", gb.INT32, 3)


def part(number: int, count: int, names: str, **other: bytes) -> bytes:
    """A part of a split model; `other` replaces pairs, or leaves them out."""
    pairs = {
        "no": gb.number("split.no", gb.UINT16, number),
        "count": gb.number("split.count", gb.UINT16, count),
        "total": THREE,
        **other,
    }
    tensors = [gb.tensor(name, (8,), gb.F32, offset=32 * i) for i, name in enumerate(names)]
    return gb.gguf([p for p in pairs.values() if p], tensors, bytes(32 * len(names)))


def split_model(folder: Path, *parts: bytes | None) -> list[Path]:
    paths = [folder / f"m-{i + 1:05}-of-{len(parts):05}.gguf" for i in range(len(parts))]
    for path, content in zip(paths, parts, strict=True):
        if content is not None:
            path.write_bytes(content)
    return paths


def test_a_split_model_is_verified_as_one(tmp_path: Path) -> None:
    # Parts of llama-gguf-split have the total in each; one that leaves it out but in the first
    # is loaded, too.
    parts = part(0, 3, "a"), part(1, 3, ""), part(2, 3, "bc", total=b"")
    paths = split_model(tmp_path, *parts)
    for path in paths:
        found = verify_gguf(path)
        assert found.ok, str(found)
        assert found.paths == tuple(map(str, paths))
        assert (found.n_tensors, found.nbytes) == (3, sum(map(len, parts)))
    nan = bytearray(part(2, 3, "bc"))
    nan[-32:-28] = b"\xff" * 4
    paths[2].write_bytes(nan)
    (fault,) = verify_gguf(paths[0]).faults
    assert (fault.tensor, fault.path) == ("c", str(paths[2]))
    assert str(verify_gguf(paths[0])).startswith(f"{paths[2]}: byte {len(nan) - 32}: tensor 'c'")


UINT32_NO = gb.number("split.no", gb.UINT32, 1)
INT64_TOTAL = gb.number("split.tensors.count", gb.INT64, 3)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([part(0, 2, "ab"), None], ["1 of its 2 parts are missing: m-00002-of-00002.gguf."]),
        ([part(0, 2, "ab"), part(0, 2, "c")], ["split.no is 0, and must be 1"]),
        ([part(0, 2, "ab"), part(1, 2, "c", no=b"")], ["split.no is missing"]),
        ([part(0, 2, "ab"), part(1, 2, "c", no=UINT32_NO)], ["split.no is of type UINT32"]),
        ([part(0, 2, "ab"), part(1, 3, "c")], ["split.count is 3, and must be 2"]),
        ([part(0, 2, "ab"), part(1, 2, "")], ["3, and the 2 parts hold 2"] * 2),
        ([part(0, 2, "ab", total=b""), part(1, 2, "c")], ["split.tensors.count is missing"]),
        ([part(0, 2, "ab", total=INT64_TOTAL), part(1, 2, "c")], ["is of type INT64"]),
        ([part(0, 2, "ab"), part(1, 2, "b")], ["tensor 'b': it is in m-00001-of-00002.gguf"]),
        ([part(0, 2, "ab"), b"GGUF"], ["version"]),
        ([b"GGUF", part(1, 2, "c")], ["version"]),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_parts_that_do_not_belong_together(
    parts: list[bytes | None], says: list[str], tmp_path: Path
) -> None:
    paths = split_model(tmp_path, *parts)
    for path in paths:
        if path.exists():
            found = verify_gguf(path)
            assert len(found.faults) == len(says), str(found)
            assert all(
                text in fault.message for text, fault in zip(says, found.faults, strict=True)
            )


def test_all_faults_of_all_parts_together(tmp_path: Path) -> None:
    gap = gb.gguf(
        [gb.number("split.no", gb.UINT16, 5), gb.number("split.count", gb.UINT16, 4)],
        [gb.tensor("a", (8,), gb.F32, offset=32)],
        bytes(32) + b"\xff" * 32,
    )
    paths = split_model(tmp_path, part(0, 4, "a"), gap, None, part(3, 4, "")[:40])
    found = verify_gguf(paths[1])
    by_part = [(Path(fault.path).name[4:7], fault.tensor) for fault in found.faults]
    assert sorted(by_part, key=str) == sorted(
        [
            ("004", None),  # cut off
            ("002", None),  # one is missing; told of the one that was asked about
            ("002", None),  # split.no
            ("002", "a"),  # in the first part, too
            ("002", "a"),  # a gap before it
            ("002", "a"),  # NaN
        ],
        key=str,
    )
    assert not found.data


@pytest.mark.parametrize("name", ["m.gguf", "m-00003-of-00002.gguf", "m-00000-of-00002.gguf"])
def test_parts_by_other_names(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(part(0, 2, "abc"))
    (fault,) = verify_gguf(path).faults
    assert "Rename it." in fault.message


def test_a_whole_model_may_have_a_name_like_a_part(tmp_path: Path) -> None:
    content = gb.gguf([gb.number("n", gb.UINT8, 1)], [gb.tensor("t", (8,), gb.F32)], bytes(32))
    path = tmp_path / "m-00001-of-00002.gguf"
    path.write_bytes(content)
    assert verify_gguf(path).ok


COUNTS = [
    *(gb.number("split.count", gb.BOOL, value) for value in (0, 1)),
    gb.number("split.count", gb.FLOAT32, 2),
    gb.number("split.count", gb.UINT64, 1 << 63),
    gb.number("split.count", gb.INT32, -1),
    gb.pair("split.count", gb.STRING, gb.string("2")),
    gb.Layout().numbers("split.count", gb.UINT16, [2]),
    gb.Layout().numbers("split.count", gb.UINT16, []),
    gb.strings("split.count", ["2"]),
]


@pytest.mark.parametrize("name", ["m.gguf", "m-00001-of-00001.gguf", "m-00001-of-00002.gguf"])
@pytest.mark.parametrize("count", COUNTS, ids=range(len(COUNTS)))
def test_counts_of_other_types(count: bytes, name: str, tmp_path: Path) -> None:
    """What GGUFFile refuses is never sound."""
    path = tmp_path / name
    tensors = [gb.tensor("t", (8,), gb.F32)]
    path.write_bytes(gb.gguf([gb.number("split.no", gb.UINT16, 0), count], tensors, bytes(32)))
    try:
        pg.GGUFFile(path).close()
    except (pg.FormatError, FileNotFoundError):
        faults = verify_gguf(path).faults
        assert faults
        assert not any(str(tmp_path) in fault.message for fault in faults)
    else:
        assert verify_gguf(path).ok


def test_parts_of_both_byte_orders(tmp_path: Path) -> None:
    g = gb.Layout(3, ">")
    pairs = [g.number("split.no", gb.UINT16, 1), g.number("split.count", gb.UINT16, 2)]
    big = g.gguf(pairs, [g.tensor("c", (8,), gb.F32)], bytes(32))
    paths = split_model(tmp_path, part(0, 2, "ab"), big)
    for path in paths:
        (fault,) = verify_gguf(path).faults
        assert "big-endian" in fault.message


def test_names_of_parts_make_no_lines(tmp_path: Path) -> None:
    paths = split_model(tmp_path, part(0, 2, "ab"), part(1, 2, "c", no=b""))
    evil = [path.rename(path.with_name(f"x\n{path.name}: sound")) for path in paths]
    evil = [path.rename(str(path).removesuffix(": sound")) for path in evil]
    found = verify_gguf(evil[0])
    assert not found.ok
    assert len(str(found).splitlines()) == len(found.faults) + 1
