"""phiggml gguf diff, hash, verify, extract: what they print, write and end with."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import gguf_bytes as gb
import phiggml as pg
from command_line import Out, complaint, phiggml
from phiggml import gguf_extract
from phiggml.atomic_file import AtomicFile
from phiggml.gguf_extract import extract_tensor


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def document(capsys: Out) -> Any:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(capsys.readouterr().out, parse_constant=refuse)


# diff --------------------------------------------------------------------------------------------


def test_diff(nano_f16: Path, nano_q4: Path, capsys: Out) -> None:
    assert phiggml("gguf", "diff", nano_f16, nano_f16) == 0
    text, notes = capsys.readouterr()
    assert notes == ""
    assert "27 equal" in text
    assert phiggml("gguf", "diff", nano_f16, nano_q4) == 1
    assert capsys.readouterr().out == f"{pg.diff_gguf(nano_f16, nano_q4)}\n"
    assert phiggml("gguf", "diff", nano_f16, nano_q4, "--metadata-only") == 1
    text = capsys.readouterr().out
    assert "~ general.file_type: 1 -> 15" in text
    assert "tensor" not in text.replace("tensors", "")


def test_diff_as_json(nano_f16: Path, nano_q4: Path, capsys: Out) -> None:
    assert phiggml("gguf", "diff", nano_f16, nano_q4, "--json") == 1
    found, expected = document(capsys), pg.diff_gguf(nano_f16, nano_q4)
    assert (found["same"], found["n_tensors_equal"]) == (False, 9)
    (change,) = found["metadata_changed"]
    assert (change["key"], change["a"], change["b"]) == ("general.file_type", 1, 15)
    first = expected.tensors_changed[0]
    assert first.error is not None
    assert found["tensors_changed"][0]["name"] == first.name
    assert found["tensors_changed"][0]["error"]["nrmse"] == first.error.nrmse
    assert found["tensors_changed"][0]["shape_a"] == list(first.shape_a)


def test_diff_of_odd_values_as_json(tmp_path: Path, capsys: Out) -> None:
    nan = struct.pack("<8f", *[float("nan")] * 8)
    tensors = [gb.tensor("t", (8,), gb.F32)]
    pairs = [gb.strings("s", ["x"]), gb.number("f", gb.FLOAT32, float("inf"))]
    a = written(tmp_path / "a.gguf", gb.gguf(pairs, tensors, nan))
    b = written(tmp_path / "b.gguf", gb.gguf([gb.strings("s", ["y"])], tensors, bytes(32)))
    assert phiggml("gguf", "diff", a, b, "--json") == 1
    found = document(capsys)
    assert found["metadata_only_a"] == {"f": "inf"}
    assert found["metadata_changed"][0]["b"] == ["y"]
    assert found["tensors_changed"][0]["error"]["rmse"] == "nan"


# hash --------------------------------------------------------------------------------------------


def test_hash_and_check(nano_q4: Path, tmp_path: Path, capsys: Out) -> None:
    assert phiggml("gguf", "hash", nano_q4) == 0
    saved = capsys.readouterr().out
    assert saved == f"{pg.hash_gguf(nano_q4)}\n"
    manifest = written(tmp_path / "manifest", saved.encode())
    assert phiggml("gguf", "hash", nano_q4, "--check", manifest) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.removesuffix("  -  Ok") for line in lines] == saved.splitlines()
    assert last == f"{manifest}: 0 of 29 differ"

    changed = tmp_path / nano_q4.name
    content = bytearray(nano_q4.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    assert phiggml("gguf", "hash", changed, "--check", manifest) == 1
    out = capsys.readouterr().out
    assert out.count("  -  Mismatch\n") == 2  # the last tensor, and all data
    assert out.endswith(f"{manifest}: 2 of 29 differ\n")


def test_hash_takes_the_manifests_algorithm(nano_q4: Path, tmp_path: Path, capsys: Out) -> None:
    assert phiggml("gguf", "hash", nano_q4, "--algorithm", "blake2b") == 0
    saved = capsys.readouterr().out
    assert saved.startswith("blake2b   ")
    manifest = written(tmp_path / "manifest", saved.encode())
    assert phiggml("gguf", "hash", nano_q4, "--check", manifest) == 0
    assert phiggml("gguf", "hash", nano_q4, "--check", manifest, "--algorithm", "sha1") == 3
    assert "blake2b" in complaint(capsys)


def test_hash_of_nothing(nano_q4: Path, tmp_path: Path, capsys: Out) -> None:
    assert phiggml("gguf", "hash", nano_q4, "--check", tmp_path / "absent") == 8
    assert "absent" in complaint(capsys)
    junk = written(tmp_path / "junk", b"\xff\xfe junk")
    assert phiggml("gguf", "hash", nano_q4, "--check", junk) == 4
    assert "line 1" in complaint(capsys)


# verify ------------------------------------------------------------------------------------------


def test_verify(nano_q4: Path, tmp_path: Path, capsys: Out) -> None:
    assert phiggml("gguf", "verify", nano_q4) == 0
    assert capsys.readouterr().out.startswith(f"{nano_q4}: sound (27 tensors, ")
    tensors = [gb.tensor("t\x1b[2J\n", (8,), gb.F32, offset=32)]
    content = gb.gguf([], tensors, bytes(32) + b"\xff" * 32 + b"more")
    path = written(tmp_path / "x.gguf", content)
    start = len(content) - 68
    assert phiggml("gguf", "verify", path) == 1
    gap, trailing, nan, last = capsys.readouterr().out.splitlines()
    assert gap.startswith(f"byte {start + 32}: tensor 't\\x1b[2J\\n': its data begin at byte")
    assert trailing.startswith(f"byte {start + 64}: 4 bytes follow")
    assert nan.startswith(f"byte {start + 32}: tensor 't\\x1b[2J\\n': 8 of its 8 numbers are NaN")
    assert last.startswith(f"{path}: 3 faults (1 tensors")
    assert phiggml("gguf", "verify", path, "--no-data") == 1
    assert "NaN" not in capsys.readouterr().out
    assert phiggml("gguf", "verify", path, "--json") == 1
    found = document(capsys)
    assert (found["ok"], found["n_tensors"], found["nbytes"]) == (False, 1, len(content))
    assert [fault["offset"] for fault in found["faults"]] == [start + 32, start + 64, start + 32]
    assert phiggml("gguf", "verify", tmp_path / "absent.gguf") == 8
    assert "absent.gguf" in complaint(capsys)
    assert phiggml("gguf", "verify", "https://example.org/x.gguf") == 3
    assert "Download it." in complaint(capsys)


def test_names_of_files_make_no_lines(tmp_path: Path, capsys: Out) -> None:
    path = written(tmp_path / "x\nfoo: sound.gguf", b"GGUF")
    assert phiggml("gguf", "verify", path) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2


# extract -----------------------------------------------------------------------------------------


def test_extract(nano_q4: Path, tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "x.npy"
    for tensor in gguf.GGUFReader(nano_q4).tensors[:4]:
        line = ("gguf", "extract", nano_q4, tensor.name, "-o", out, "--overwrite")
        assert phiggml(*line) == 0
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        found = np.load(out)
        assert (found.dtype, found.shape) == (np.float32, expected.shape)
        assert np.array_equal(found, expected)
        says = capsys.readouterr().out
        assert says == f"{out}: float32, {' x '.join(map(str, expected.shape))}\n"
        assert phiggml(*line, "--raw", "--quiet") == 0
        assert np.array_equal(np.load(out), tensor.data.view(np.uint8))
    assert capsys.readouterr().out == ""


def test_extract_of_other_numbers(tmp_path: Path) -> None:
    """Integers and float64 are kept; pieces, rows longer than a piece and scalars fit together."""
    rng = np.random.default_rng(5)
    arrays = {
        "i64": rng.integers(-(2**60), 2**60, (3, 5)),
        "i8": rng.integers(-99, 99, (2, 2, 3)).astype(np.int8),
        "f64": rng.standard_normal((700, 1700)),
        "long": rng.standard_normal((1, (1 << 20) + 7)).astype(np.float16),
    }
    path, out = tmp_path / "x.gguf", tmp_path / "x.npy"
    with pg.GGUFWriter(path) as writer:
        for name, array in arrays.items():
            writer.add_tensor(name, array)
    for name, array in arrays.items():
        assert phiggml("gguf", "extract", path, name, "-o", out, "--overwrite", "-q") == 0
        expected = array.astype(np.float32) if name == "long" else array
        found = np.load(out)
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
    scalar = gb.gguf([], [gb.tensor("s", (), gb.F32)], struct.pack("<f", 2.5) + bytes(28))
    with pg.GGUFFile(written(path, scalar)) as file:
        assert extract_tensor(file.tensors["s"], tmp_path / "s.npy") == np.float32
        extract_tensor(file.tensors["s"], tmp_path / "r.npy", raw=True)
    assert np.load(tmp_path / "s.npy").shape == ()
    assert np.load(tmp_path / "s.npy") == 2.5
    assert np.load(tmp_path / "r.npy").tobytes() == struct.pack("<f", 2.5)


@pytest.mark.parametrize("order", "<>")
def test_extract_from_both_byte_orders(order: str, tmp_path: Path) -> None:
    g = gb.Layout(3, order)
    path, out = tmp_path / "x.gguf", tmp_path / "x.npy"
    written(path, g.gguf([], [g.tensor("t", (8,), gb.F32)], g.pack("8f", *range(8))))
    assert phiggml("gguf", "extract", path, "t", "-o", out) == 0
    assert np.load(out).tolist() == list(range(8))


def test_extract_spoils_no_part(nano_q4: Path, tmp_path: Path, capsys: Out) -> None:
    parts = pg.split_gguf(nano_q4, tmp_path / "nano", max_tensors=14)
    link = tmp_path / "link.npy"
    link.symlink_to(parts[1])
    contents = [path.read_bytes() for path in parts]
    for out in (*parts, link):
        for line in (
            ("gguf", "extract", parts[0], "output_norm.weight", "-o", out),
            ("inspect", parts[0], "--plot", "output_norm.weight", "-o", out),
        ):
            assert phiggml(*line, "--overwrite") == 3
            assert "a part of it" in complaint(capsys)
    assert [path.read_bytes() for path in parts] == contents


def test_a_failed_extract_discards_its_file(
    nano_q4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    discarded: list[AtomicFile] = []

    class Seen(AtomicFile):
        def write(self, data: Any) -> None:
            super().write(data)
            raise OSError(28, "No space left on device")

        def discard(self) -> None:
            super().discard()
            discarded.append(self)
            assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr(gguf_extract, "AtomicFile", Seen)
    with pg.GGUFFile(nano_q4) as file, pytest.raises(OSError, match="No space"):
        extract_tensor(file.tensors["output.weight"], tmp_path / "x.npy")
    assert len(discarded) == 1


def test_extract_refuses(nano_q4: Path, tmp_path: Path, capsys: Out) -> None:
    path = tmp_path / "x.gguf"
    q8_1 = pg.QuantType("Q8_1")
    tensors = [gb.tensor("odd", (32,), q8_1.id)]
    written(path, gb.gguf([], tensors, bytes(q8_1.block_bytes + 28)))
    content, out = path.read_bytes(), tmp_path / "x.npy"
    for arguments, code, says in (
        ((path, "odd", "-o", out), 5, "Q8_1"),
        ((path, "oddd", "-o", out), 3, "Did you mean odd?"),
        ((path, "odd", "-o", path, "--overwrite", "--raw"), 3, "itself"),
        ((path, "odd", "-o", path, "--raw"), 8, "--overwrite"),
        ((path, "odd", "-o", tmp_path, "--raw"), 8, "Is a directory"),
        ((path, "odd", "-o", tmp_path / "no" / "x.npy", "--raw"), 8, "No such file"),
        ((nano_q4, "output.weight", "-o", out, "--threads", "0"), 3, "threads"),
    ):
        assert phiggml("gguf", "extract", *arguments) == code
        assert says in complaint(capsys)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
    assert phiggml("gguf", "extract", path, "odd", "-o", out, "--raw") == 0
    assert np.load(out).shape == (q8_1.block_bytes,)


def test_an_interrupted_extract_leaves_nothing(nano_q4: Path, tmp_path: Path) -> None:
    out = written(tmp_path / "x.npy", b"mine")

    def interrupt(_event: pg.Progress) -> None:
        raise KeyboardInterrupt

    with pg.GGUFFile(nano_q4) as file, pytest.raises(KeyboardInterrupt):
        extract_tensor(file.tensors["output.weight"], out, overwrite=True, progress=interrupt)
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_bytes() == b"mine"
