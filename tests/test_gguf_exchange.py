"""Files of any values and tensors: what the gguf package writes we read equal, and the reverse."""

from __future__ import annotations

import argparse
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf.scripts import gguf_convert_endian
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gguf_bytes as gb
from hostile_gguf import LAYOUTS
from phiggml.gguf import GGUFFile, GGUFStrings, GGUFValue, GGUFWriter

LITTLE, BIG = gguf.GGUFEndian.LITTLE, gguf.GGUFEndian.BIG
# Q8_1 apart, which is in no file: the gguf package takes its blocks for 40 bytes; ggml's have 36.
TENSOR_TYPES = {kind.name: kind for kind in gguf.GGMLQuantizationType if kind.name != "Q8_1"}
# The gguf package's writer takes these as arrays of numbers, and turns them round for big-endian.
NUMBERS = {"F32": "f4", "F16": "f2", "F64": "f8", "I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8"}
# Its converter of byte orders knows these alone.
CONVERTIBLE = ["F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "Q6_K", "MXFP4", "NVFP4"]
CODES = {
    "UINT8": "B",
    "INT8": "b",
    "UINT16": "H",
    "INT16": "h",
    "UINT32": "I",
    "INT32": "i",
    "FLOAT32": "f",
    "UINT64": "Q",
    "INT64": "q",
    "FLOAT64": "d",
    "BOOL": "?",
}

Value = tuple[str, Any]  # its type, that of the elements of a list, and the value
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Content:
    """What a file holds."""

    alignment: int | None
    values: dict[str, Value]
    tensors: dict[str, tuple[str, Array]]  # type, and numbers or uint8[..., row_bytes]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def elements(kind: str) -> st.SearchStrategy[Any]:
    if kind == "STRING":
        return texts
    if kind == "BOOL":
        return st.booleans()
    if kind.startswith("FLOAT"):
        return st.floats(width=int(kind.removeprefix("FLOAT")))
    info = np.iinfo(kind.lower())
    return st.integers(int(info.min), int(info.max))


@st.composite
def values(draw: st.DrawFn) -> dict[str, Value]:
    """One value of each type, and one array of each, under any keys."""
    kinds = [*CODES, "STRING"]
    name = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
    keys = draw(st.lists(name, min_size=24, max_size=24, unique=True))
    found = [(kind, draw(elements(kind))) for kind in kinds]
    # The gguf package writes no empty arrays.
    found += [(kind, draw(st.lists(elements(kind), min_size=1, max_size=4))) for kind in kinds]
    return {"k." + key: value for key, value in zip(keys, found, strict=True)}


def tensor_of(kind: str, rows: tuple[int, ...], blocks: int, seed: int) -> Array:
    """Random bytes as a tensor of the type."""
    _, block_bytes = gguf.GGML_QUANT_SIZES[TENSOR_TYPES[kind]]
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (*rows, blocks * block_bytes), np.uint8)
    return data.view(NUMBERS[kind]) if kind in NUMBERS else data


@st.composite
def tensors(draw: st.DrawFn, kinds: list[str]) -> dict[str, tuple[str, Array]]:
    name = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=15)
    names = draw(st.lists(name, max_size=5, unique=True))
    found = {}
    for name in names:
        kind = draw(st.sampled_from(kinds))
        rows = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
        array = tensor_of(kind, rows, draw(st.integers(1, 3)), draw(st.integers(0, 1 << 30)))
        found["t." + name] = (kind, array)
    return found


def contents(kinds: list[str]) -> st.SearchStrategy[Content]:
    alignments = st.sampled_from([None, 8, 16, 32, 64, 512])
    return st.builds(Content, alignments, values(), tensors(kinds))


def write_theirs(path: Path, content: Content, endianess: gguf.GGUFEndian = LITTLE) -> None:
    writer = gguf.GGUFWriter(path, "phi3", endianess=endianess)
    if content.alignment is not None:
        writer.add_custom_alignment(content.alignment)
    for key, (kind, value) in content.values.items():
        value_type = gguf.GGUFValueType[kind]
        if isinstance(value, list):
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, sub_type=value_type)
        else:
            writer.add_key_value(key, value, value_type)
    for name, (kind, array) in content.tensors.items():
        writer.add_tensor(name, array, raw_dtype=TENSOR_TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_ours(path: Path, content: Content) -> None:
    with GGUFWriter(path, overwrite=True) as writer:
        writer.metadata["general.architecture"] = "phi3"
        if content.alignment is not None:
            writer.metadata["general.alignment"] = content.alignment
        for key, (kind, value) in content.values.items():
            writer.metadata[key] = GGUFValue(value, kind)
        for name, (kind, array) in content.tensors.items():
            writer.add_tensor(name, array, None if kind in NUMBERS else kind)


def bits(kind: str, value: Any) -> Any:
    """The value so that it compares, NaN too: numbers as their bytes."""
    if kind == "STRING":
        return list(value) if isinstance(value, list | GGUFStrings) else value
    listed = value.tolist() if isinstance(value, np.ndarray) else value
    listed = listed if isinstance(listed, list) else [listed]
    return struct.pack(f"<{len(listed)}{CODES[kind]}", *listed)


def all_values(content: Content) -> Iterator[tuple[str, Value]]:
    yield "general.architecture", ("STRING", "phi3")
    if content.alignment is not None:
        yield "general.alignment", ("UINT32", content.alignment)
    yield from content.values.items()


def check_ours(source: Any, content: Content, byte_order: str = "little") -> None:
    """What GGUFFile reads is the content."""
    with GGUFFile(source) as file:
        assert file.byte_order == byte_order
        assert file.alignment == (content.alignment or 32)
        assert list(file.metadata) == [key for key, _ in all_values(content)]
        for key, (kind, value) in all_values(content):
            exact = file.metadata.exact(key)
            assert exact.type == kind
            assert bits(kind, exact.value) == bits(kind, value)
            assert isinstance(exact.value, GGUFStrings | np.ndarray) == isinstance(value, list)
            assert file.metadata.encoded(key) == encoded(kind, value)
        assert list(file.tensors) == list(content.tensors)
        for name, (kind, array) in content.tensors.items():
            tensor = file.tensors[name]
            block, block_bytes = gguf.GGML_QUANT_SIZES[TENSOR_TYPES[kind]]
            data = array.view(np.uint8)
            assert tensor.type == kind
            assert tensor.shape == (*array.shape[:-1], data.shape[-1] // block_bytes * block)
            np.testing.assert_array_equal(tensor.data, data)
            np.testing.assert_array_equal(tensor.read_rows(), data.reshape(-1, data.shape[-1]))


def encoded(kind: str, value: Any) -> bytes:
    """Type and value as the gguf package packs them."""
    packer = gguf.GGUFWriter(None, "phi3")
    value_type = gguf.GGUFValueType[kind]
    if isinstance(value, list):
        return packer._pack_val(value, gguf.GGUFValueType.ARRAY, True, sub_type=value_type)
    return packer._pack_val(value, value_type, True)


def check_theirs(path: Path, content: Content) -> None:
    """What the gguf package reads is the content."""
    reader = gguf.GGUFReader(path)
    fields = {name: f for name, f in reader.fields.items() if not name.startswith("GGUF.")}
    assert list(fields) == [key for key, _ in all_values(content)]
    for key, (kind, value) in all_values(content):
        kinds = [gguf.GGUFValueType[kind]]
        assert fields[key].types == [gguf.GGUFValueType.ARRAY] * isinstance(value, list) + kinds
        assert bits(kind, fields[key].contents()) == bits(kind, value)
    assert [tensor.name for tensor in reader.tensors] == list(content.tensors)
    for tensor, (kind, array) in zip(reader.tensors, content.tensors.values(), strict=True):
        assert tensor.tensor_type.name == kind
        # Their BF16 and quantized tensors are bytes as ours, with the last axis in bytes.
        np.testing.assert_array_equal(tensor.data.view(np.uint8), array.view(np.uint8))
        assert tensor.data_offset % (content.alignment or 32) == 0


def of_each_type(kinds: list[str]) -> Content:
    found = {kind: (kind, tensor_of(kind, (2, 3), 2, i)) for i, kind in enumerate(kinds)}
    return Content(64, {"k": ("FLOAT32", [float("nan"), -0.0])}, found)


def many(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "exchange.gguf"


@many(60)
@given(contents(list(TENSOR_TYPES)))
def test_what_the_gguf_package_writes_we_read(path: Path, content: Content) -> None:
    write_theirs(path, content)
    check_ours(path, content)
    check_ours(path.read_bytes(), content)


@many(60)
@given(contents(list(NUMBERS)))
def test_what_it_writes_in_big_endian_we_read(path: Path, content: Content) -> None:
    write_theirs(path, content, BIG)
    check_ours(path, content, "big")
    with path.open("rb") as stream:
        check_ours(stream, content, "big")


@many(60)
@given(contents(list(TENSOR_TYPES)))
def test_what_we_write_the_gguf_package_reads(path: Path, content: Content) -> None:
    write_ours(path, content)
    check_theirs(path, content)


@many(20)
@given(contents(list(TENSOR_TYPES)))
def test_what_we_read_and_write_again_is_the_same(path: Path, content: Content) -> None:
    again = path.with_name("again.gguf")
    for write in (write_theirs, write_ours):
        write(path, content)
        with GGUFFile(path) as file, GGUFWriter(again, overwrite=True) as writer:
            writer.copy_metadata(file.metadata)
            for tensor in file.tensors.values():
                writer.add_tensor(tensor.name, tensor.data, tensor.type)
        assert again.read_bytes() == path.read_bytes()


def test_tensors_of_each_type_there_is(path: Path) -> None:
    content = of_each_type(list(TENSOR_TYPES))
    write_theirs(path, content)
    check_ours(path, content)
    write_ours(path, content)
    check_theirs(path, content)


def turn_round(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file becomes big-endian, by the gguf package's converter."""
    monkeypatch.setattr("builtins.input", lambda prompt: "YES")
    reader = gguf.GGUFReader(path, "r+")
    gguf_convert_endian.convert_byteorder(reader, argparse.Namespace(order="big", dry_run=False))
    reader.data.flush()


def test_files_that_its_converter_made_big_endian(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = of_each_type(CONVERTIBLE)
    write_theirs(path, content)
    little = path.read_bytes()
    turn_round(path, monkeypatch)
    assert path.read_bytes() != little
    check_ours(path, content, "big")


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_headers_of_megabytes(path: Path, layout: gb.Layout) -> None:
    """The parser sees a quarter of a megabyte at once: values of all sizes lie across its edges."""
    random = np.random.default_rng(layout.version)
    lengths = [*random.integers(0, 90, 30000).tolist(), 300_000, *random.integers(0, 9, 30000)]
    tokens = [f"{i:x}".rjust(length, "·")[:length] for i, length in enumerate(lengths)]
    flags = random.integers(0, 2, 600_001).astype(bool)
    scores = random.normal(size=100_003).astype(np.float32)
    names = [f"{i:05}".rjust(63, "n") for i in range(3000)]
    pairs = [
        layout.strings("tokens", tokens),
        layout.array("flags", gb.BOOL, len(flags), flags.tobytes()),
        *[layout.number("k" * (i % 300 + 1) + str(i), gb.UINT32, i) for i in range(3000)],
        layout.array(
            "scores", gb.FLOAT32, len(scores), scores.astype(layout.order + "f4").tobytes()
        ),
        layout.strings("again", tokens[::-1]),
    ]
    tensors = [layout.tensor(name, (1,), gb.I8, offset=32 * i) for i, name in enumerate(names)]
    content = layout.gguf(pairs, tensors, bytes(32 * len(names)))
    path.write_bytes(content)
    with path.open("rb") as stream:
        for source in (path, content, stream):
            with GGUFFile(source) as file:
                assert file.metadata["tokens"] == tokens
                assert list(file.metadata["again"]) == tokens[::-1]
                np.testing.assert_array_equal(file.metadata["flags"], flags)
                np.testing.assert_array_equal(file.metadata["scores"], scores)
                assert [file.metadata["k" * (i % 300 + 1) + str(i)] for i in range(3000)] == list(
                    range(3000)
                )
                assert list(file.tensors) == names
