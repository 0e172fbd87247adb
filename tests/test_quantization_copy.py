"""Tensors that keep their type: every number of the type, and every one that is none."""

from __future__ import annotations

from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from phiggml.errors import InputError
from phiggml.quantization import QuantizeOptions, SourceModel, SourceTensor, WriteJob, write_model

NAME = "blk.0.ffn_up.weight"
# Bits of the exponent and of the fraction.
TYPES = {"F32": (8, 23), "F16": (5, 10), "BF16": (8, 7)}
BITS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}


def write(path: Path, type: str, bits: npt.NDArray[np.unsignedinteger], memory: int | None) -> None:
    """A model of one tensor that becomes a file of the same type."""

    def read(start: int, stop: int) -> npt.NDArray[np.uint8]:
        return bits[start:stop].view(np.uint8)

    source = SourceModel(
        "phi3", {"phi3.block_count": 1}, [SourceTensor(NAME, bits.shape, type, read)]
    )
    job = WriteJob(options=QuantizeOptions(max_memory=memory), overwrite=True)
    write_model(source, path, type, job=job)


@pytest.mark.parametrize("type", ["F16", "BF16"])
@pytest.mark.parametrize("memory", [None, 4096])
def test_every_finite_number_of_16_bits_is_copied(
    type: str, memory: int | None, tmp_path: Path
) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    numbers = every.view(np.float16 if type == "F16" else ml_dtypes.bfloat16)
    with np.errstate(invalid="ignore"):
        bits = every[np.isfinite(numbers)].reshape(-1, 64)
    write(tmp_path / "out.gguf", type, bits, memory)
    (tensor,) = gguf.GGUFReader(tmp_path / "out.gguf").tensors
    assert tensor.data.tobytes() == bits.tobytes()


@pytest.mark.parametrize("type", TYPES)
def test_what_is_not_finite_is_refused_among_any_others(type: str, tmp_path: Path) -> None:
    exponent, fraction = TYPES[type]
    sign = 1 << (exponent + fraction)
    infinity = sign - (1 << fraction)
    worst = [infinity, infinity + 1, sign - 1, infinity | sign, (infinity + 1) | sign, 2 * sign - 1]
    largest = infinity - 1
    for background in (0, sign, largest, largest | sign):
        bits = np.full((3, 64), background, BITS[type])
        write(tmp_path / "out.gguf", type, bits, None)
        for bad in worst:
            bits[1, 63] = bad
            with pytest.raises(InputError, match=rf"{NAME}: .*NaN or infinity"):
                write(tmp_path / "bad.gguf", type, bits, None)
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_rows_larger_than_a_piece_are_copied(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 0x7F80, (3, 3 << 20), np.uint16)
    write(tmp_path / "out.gguf", "BF16", bits, None)
    (tensor,) = gguf.GGUFReader(tmp_path / "out.gguf").tensors
    assert tensor.data.tobytes() == bits.tobytes()


def test_a_copy_needs_memory_for_a_row_alone(tmp_path: Path) -> None:
    bits = np.zeros((4, 64), np.uint16)
    write(tmp_path / "out.gguf", "BF16", bits, 128)
    with pytest.raises(InputError, match="one row of it takes 128 bytes"):
        write(tmp_path / "none.gguf", "BF16", bits, 127)
