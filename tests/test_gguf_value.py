"""Metadata values: their exact types as the gguf package reads them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gguf_bytes as gb
from phiggml.errors import InputError
from phiggml.gguf import GGUFFile, GGUFValue, GGUFWriter

TYPES = gguf.GGUFValueType


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.gguf"


def read_with_gguf(path: Path) -> dict[str, tuple[list[TYPES], object]]:
    """Metadata with their types, as the gguf package reads them."""
    return {
        name: (field.types, field.contents())
        for name, field in gguf.GGUFReader(path).fields.items()
        if not name.startswith("GGUF.")
    }


METADATA = [
    (True, [TYPES.BOOL], True),
    (np.bool_(False), [TYPES.BOOL], False),
    (0, [TYPES.UINT32], 0),
    (2**32 - 1, [TYPES.UINT32], 2**32 - 1),
    (2**32, [TYPES.UINT64], 2**32),
    (2**64 - 1, [TYPES.UINT64], 2**64 - 1),
    (-1, [TYPES.INT32], -1),
    (-(2**31), [TYPES.INT32], -(2**31)),
    (-(2**31) - 1, [TYPES.INT64], -(2**31) - 1),
    (0.25, [TYPES.FLOAT32], 0.25),
    ("Φ", [TYPES.STRING], "Φ"),
    ("", [TYPES.STRING], ""),
    (np.int8(-3), [TYPES.INT8], -3),
    (np.uint16(7), [TYPES.UINT16], 7),
    (np.float64(0.1), [TYPES.FLOAT64], 0.1),
    (np.array(5, np.int64), [TYPES.INT64], 5),
    ([1, -2, 3], [TYPES.ARRAY, TYPES.INT32], [1, -2, 3]),
    ((0.5, 1.5), [TYPES.ARRAY, TYPES.FLOAT32], [0.5, 1.5]),
    ([1, 0.5], [TYPES.ARRAY, TYPES.FLOAT32], [1.0, 0.5]),
    ([True, False], [TYPES.ARRAY, TYPES.BOOL], [True, False]),
    (["a", "", "ü"], [TYPES.ARRAY, TYPES.STRING], ["a", "", "ü"]),
    (np.array(["x", "yy"]), [TYPES.ARRAY, TYPES.STRING], ["x", "yy"]),
    (np.arange(3, dtype=np.uint8), [TYPES.ARRAY, TYPES.UINT8], [0, 1, 2]),
    (np.arange(6, dtype=">i2")[::2], [TYPES.ARRAY, TYPES.INT16], [0, 2, 4]),
    (np.array([0.1, 0.2]), [TYPES.ARRAY, TYPES.FLOAT64], [0.1, 0.2]),
    (GGUFValue(7, "uint64"), [TYPES.UINT64], 7),
    (GGUFValue(7, "FLOAT64"), [TYPES.FLOAT64], 7.0),
    (GGUFValue([1, 2], "UINT16"), [TYPES.ARRAY, TYPES.UINT16], [1, 2]),
    (GGUFValue([2**64 - 1, 0], "UINT64"), [TYPES.ARRAY, TYPES.UINT64], [2**64 - 1, 0]),
    (GGUFValue(np.arange(2), "UINT8"), [TYPES.ARRAY, TYPES.UINT8], [0, 1]),
]


@pytest.mark.parametrize(("value", "types", "expected"), METADATA)
def test_metadata_as_the_gguf_package_reads_them(path, value, types, expected):
    with GGUFWriter(path) as w:
        w.metadata["k"] = value
    assert read_with_gguf(path) == {"k": (types, expected)}


@pytest.mark.parametrize(("value", "kind"), [(GGUFValue([], "STRING"), 8), (np.array([], "f4"), 6)])
def test_empty_arrays_keep_their_type(path, value, kind):
    with GGUFWriter(path) as w:
        w.metadata["k"] = value
    # The gguf package cannot read these: byte by byte.
    assert path.read_bytes()[24:].rstrip(b"\0") == gb.array("k", kind, 0, b"").rstrip(b"\0")


BAD_METADATA = [
    (None, "NoneType"),
    (b"bytes", "bytes"),
    ({}, "dict"),
    (2**64, "64 bits"),
    (-(2**63) - 1, "64 bits"),
    (1e300, "too large"),
    ([], "empty"),
    ([1, "a"], "several types"),
    ([True, 1], "several types"),
    ([[1, 2], [3, 4]], "list"),
    ([2**31], "outside INT32"),
    (np.zeros((2, 2), np.float32), "2 axes"),
    (np.zeros(2, np.float16), "float16"),
    (np.zeros(2, complex), "complex"),
    (np.array([1, None]), "NoneType"),
    ("a\ud800", "surrogate"),
    (["a", "\udbff"], "surrogate"),
    (GGUFValue(256, "UINT8"), "outside UINT8"),
    (GGUFValue(-1, "UINT64"), "outside UINT64"),
    (GGUFValue(1.5, "UINT8"), "no numbers"),
    (GGUFValue(1, "BOOL"), "BOOL"),
    (GGUFValue([2**70], "BOOL"), "BOOL"),
    (GGUFValue(1, "STRING"), "no str"),
    (GGUFValue([1], "STRING"), "no str"),
    (GGUFValue("1", "INT32"), "INT32"),
    (GGUFValue([[1, 2], [3, 4]], "INT32"), "one axis"),
    (GGUFValue([[1], [2, 3]], "INT32"), "no numbers"),
    (GGUFValue(None, "INT32"), "no numbers"),
]


@pytest.mark.parametrize(("value", "message"), BAD_METADATA)
def test_metadata_that_cannot_be_written_are_refused_where_they_are_set(path, value, message):
    with GGUFWriter(path) as w:
        with pytest.raises(InputError, match=message) as caught:
            w.metadata["k"] = value
        assert str(caught.value).startswith("GGUFWriter.metadata['k']: ")
        assert "k" not in w.metadata
    assert read_with_gguf(path) == {}


@pytest.mark.parametrize("name", ["", "a\0b", "\udcff", "x" * 65536, 7])
def test_keys_that_cannot_be_written(path, name):
    writer = GGUFWriter(path)
    with pytest.raises(InputError):
        writer.metadata[name] = 1


def test_a_value_type_that_does_not_exist():
    with pytest.raises(InputError, match="FLOAT16"):
        GGUFValue(1, "FLOAT16")


def test_metadata_are_taken_when_they_are_set(path):
    values, array = [1, 2], np.array([3, 4], np.int32)
    with GGUFWriter(path) as w:
        w.metadata["list"] = values
        w.metadata["array"] = array
        w.metadata["gone"] = 1
        values.append(3)
        array[:] = 0
        del w.metadata["gone"]
        w.metadata["general.name"] = "first"
        w.metadata["general.name"] = "second"
        assert w.metadata["list"] == (1, 2)
        assert dict(w.metadata).keys() == {"list", "array", "general.name"}
    fields = read_with_gguf(path)
    assert fields["list"][1] == [1, 2]
    assert fields["array"][1] == [3, 4]
    assert fields["general.name"][1] == "second"
    with pytest.raises(InputError, match="header has been written"):
        w.metadata["late"] = 1


def test_non_utf8_strings_go_round(path):
    raw = b"\xff\x00a"
    with GGUFWriter(path) as w:
        w.metadata["s"] = raw.decode("utf-8", "surrogateescape")
        w.metadata["t"] = [raw.decode("utf-8", "surrogateescape")]
    assert path.read_bytes().count(gb.string(raw)) == 2


@pytest.mark.parametrize("value", [0, 3, -8, 2**32, True, 8.0, GGUFValue(64, "UINT64"), [32]])
def test_alignments_that_cannot_be(path, value):
    with pytest.raises(InputError, match=r"general\.alignment"):
        GGUFWriter(path).metadata["general.alignment"] = value


def test_a_file_written_from_exact_values_is_the_same_file(tmp_path):
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    with GGUFWriter(first) as w:
        for i, (value, _, _) in enumerate(METADATA):
            w.metadata[f"k{i}"] = value
        w.metadata["empty"] = GGUFValue([], "STRING")
    with GGUFFile(first) as f, GGUFWriter(second) as w:
        for key in f.metadata:
            w.metadata[key] = f.metadata.exact(key)
    assert first.read_bytes() == second.read_bytes()


# NUL is left out: the gguf package strips it from numpy's fixed-width strings.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
values = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(width=32, allow_nan=False),
    texts,
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
    st.lists(texts, min_size=1, max_size=5),
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.dictionaries(st.text("abc.", min_size=1, max_size=8), values, max_size=6))
def test_any_metadata_read_equal_by_both(path, metadata):
    with GGUFWriter(path, overwrite=True) as w:
        w.metadata.update(metadata)
    fields = read_with_gguf(path)
    assert {key: contents for key, (_, contents) in fields.items()} == metadata
    with GGUFFile(path) as f:
        for key, value in metadata.items():
            assert (
                list(f.metadata[key]) == value
                if isinstance(value, list)
                else (f.metadata[key] == value)
            )
