"""phiggml gguf set, unset, rename, split, merge."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import gguf_bytes as gb
from command_line import Out, complaint, phiggml
from edited_files import DATA, edited_pairs, pairs, tensors, text
from gguf_seen import seen


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.gguf"
    wide = gb.number("wide", gb.FLOAT64, 1.5)
    path.write_bytes(gb.gguf([*pairs(), wide], tensors(), DATA))
    return path


VALUES = [
    ("a.count=8", "a.count", ["UINT32"], 8),
    ("a.rate=3", "a.rate", ["FLOAT32"], 3.0),
    ("wide=1e3", "wide", ["FLOAT64"], 1000.0),
    ("flag=false", "flag", ["BOOL"], False),
    ("last=7", "last", ["STRING"], "7"),
    ("last=a=b: [c]", "last", ["STRING"], "a=b: [c]"),
    ("last=", "last", ["STRING"], ""),
    ("last=@@home", "last", ["STRING"], "@home"),
    ("numbers=[3, -4]", "numbers", ["ARRAY", "INT16"], [3, -4]),
    ('tokens=["x", "ü"]', "tokens", ["ARRAY", "STRING"], ["x", "ü"]),
    ("a.count:INT8=-8", "a.count", ["INT8"], -8),
    ("last:float32=0.5", "last", ["FLOAT32"], 0.5),
    ("numbers:UINT8=[1]", "numbers", ["ARRAY", "UINT8"], [1]),
    ("new=7", "new", ["UINT32"], 7),
    ("new=-7", "new", ["INT32"], -7),
    ("new=7.5", "new", ["FLOAT32"], 7.5),
    ("new=1e3", "new", ["FLOAT32"], 1000.0),
    ("new=true", "new", ["BOOL"], True),
    ("new=nan", "new", ["STRING"], "nan"),
    ("new=1.2.3", "new", ["STRING"], "1.2.3"),
    ("new=[1, 2]", "new", ["ARRAY", "INT32"], [1, 2]),
    ("new=[0.5]", "new", ["ARRAY", "FLOAT32"], [0.5]),
    ('new=["a"]', "new", ["ARRAY", "STRING"], ["a"]),
    ("new=[true]", "new", ["ARRAY", "BOOL"], [True]),
    ("new:STRING=[1, 2]", "new", ["STRING"], "[1, 2]"),
    ('new:STRING[]=["a"]', "new", ["ARRAY", "STRING"], ["a"]),
    ("new:UINT32[]=[1,2]", "new", ["ARRAY", "UINT32"], [1, 2]),
    ("tokens:uint64[]=[18446744073709551615]", "tokens", ["ARRAY", "UINT64"], [(1 << 64) - 1]),
    ("new:FLOAT64[]=[Infinity, 1e39, 2]", "new", ["ARRAY", "FLOAT64"], [math.inf, 1e39, 2.0]),
    ("a.rate=-inf", "a.rate", ["FLOAT32"], -math.inf),
    ("a.count=0x10", "a.count", ["UINT32"], 16),
    ("new=0xFF", "new", ["UINT32"], 255),
    ("new=-0x10", "new", ["INT32"], -16),
    ("new:INT8=-0x80", "new", ["INT8"], -128),
    ("new=3000000000", "new", ["UINT32"], 3_000_000_000),
    ("new=18446744073709551615", "new", ["UINT64"], (1 << 64) - 1),
    ("new=-9223372036854775808", "new", ["INT64"], -(1 << 63)),
    ("new=007", "new", ["UINT32"], 7),
    ("new=TRUE", "new", ["BOOL"], True),
    ("new=False", "new", ["BOOL"], False),
    ("new=1_0", "new", ["STRING"], "1_0"),
    ("new= 7", "new", ["STRING"], " 7"),
    ("new=٣", "new", ["STRING"], "٣"),
    ("new=inf", "new", ["STRING"], "inf"),
    ("new:FLOAT64=1e39", "new", ["FLOAT64"], 1e39),
    ("new:uint64=1", "new", ["UINT64"], 1),
    ("new:STRING=true", "new", ["STRING"], "true"),
]


@pytest.mark.parametrize(("assignment", "key", "types", "value"), VALUES)
def test_values_take_the_type_that_is_meant(
    file: Path, assignment: str, key: str, types: list[str], value: object
) -> None:
    before = {name: rest for name, *rest in seen(file).fields}
    assert phiggml("gguf", "set", file, assignment) == 0
    after = {name: rest for name, *rest in seen(file).fields}
    assert after == before | {key: [types, value]}


def test_values_from_files(file: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_bytes(b"{{ 'a' }}\n\xff")
    numbers = tmp_path / "numbers.json"
    numbers.write_text("[9, 8]\n")
    assert phiggml("gguf", "set", file, f"last=@{template}", f"numbers=@{numbers}") == 0
    assert phiggml("gguf", "set", file, f"new=@{numbers}", f"more:STRING=@{template}") == 0
    raw = b"{{ 'a' }}\n\xff"
    new = edited_pairs(
        {4: gb.Layout().numbers("numbers", gb.INT16, (9, 8)), 6: gb.pair("last", 8, gb.string(raw))}
    )
    new += [gb.number("wide", gb.FLOAT64, 1.5)]
    new += [text("new", "[9, 8]\n"), gb.pair("more", 8, gb.string(raw))]
    assert file.read_bytes() == gb.gguf(new, tensors(), DATA)


def test_what_it_says(file: Path, capsys: Out) -> None:
    before = file.read_bytes()
    assert phiggml("gguf", "set", file, "a.count=8", "--dry-run", "-q") == 0
    assert capsys.readouterr().out == (
        f"{file}: a.count would be changed in place, 1 byte to write\n"
    )
    assert file.read_bytes() == before
    assert phiggml("gguf", "set", file, "a.count=8") == 0
    assert capsys.readouterr().out == f"{file}: a.count changed in place, 1 byte written\n"
    assert phiggml("gguf", "set", file, "a.count=8") == 0
    assert capsys.readouterr().out == f"{file}: nothing to change\n"
    assert phiggml("gguf", "unset", file, "tokens") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{file}: tokens changed by writing the file anew, ")
    assert phiggml("gguf", "unset", file, "flag", "-q") == 0
    assert capsys.readouterr() == ("", "")


def test_unset_and_rename(file: Path) -> None:
    assert phiggml("gguf", "unset", file, "wide", "a.rate", "--dry-run") == 0
    assert phiggml("gguf", "unset", file, "wide", "a.rate") == 0
    assert phiggml("gguf", "rename", file, "flag", "mark") == 0
    assert phiggml("gguf", "rename", file, "two", "zwei", "--tensor") == 0
    new = edited_pairs({2: None, 5: gb.number("mark", gb.BOOL, True)})
    assert file.read_bytes() == gb.gguf(new, tensors(names=("one", "zwei")), DATA)


FAULTS = [
    (("set", "nonsense"), "'nonsense': it is not of the form KEY=VALUE."),
    (("set", "a.count=many"), "key 'a.count': 'many' is no UINT32."),
    (("set", "a.count=-1"), "key 'a.count': '-1' is no UINT32."),
    (("set", "a.rate=1e300"), "key 'a.rate': '1e300' is no FLOAT32."),
    (("set", "flag=1"), "key 'flag': '1' is no BOOL."),
    (("set", "numbers=3"), "key 'numbers': '3' is no array of INT16."),
    (("set", "numbers=[1, [2]]"), "is no array of INT16."),
    (("set", "numbers=[70000]"), "is no array of INT16."),
    (("set", "tokens=" + "[" * 100_000), "is no array of STRING."),
    (("set", "tokens=a, b"), "'a, b' is no array of STRING. Write KEY:TYPE=VALUE or KEY:TYPE[]"),
    (("set", "new=[1,"), "'[1,' is no JSON array. Write KEY:STRING=VALUE for a text."),
    (("set", "new=[]"), "Write KEY:TYPE[]=[]."),
    (("set", "new:UINT7=1"), "'UINT7': no GGUF value type."),
    (("set", "new=1", "new=2"), "key 'new': it is set twice."),
    (("set", "new=[1, true]"), "is no array of one type"),
    (("set", "split.count=1"), "phiggml gguf split, merge"),
    (("set", "new:UINT7[]=[1]"), "key 'new': 'UINT7': no GGUF value type."),
    (("set", "new:=1"), "key 'new': '': no GGUF value type."),
    (("set", "new:UINT8[]=1"), "'1' is no array of UINT8."),
    (("set", "a.rate=1e400"), "'1e400' is no FLOAT32."),
    (("set", "wide=1e400"), "'1e400' is no FLOAT64."),
    (("set", "new=1e400"), "'1e400' is too large for FLOAT32. Write KEY:FLOAT64=VALUE"),
    (("set", "new=1e39"), "'1e39' is too large for FLOAT32. Write KEY:FLOAT64=VALUE"),
    (("set", "new:FLOAT32=1e400"), "is no FLOAT32."),
    (("set", "new:FLOAT64=-1e400"), "is no FLOAT64."),
    (("set", "new=[1e400]"), "is no JSON array."),
    (("set", "new:FLOAT64[]=[1e400]"), "is no array of FLOAT64."),
    (("set", "new:FLOAT32=[1e39]"), "is no array of FLOAT32."),
    (("set", "new:FLOAT64[]=[1" + "0" * 400 + "]"), "is no array of FLOAT64."),
    (("set", "new=[NaN]"), "is no JSON array."),
    (("set", "new=[-Infinity]"), "is no JSON array."),
    (("set", "new=[1.5, 99999999999999999999]"), "is no JSON array."),
    (("set", "numbers=[NaN]"), "is no array of INT16."),
    (("set", "new=[3000000000]"), "is no array of one type"),
    (("set", "new=[[1]]"), "is no array of one type"),
    (("set", 'new=["\\ud800"]'), "is no array of one type"),
    (("set", "new=18446744073709551616"), "is too large for INT64. Write KEY:STRING=VALUE"),
    (("set", "new=-9223372036854775809"), "is too large for INT64."),
    (("set", "new=" + "9" * 5000), "'" + "9" * 60 + "...' is too large for INT64."),
    (("set", "a.count=" + "9" * 5000), "'" + "9" * 60 + "...' is no UINT32."),
    (("set", "new=[" + "9" * 5000), "'[" + "9" * 59 + "...' is no JSON array."),
    (("set", "x" * 5000), "'" + "x" * 60 + "...': it is not of the form KEY=VALUE."),
    (("set", "a.count=1_0"), "'1_0' is no UINT32."),
    (("set", "a.count= 7"), "' 7' is no UINT32."),
    (("set", "a.count=٣"), "'٣' is no UINT32."),
    (("set", "a.count=1.0"), "'1.0' is no UINT32."),
    (("set", "a.rate=1_0"), "'1_0' is no FLOAT32."),
    (("set", "a.rate=0x10"), "'0x10' is no FLOAT32."),
    (("set", "=1"), "1 to 65535 bytes"),
    (("unset", "tokns"), "near it: 'tokens'"),
    (("rename", "a.count", "a.rate"), "two of it. Unset or rename the other before"),
    (("rename", "--tensor", "three", "x"), "tensor 'three': there is none"),
]


@pytest.mark.parametrize(("arguments", "message"), FAULTS, ids=[fault[1] for fault in FAULTS])
def test_faults(file: Path, capsys: Out, arguments: tuple[str, ...], message: str) -> None:
    before = file.read_bytes()
    verb, *others = arguments
    assert phiggml("gguf", verb, file, *others) == 3
    said = complaint(capsys)
    assert message in said
    assert "GGUFValue" not in said
    assert len(said) < 500
    assert file.read_bytes() == before


def test_all_faults_of_a_command_are_told(file: Path, capsys: Out) -> None:
    assert phiggml("gguf", "set", file, "a.count=x", "flag=y", "z") == 3
    said = complaint(capsys)
    assert all(f"'{part}'" in said for part in ("a.count", "flag", "z"))


def test_files_that_cannot_be_edited(tmp_path: Path, capsys: Out) -> None:
    path = tmp_path / "no.gguf"
    assert phiggml("gguf", "set", path, "a=1") == 8
    assert str(path) in complaint(capsys)
    path.write_text("no GGUF")
    assert phiggml("gguf", "unset", path, "a") == 4
    assert str(path) in complaint(capsys)
    assert path.read_text() == "no GGUF"
    for url in ("https://example.org/m.gguf", "file:///m.gguf"):
        assert phiggml("gguf", "set", url, "a=1") == 3
        assert "Download it" in complaint(capsys)


def test_numbers_from_files_may_end_in_a_newline(file: Path, tmp_path: Path) -> None:
    number = tmp_path / "number"
    number.write_text("12\r\n")
    assert phiggml("gguf", "set", file, f"a.count=@{number}", f"a.rate=@{number}") == 0
    metadata = seen(file).metadata()
    assert (metadata["a.count"], metadata["a.rate"]) == (12, 12.0)


def test_splitting_and_merging(file: Path, tmp_path: Path, capsys: Out) -> None:
    parts = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    assert phiggml("gguf", "split", file, "-o", tmp_path / "m.gguf", "--max-tensors", 1) == 0
    assert capsys.readouterr().out == "".join(f"{part}\n" for part in parts)
    for overwrite, code in (((), 8), (("--overwrite", "-q"), 0)):
        assert (
            phiggml("gguf", "split", file, "-o", tmp_path / "m.gguf", "--max-size=128", *overwrite)
            == code
        )
    assert "Pass --overwrite" in complaint(capsys)
    merged = tmp_path / "merged.gguf"
    assert phiggml("gguf", "merge", parts[1], "-o", merged) == 0
    assert capsys.readouterr().out == f"{merged}\n"
    assert merged.read_bytes() == file.read_bytes()
    assert phiggml("gguf", "merge", parts[0], "-o", merged) == 8
    assert "Pass --overwrite" in complaint(capsys)
    assert phiggml("gguf", "merge", parts[0], "-o", merged, "--overwrite", "-q") == 0
    assert phiggml("gguf", "merge", file, "-o", merged) == 3
    assert "nothing to merge" in complaint(capsys)


def test_sizes_are_decimal_as_llama_gguf_splits(file: Path, tmp_path: Path) -> None:
    for size, n_parts in (
        ("128", 2),
        ("0.159K", 2),
        ("160", 1),
        (".2k", None),
        ("1KB", 1),
        ("2G", 1),
    ):
        out = tmp_path / f"at-{size}.gguf"
        command = ("gguf", "split", file, "-o", out, "--max-size", size)
        if n_parts is None:
            with pytest.raises(SystemExit) as caught:
                phiggml(*command)
            assert caught.value.code == 2
        else:
            assert phiggml(*command) == 0
            assert len(list(tmp_path.glob(f"at-{size}-*"))) == n_parts


@pytest.mark.parametrize(
    "arguments",
    [
        ("set", "f.gguf"),
        ("unset", "f.gguf"),
        ("rename", "f.gguf", "a"),
        ("split", "f.gguf", "-o", "x"),
        ("split", "f.gguf", "--max-size", "1G"),
        ("split", "f.gguf", "-o", "x", "--max-size", "2", "--max-tensors", "1"),
        ("split", "f.gguf", "-o", "x", "--max-size", "many"),
        ("split", "f.gguf", "-o", "x", "--max-size", "1²"),
        ("merge", "f.gguf"),
    ],
)
def test_wrong_command_lines(arguments: tuple[str, ...], capsys: Out) -> None:
    with pytest.raises(SystemExit) as caught:
        phiggml("gguf", *arguments)
    assert caught.value.code == 2
    complaint(capsys)
