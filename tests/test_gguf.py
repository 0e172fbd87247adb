"""Reading: files made by struct.pack, as the format states, and by the gguf package."""

from __future__ import annotations

import gc
import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

import gguf_bytes as gb
from phiggml.errors import FormatError, InputError
from phiggml.gguf import GGUFFile, GGUFStrings, GGUFValue


@pytest.fixture
def write(tmp_path):
    def write_bytes(content: bytes) -> Path:
        path = tmp_path / "file.gguf"
        path.write_bytes(content)
        return path

    return write_bytes


NUMBERS = [
    (gb.UINT8, 255, "uint8"),
    (gb.INT8, -128, "int8"),
    (gb.UINT16, 65535, "uint16"),
    (gb.INT16, -32768, "int16"),
    (gb.UINT32, 2**32 - 1, "uint32"),
    (gb.INT32, -(2**31), "int32"),
    (gb.FLOAT32, 1.5, "float32"),
    (gb.BOOL, True, "bool"),
    (gb.UINT64, 2**64 - 1, "uint64"),
    (gb.INT64, -(2**63), "int64"),
    (gb.FLOAT64, 0.1, "float64"),
]


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize(("kind", "value", "dtype"), NUMBERS)
def test_numbers_are_pythons_own(write, kind, value, dtype, version):
    path = write(gb.gguf([gb.number("k", kind, value, version)], version=version))
    with GGUFFile(path) as f:
        assert f.version == version
        assert f.metadata["k"] == value
        assert type(f.metadata["k"]) is type(value)
        assert f.metadata.exact("k") == GGUFValue(value, np.dtype(dtype).name.upper())


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize(("kind", "value", "dtype"), NUMBERS)
def test_arrays_of_numbers_keep_their_dtype_and_are_read_only(write, kind, value, dtype, version):
    values = [value, 0, 1]
    elements = struct.pack("<3" + gb.CODES[kind], *values)
    path = write(gb.gguf([gb.array("k", kind, 3, elements, version)], version=version))
    with GGUFFile(path) as f:
        array = f.metadata["k"]
        assert array.dtype == dtype
        assert array.tolist() == values
        assert not array.flags.writeable


@pytest.mark.parametrize("kind", [kind for kind, _, _ in NUMBERS] + [gb.STRING])
def test_empty_arrays(write, kind):
    with GGUFFile(write(gb.gguf([gb.array("k", kind, 0, b"")]))) as f:
        assert list(f.metadata["k"]) == []


@pytest.mark.parametrize("version", [1, 2, 3])
def test_strings(write, version):
    texts = [f"töken {i}" * (i % 5) for i in range(9000)]
    pairs = [
        gb.pair("s", gb.STRING, gb.string("Phi Φ", version), version),
        gb.strings("t", texts, version),
        gb.number("after", gb.INT32, 7, version),
    ]
    with GGUFFile(write(gb.gguf(pairs, version=version))) as f:
        assert f.metadata["s"] == "Phi Φ"
        assert f.metadata["after"] == 7
        strings = f.metadata["t"]
        assert isinstance(strings, GGUFStrings)
        assert len(strings) == len(texts)
        assert list(strings) == texts
        assert strings == texts
        assert strings != texts[:-1]
        assert [strings[i] for i in (0, 1, 63, 64, 65, 8999, -1, -9000)] == [
            texts[i] for i in (0, 1, 63, 64, 65, 8999, -1, -9000)
        ]
        slices = [
            slice(60, 70),
            slice(None, None, 1000),
            slice(5, 2),
            slice(70, 60, -3),
            slice(-3, None),
        ]
        for part in slices:
            assert strings[part] == texts[part]
        for index in (9000, -9001):
            with pytest.raises(IndexError):
                strings[index]
        assert "töken 1" in repr(strings)
    assert strings[8999] == texts[8999]  # it keeps the mapping alive


def test_bytes_that_are_no_utf8_become_lone_surrogates(write):
    raw = b"a\xff\xc0b"
    pairs = [gb.pair("s", gb.STRING, gb.string(raw)), gb.strings("t", [raw, "ok"])]
    with GGUFFile(write(gb.gguf(pairs))) as f:
        assert f.metadata["s"].encode("utf-8", "surrogateescape") == raw
        assert f.metadata["t"][0] == f.metadata["s"]


def test_metadata_are_a_mapping_in_the_files_order(write):
    keys = ["z", "a", "general.name", "ключ"]
    with GGUFFile(write(gb.gguf([gb.number(k, gb.INT32, i) for i, k in enumerate(keys)]))) as f:
        assert list(f.metadata) == keys
        assert len(f.metadata) == 4
        assert dict(f.metadata) == {k: i for i, k in enumerate(keys)}
        assert f.metadata.get("absent") is None
        for key in ("absent", "", "\udcff", "a\0"):
            assert key not in f.metadata
            with pytest.raises(KeyError):
                f.metadata[key]
            with pytest.raises(KeyError):
                f.metadata.exact(key)


def tensor_file(alignment: int = 32) -> bytes:
    values = np.arange(6, dtype="<f4").tobytes()
    # One block of Q8_0: the scale as float16, then 32 int8.
    block = np.float16(0.5).tobytes() + np.arange(-16, 16, dtype=np.int8).tobytes()
    integers = np.array([2**40, -1], "<i8").tobytes()
    parts = [values, block, integers]
    offsets, data = [], b""
    for part in parts:
        offsets.append(len(data))
        data += part + bytes(-len(part) % alignment)
    tensors = [
        gb.tensor("w", (3, 2), gb.F32, offset=offsets[0]),
        gb.tensor("q", (32,), gb.Q8_0, offset=offsets[1]),
        gb.tensor("i", (2, 1), gb.I64, offset=offsets[2]),
    ]
    pairs = [] if alignment == 32 else [gb.number("general.alignment", gb.UINT32, alignment)]
    return gb.gguf(pairs, tensors, data, alignment=alignment)


@pytest.mark.parametrize("alignment", [1, 8, 32, 4096])
def test_tensors(write, alignment):
    content = tensor_file(alignment)
    with GGUFFile(write(content)) as f:
        assert f.alignment == alignment
        assert f.nbytes == len(content)
        assert list(f.tensors) == ["w", "q", "i"]
        w, q, i = f.tensors.values()
        assert (w.type, w.shape, w.nbytes, w.n_rows) == ("F32", (2, 3), 24, 2)
        assert (q.type, q.shape, q.nbytes) == ("Q8_0", (32,), 34)
        assert (i.type, i.shape) == ("I64", (1, 2))
        assert (w.data.shape, q.data.shape, i.data.shape) == ((2, 12), (34,), (1, 16))
        for tensor in (w, q, i):
            stored = content[tensor.offset : tensor.offset + tensor.nbytes]
            assert tensor.data.tobytes() == stored
            assert tensor.read_rows().tobytes() == stored
        np.testing.assert_array_equal(w.dequantize(), [[0, 1, 2], [3, 4, 5]])
        np.testing.assert_array_equal(q.dequantize(), np.arange(-16, 16) / 2)
        np.testing.assert_array_equal(i.dequantize(), [[2**40, -1]])
        assert i.dequantize().dtype == np.int64


def test_version_1_tensors(write):
    data = np.arange(4, dtype="<f4").tobytes()
    content = gb.gguf([], [gb.tensor("t", (2, 2), gb.F32, version=1)], data, version=1)
    with GGUFFile(write(content)) as f:
        np.testing.assert_array_equal(f.tensors["t"].dequantize(), [[0, 1], [2, 3]])


def test_a_tensor_without_dimensions_is_one_number(write):
    content = gb.gguf([], [gb.tensor("t", (), gb.I32)], struct.pack("<i", 7))
    with GGUFFile(write(content)) as f:
        tensor = f.tensors["t"]
        assert (tensor.shape, tensor.nbytes, tensor.data.shape) == ((), 4, (4,))
        assert tensor.dequantize() == 7


def test_read_rows_copies_the_rows_asked_for(write):
    with GGUFFile(write(tensor_file())) as f:
        tensor = f.tensors["w"]
        rows = tensor.read_rows(1, 2)
        np.testing.assert_array_equal(rows.view("<f4"), [[3, 4, 5]])
        assert rows.flags.writeable
        assert tensor.read_rows(1, 1).shape == (0, 12)
        for start, stop in ((-1, 1), (0, 3), (2, 1), (3, 3)):
            with pytest.raises(InputError, match="it has 2"):
                tensor.read_rows(start, stop)


def test_read_bytes_copies_the_bytes_asked_for(write):
    with GGUFFile(write(tensor_file())) as f:
        for tensor in f.tensors.values():
            data = tensor.data.tobytes()
            assert tensor.read_bytes().tobytes() == data
            assert tensor.read_bytes(3, 7).tobytes() == data[3:7]
            for start, stop in ((-1, 2), (2, 1), (0, len(data) + 1)):
                with pytest.raises(InputError, match="bytes"):
                    tensor.read_bytes(start, stop)


def test_read_rows_survives_a_file_that_shrinks(write):
    path = write(tensor_file())
    with GGUFFile(path) as f:
        os.truncate(path, 10)
        with pytest.raises(FormatError, match="shorter") as caught:
            f.tensors["w"].read_rows()
        assert caught.value.path == str(path)


def test_views_are_zero_copy_and_can_never_be_written_to(write):
    path = write(tensor_file())
    with GGUFFile(path) as f:
        offset = f.tensors["w"].offset
        view = f.tensors["w"].data
    assert not view.flags.owndata
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.setflags(write=True)
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1
    with path.open("r+b") as stream:  # what changes the file shows: nothing was copied
        stream.seek(offset)
        stream.write(struct.pack("<f", 42.0))
    assert view.view("<f4")[0, 0] == 42


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_the_mapping_ends_with_the_last_of_file_and_views(write):
    path = write(tensor_file())
    f = GGUFFile(path)
    view = f.tensors["w"].data
    f.close()
    gc.collect()
    assert is_mapped(path)
    np.testing.assert_array_equal(view.view("<f4"), [[0, 1, 2], [3, 4, 5]])
    del view
    gc.collect()
    assert not is_mapped(path)
    assert str(path) not in [
        os.path.realpath(link) for link in Path("/proc/self/fd").iterdir() if link.exists()
    ]


def test_close_is_idempotent_and_use_after_it_raises(write):
    f = GGUFFile(write(tensor_file(64)))
    metadata, tensor = f.metadata, f.tensors["w"]
    assert "3 tensors" in repr(f)
    f.close()
    f.close()
    assert "closed" in repr(f)
    uses = [
        lambda: f.version,
        lambda: f.alignment,
        lambda: tensor.data,
        lambda: tensor.dequantize(),
        lambda: tensor.read_rows(),
        lambda: f.data_offset,
        lambda: metadata["general.alignment"],
    ]
    for use in uses:
        with pytest.raises(InputError, match="closed"):
            use()


def test_holes_and_a_last_tensor_without_padding_are_read(write):
    tensors = [
        gb.tensor("late", (1,), gb.F32, offset=128),
        gb.tensor("early", (1,), gb.F32, offset=32),
    ]
    data = bytes(32) + struct.pack("<f", 1) + bytes(92) + struct.pack("<f", 2)
    with GGUFFile(write(gb.gguf([], tensors, data))) as f:
        assert list(f.tensors) == ["late", "early"]
        assert f.tensors["late"].dequantize() == [2]
        assert f.tensors["early"].dequantize() == [1]


def test_what_cannot_be_opened_stays_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        GGUFFile(tmp_path / "absent.gguf")
    assert caught.value.filename == str(tmp_path / "absent.gguf")
    with pytest.raises(IsADirectoryError):
        GGUFFile(tmp_path)
    with pytest.raises(InputError, match="NUL"):
        GGUFFile("a\0b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="regular file"):
        GGUFFile(tmp_path / "pipe")


def test_arrays_of_numbers_are_views_of_one_copy(write):
    path = write(gb.gguf([gb.array("k", gb.UINT32, 5, struct.pack("<5I", *range(5)))]))
    with GGUFFile(path) as f:
        array = f.metadata["k"]
        assert np.shares_memory(array, f.metadata["k"])
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.setflags(write=True)
    path.write_bytes(bytes(path.stat().st_size))
    assert array.tolist() == [0, 1, 2, 3, 4]


def test_values_of_a_file_that_was_written_to_are_refused(write):
    pairs = [
        gb.number("n", gb.UINT32, 7),
        gb.array("k", gb.UINT32, 2, struct.pack("<2I", 8, 9)),
        gb.strings("s", ["a", "b"]),
        gb.pair("t", gb.STRING, gb.string("text")),
    ]
    path = write(gb.gguf(pairs, [gb.tensor("w", (2,), gb.F32)], struct.pack("<2f", 1, 2)))
    f = GGUFFile(path)
    seen = f.metadata["k"]
    strings = f.metadata["s"]
    with path.open("r+b") as stream:
        stream.seek(40)
        stream.write(b"\xff" * 8)
    os.utime(path, (1, 1))
    for key in ("n", "s", "t"):
        with pytest.raises(FormatError, match="changed since it was opened"):
            list(f.metadata[key])
        with pytest.raises(FormatError, match="changed since it was opened"):
            f.metadata.encoded(key)
    with pytest.raises(FormatError, match="changed since it was opened"):
        strings[0]
    assert seen.tolist() == f.metadata["k"].tolist() == [8, 9]
    # An edit in place leaves tensors where they are.
    assert f.tensors["w"].dequantize().tolist() == [1, 2]


def test_strings_are_found_where_they_stand(write):
    with GGUFFile(write(gb.gguf([gb.strings("k", [str(i % 150) for i in range(300)])]))) as f:
        strings = f.metadata["k"]
        assert strings.index("7") == 7
        assert strings.index("7", 8) == 157
        assert strings.index("149", -1) == 299
        assert "149" in strings
        assert strings[299:5:-70] == ["149", "79", "9", "89", "19"]
        with pytest.raises(ValueError, match="absent"):
            strings.index("absent")


def test_encoded_values_are_the_files_bytes(write):
    value = struct.pack("<IQ", gb.STRING, 2) + gb.string("a") + gb.string(b"\xff")
    pairs = [gb.number("n", gb.INT16, -2), gb.pair("s", gb.ARRAY, value)]
    for version in (2, 3):
        with GGUFFile(write(gb.gguf(pairs, version=version))) as f:
            assert f.metadata.encoded("n") == struct.pack("<Ih", gb.INT16, -2)
            assert f.metadata.encoded("s") == struct.pack("<I", gb.ARRAY) + value
            with pytest.raises(KeyError):
                f.metadata.encoded("absent")
    with GGUFFile(write(gb.gguf([gb.strings("s", ["a", b"\xff"], 1)], version=1))) as f:
        assert f.metadata.encoded("s") == struct.pack("<I", gb.ARRAY) + value


def test_a_header_that_shrinks_while_it_is_read_raises(write):
    path = write(gb.gguf([gb.strings("tokens", ["x" * 1000] * 500)]))
    f = GGUFFile(path)
    path.write_bytes(b"GGUF")
    with pytest.raises(FormatError, match="changed"):
        list(f.metadata["tokens"])
    with pytest.raises(FormatError, match="changed"):
        f.metadata.encoded("tokens")


def test_strings_that_change_after_the_check_raise(write):
    content = gb.gguf([gb.strings("tokens", ["abc"] * 100)])
    path = write(content)
    f = GGUFFile(path)
    lengthened = content.replace(gb.size(3) + b"abc", gb.size(1 << 40) + b"abc")
    path.write_bytes(lengthened)
    with pytest.raises(FormatError, match="changed"):
        list(f.metadata["tokens"])


def test_errors_carry_path_offset_and_a_sentence(write):
    path = write(gb.gguf([gb.number("general.alignment", gb.UINT32, 3)]))
    with pytest.raises(FormatError) as caught:
        GGUFFile(path)
    assert caught.value.path == str(path)
    assert caught.value.offset == 24 + 8 + 17 + 4
    assert str(caught.value) == (
        f"read GGUF: {path}: key 'general.alignment': its value is 3, and must be a power of two."
    )


def test_hostile_names_stay_on_one_line_and_short(write):
    name = b"\n\x1b[31m" + b"x" * 60000
    pair = gb.number("k", gb.UINT8, 0)[9:]  # without its key
    content = gb.header(0, 2) + (gb.string(name) + pair) * 2
    with pytest.raises(FormatError) as caught:
        GGUFFile(write(content))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_files_of_the_gguf_package_read_equal(tmp_path):
    path = tmp_path / "other.gguf"
    rng = np.random.default_rng(3)
    tokens = [f"<{i}>" for i in range(300)]
    scores = rng.normal(size=300).astype(np.float32).tolist()
    tensors = {
        "f32": rng.normal(size=(3, 4, 5)).astype(np.float32),
        "f16": rng.normal(size=(2, 7)).astype(np.float16),
        "f64": rng.normal(size=5),
        "i8": rng.integers(-128, 127, (4, 3), np.int8),
        "i16": rng.integers(-9, 9, 6, np.int16),
        "i32": rng.integers(-9, 9, (1, 2, 3, 4), np.int32),
    }
    weights = rng.normal(size=(4, 64)).astype(np.float32)
    blocks = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    writer = gguf.GGUFWriter(path, "phi3")
    writer.add_custom_alignment(64)
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.add_tensor("q", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(path) as f:
        assert f.alignment == 64
        assert f.metadata["general.architecture"] == "phi3"
        assert f.metadata["tokenizer.ggml.tokens"] == tokens
        assert f.metadata["tokenizer.ggml.scores"].tolist() == scores
        assert (f.metadata["u64"], f.metadata["f64"], f.metadata["yes"]) == (2**64 - 1, 0.1, True)
        for name, array in tensors.items():
            assert f.tensors[name].shape == array.shape
            np.testing.assert_array_equal(f.tensors[name].dequantize(), array)
        np.testing.assert_array_equal(f.tensors["q"].data, blocks)
        dequantized = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
        np.testing.assert_array_equal(f.tensors["q"].dequantize(), dequantized)
