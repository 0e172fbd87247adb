"""Big-endian files: read equal to what the gguf package, or struct.pack, wrote."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

import gguf_bytes as gb
from phiggml import GGUFFile
from phiggml.errors import UnsupportedError

BIG = gb.Layout(order=">")
# Blocks as ggml-common.h declares them, with the numbers of two bytes in big-endian order.
BLOCKS = {
    "Q4_0": [("d", ">f2"), ("rest", "u1", 16)],
    "Q8_0": [("d", ">f2"), ("rest", "u1", 32)],
    "Q4_K": [("d", ">f2"), ("min", ">f2"), ("rest", "u1", 140)],
    "Q6_K": [("rest", "u1", 208), ("d", ">f2")],
    "MXFP4": [("rest", "u1", 17)],
}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "big.gguf"


def test_a_file_of_the_gguf_package_reads_equal(path):
    rng = np.random.default_rng(0)
    tensors = {
        "f32": rng.normal(size=(3, 4, 5)).astype(np.float32),
        "f16": rng.normal(size=(2, 7)).astype(np.float16),
        "f64": rng.normal(size=5),
        "i8": rng.integers(-128, 127, (4, 3), np.int8),
        "i16": rng.integers(-9, 9, 6, np.int16),
        "i32": rng.integers(-(2**31), 2**31, 6, np.int32),
        "i64": rng.integers(-(2**62), 2**62, 6, np.int64),
    }
    writer = gguf.GGUFWriter(path, "phi3", endianess=gguf.GGUFEndian.BIG)
    writer.add_uint16("u16", 515)
    writer.add_int64("i64", -(2**40))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 1 / 3)
    writer.add_bool("bool", True)
    writer.add_array("tokens", [f"t{i}" for i in range(200)])
    writer.add_array("scores", [0.5, -1.5])
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
    ):
        write()
    writer.close()
    with GGUFFile(path) as file:
        assert file.byte_order == "big"
        scores = file.metadata["scores"]
        assert scores.tolist() == [0.5, -1.5]
        found = {key: value for key, value in file.metadata.items() if key != "scores"}
        assert found == {
            "general.architecture": "phi3",
            "u16": 515,
            "i64": -(2**40),
            "f32": 0.5,
            "f64": 1 / 3,
            "bool": True,
            "tokens": [f"t{i}" for i in range(200)],
        }
        assert file.metadata["tokens"][64:130:3] == [f"t{i}" for i in range(64, 130, 3)]
        for name, array in tensors.items():
            tensor = file.tensors[name]
            np.testing.assert_array_equal(tensor.dequantize(), array.astype(tensor_dtype(array)))
            assert tensor.data.tobytes() == array.tobytes()
            assert not tensor.data.flags.writeable
            assert tensor.read_rows().tobytes() == array.tobytes()


def tensor_dtype(array: np.ndarray) -> np.dtype:
    return np.dtype(np.float32) if array.dtype == np.float16 else array.dtype


@pytest.mark.parametrize("type", BLOCKS)
def test_quantized_blocks(path, type):
    kind = gguf.GGMLQuantizationType[type]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    big = np.random.default_rng(1).integers(0, 255, (4, 3 * block_bytes), np.uint8)
    fields = big.view(np.dtype(BLOCKS[type]))
    for name in fields.dtype.names:
        if name != "rest":
            fields[name] = np.linspace(0.25, 2, fields.size).reshape(fields.shape)
    tensor = BIG.tensor("t", (3 * block, 4), int(kind))
    path.write_bytes(BIG.gguf([], [tensor], big.tobytes()))
    little_fields = [(n, c.replace(">", "<"), *rest) for n, c, *rest in BLOCKS[type]]
    little = fields.astype(np.dtype(little_fields)).view(np.uint8).reshape(big.shape)
    with GGUFFile(path) as file:
        np.testing.assert_array_equal(file.tensors["t"].data, little)
        np.testing.assert_array_equal(file.tensors["t"].read_rows(1, 3), little[1:3])


def test_types_that_nobody_defined_are_refused_by_name(path):
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.IQ2_XXS]
    tensor = BIG.tensor("t", (block,), int(gguf.GGMLQuantizationType.IQ2_XXS))
    path.write_bytes(BIG.gguf([], [tensor], bytes(block_bytes)))
    with GGUFFile(path) as file, pytest.raises(UnsupportedError, match="IQ2_XXS"):
        file.tensors["t"].read_rows()


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("kind", sorted(gb.CODES))
def test_values_of_every_type(path, version, kind):
    layout = gb.Layout(version, ">")
    low = 0 if gb.CODES[kind] in "BHIQ?" else -1
    path.write_bytes(
        layout.gguf([layout.number("n", kind, 1), layout.numbers("a", kind, [low, 1, 0])])
    )
    with GGUFFile(path) as file:
        assert file.version == version
        assert file.metadata["n"] == 1
        assert type(file.metadata["n"]) in (int, float, bool)
        assert file.metadata["a"].tolist() == [low, 1, 0]
        little = gb.Layout()
        name = little.string("a")
        assert name + file.metadata.encoded("a") == little.numbers("a", kind, [low, 1, 0])


def test_an_alignment_of_its_own(path):
    data = np.arange(4, dtype=">f4").tobytes()
    pairs = [BIG.number("general.alignment", gb.UINT32, 256)]
    path.write_bytes(BIG.gguf(pairs, [BIG.tensor("t", (4,), gb.F32)], data, alignment=256))
    with GGUFFile(path) as file:
        assert file.alignment == 256
        assert file.tensors["t"].dequantize().tolist() == [0, 1, 2, 3]
