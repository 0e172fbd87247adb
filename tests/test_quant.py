"""Arrays to and from quantized blocks: bytes against ggml's own, numbers against numpy decoders."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from ggml_functions import ggml, ggml_quantize

TYPES = [str(type) for type in pg.quant_types()]
PIECE = 1 << 17
DEQUANTIZED_PIECE = 1 << 18
"""Numbers in the pieces that threads share (csrc/quant.cpp)."""

# Error of a round trip of N(0, 1), as nrmse: what llama.cpp b11549 reaches, plus 3%. TQ1_0, TQ2_0,
# Q1_0 and Q2_0 are for weights that were trained for them.
NRMSE = {
    "F32": 0, "F16": 0.000214, "BF16": 0.00170, "Q8_0": 0.00553, "Q6_K": 0.0182, "Q5_K": 0.0372,
    "Q5_1": 0.0389, "Q5_0": 0.0441, "Q4_K": 0.0736, "IQ4_NL": 0.0785, "IQ4_XS": 0.0790,
    "Q4_1": 0.0810, "Q4_0": 0.0886, "NVFP4": 0.0980, "MXFP4": 0.118, "Q3_K": 0.155,
    "IQ3_S": 0.171, "IQ3_XXS": 0.221, "IQ2_S": 0.273, "Q2_K": 0.305, "IQ2_XS": 0.336,
    "IQ2_XXS": 0.375, "IQ1_S": 0.528, "IQ1_M": 0.595, "Q1_0": 0.618, "Q2_0": 0.744,
    "TQ1_0": 0.840, "TQ2_0": 0.840,
}  # fmt: skip


def normal(*shape: int, seed: int = 1) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def importances(n: int, seed: int = 2) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0.01, 4, n).astype(np.float32)


def required_importances(type: str, n: int) -> npt.NDArray[np.float32] | None:
    return importances(n) if pg.QuantType(type).requires_imatrix else None


def q1_0(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """An f16 scale, then 128 signs, least significant bit first."""
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return np.where(np.unpackbits(blocks[:, 2:], axis=1, bitorder="little"), scale, -scale)


def q2_0(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """An f16 scale, then 64 codes of 2 bits for -1, 0, 1, 2, least significant first."""
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    codes = blocks[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
    return (codes.reshape(len(blocks), 64).astype(np.float32) - 1) * scale


def decode(data: npt.NDArray[np.uint8], type: pg.QuantType) -> npt.NDArray[np.float32]:
    """Blocks decoded by the gguf package's numpy code, or by numpy alone."""
    if type == "F16":
        return data.view(np.float16).astype(np.float32)
    if type == "F32":
        return data.view(np.float32)
    if type in ("Q1_0", "Q2_0"):
        numbers = (q1_0 if type == "Q1_0" else q2_0)(data.reshape(-1, type.block_bytes))
        return numbers.reshape(*data.shape[:-1], -1)
    decoded: npt.NDArray[np.float32] = gguf.quants.dequantize(
        data, gguf.GGMLQuantizationType(type.id)
    )
    return decoded


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("shape", [(0, 512), (256,), (1, 256), (3, 768), (2, 3, 512), (2, 0, 256)])
def test_bytes_equal_ggmls(type: str, shape: tuple[int, ...]) -> None:
    x, imatrix = normal(*shape), importances(shape[-1])
    id = pg.QuantType(type).id
    if not pg.QuantType(type).requires_imatrix:
        assert np.array_equal(pg.quantize(x, type).data, ggml_quantize(x, id, None))
    weighted = pg.quantize(x, type, imatrix=imatrix)
    assert np.array_equal(weighted.data, ggml_quantize(x, id, imatrix))
    assert weighted.shape == shape and weighted.type == type


@pytest.mark.parametrize("type", TYPES)
def test_bytes_do_not_depend_on_pieces_and_threads(type: str) -> None:
    x, imatrix = normal(175, 768), importances(768)
    assert x.size > PIECE and PIECE % 768
    expected = ggml_quantize(x, pg.QuantType(type).id, imatrix)
    for threads in (1, 2):
        assert np.array_equal(pg.quantize(x, type, imatrix=imatrix, threads=threads).data, expected)
    if not pg.QuantType(type).requires_imatrix:
        expected = ggml_quantize(x, pg.QuantType(type).id, None)
        assert np.array_equal(pg.quantize(x, type, threads=2).data, expected)


@pytest.mark.parametrize("type", TYPES)
def test_bytes_of_rows_longer_than_a_piece(type: str) -> None:
    x, imatrix = normal(2, PIECE + 256), importances(PIECE + 256)
    expected = ggml_quantize(x, pg.QuantType(type).id, imatrix)
    assert np.array_equal(pg.quantize(x, type, imatrix=imatrix, threads=2).data, expected)


@pytest.mark.parametrize("type", TYPES)
def test_dequantize_equals_numpy_decoders(type: str) -> None:
    """Exactly: decoding multiplies and adds once or twice, in one order."""
    t = pg.QuantType(type)
    quantized = pg.quantize(normal(4, 1024), type, imatrix=importances(1024)).data
    # Random bytes reach every grid point, sign and scale; some scales are NaN or infinite.
    random = np.random.default_rng(3).integers(0, 256, (40, t.row_bytes(1024)), dtype=np.uint8)
    for data in (quantized, random):
        with np.errstate(all="ignore"):
            expected = decode(data, t)
        for threads in (1, 2):
            assert np.array_equal(
                pg.dequantize(data, type, threads=threads), expected, equal_nan=True
            )
    assert np.isfinite(pg.dequantize(quantized, type)).all()


@pytest.mark.parametrize("type", TYPES)
def test_dequantize_does_not_depend_on_pieces(type: str) -> None:
    t = pg.QuantType(type)
    row = pg.quantize(normal(1024), type, imatrix=importances(1024))
    many = np.tile(row.data, (521, 1))
    numbers = pg.dequantize(many, type, threads=2)
    assert numbers.size > 2 * DEQUANTIZED_PIECE and DEQUANTIZED_PIECE % t.block_size == 0
    assert (numbers == row.dequantize()).all()


@pytest.mark.parametrize(("type", "dtype"), [("F16", np.float16), ("BF16", ml_dtypes.bfloat16)])
def test_halves_round_as_numpys(type: str, dtype: Any) -> None:
    """Equal bytes for random bit patterns: nearest, ties to even, denormals kept."""
    bits = np.random.default_rng(4).integers(0, 2**32, 1 << 16, dtype=np.uint32)
    bits[::2] &= 0xFFFFF000  # halfway between two float16, or a float16
    bits[1::4] &= 0xFFFF8000
    x = bits.view(np.float32)
    x = x[np.isfinite(x) & (np.abs(x) < (65504 if type == "F16" else 3e38))]
    assert x.size > 30000
    with np.errstate(under="ignore"):
        expected = x.astype(dtype)
    assert np.array_equal(pg.quantize(x, type).data, expected.view(np.uint8))


@pytest.mark.parametrize("type", TYPES)
def test_round_trip_error(type: str) -> None:
    x = normal(8, 2048)
    error = pg.quantization_error(x, type, imatrix=required_importances(type, 2048))
    assert error.nrmse <= NRMSE[type]
    assert error.nrmse >= NRMSE[type] / 1.1


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_quantization_error_equals_numpy_formulas(type: str, weighted: bool) -> None:
    """Within 1e-12 relative: sums of float64, taken in another order."""
    x = normal(68, 1024, seed=6)
    imatrix = importances(1024) if weighted else required_importances(type, 1024)
    before = x.astype(np.float64)
    after = pg.quantize(x, type, imatrix=imatrix).dequantize(dtype=np.float64)
    error = pg.quantization_error(x, type, imatrix=imatrix, threads=2)
    rmse = np.sqrt(np.mean((before - after) ** 2))
    lengths = np.linalg.norm(before) * np.linalg.norm(after)
    assert error.rmse == pytest.approx(rmse, rel=1e-12)
    assert error.nrmse == pytest.approx(rmse / np.sqrt(np.mean(before**2)), rel=1e-12)
    assert error.max_abs == np.abs(before - after).max()
    assert error.cosine == pytest.approx(np.vdot(before, after) / lengths, rel=1e-12)
    assert error.bits_per_weight == pg.QuantType(type).bits_per_weight


def test_quantization_error_of_zeros() -> None:
    error = pg.quantization_error(np.zeros(256, np.float32), "Q4_K")
    assert (error.rmse, error.nrmse, error.max_abs, error.cosine) == (0, 0, 0, 1)


@pytest.mark.parametrize("type", TYPES)
def test_facts_equal_the_gguf_packages(type: str) -> None:
    t = pg.QuantType(type.lower())
    assert t == type == t.name and isinstance(t, str) and t.can_quantize and t.can_dequantize
    # Younger than gguf 0.19: 64 numbers in a half and 16 bytes.
    member = getattr(gguf.GGMLQuantizationType, type, None)
    sizes = (64, 18) if type == "Q2_0" else gguf.GGML_QUANT_SIZES[member]
    assert (t.block_size, t.block_bytes) == sizes
    assert t.id == (42 if type == "Q2_0" else member)
    assert t.bits_per_weight == 8 * sizes[1] / sizes[0]
    assert t.row_bytes(3 * sizes[0]) == 3 * sizes[1]
    assert t.requires_imatrix == (type in ("IQ2_XXS", "IQ2_XS", "IQ1_S"))
    assert t.row_bytes(512) == ggml().ggml_row_size(t.id, 512)


def test_types_are_listed_and_pickle() -> None:
    assert len(TYPES) == len(set(TYPES)) == 28
    assert {"Q8_1", "Q8_K", "I8", "F64"}.isdisjoint(TYPES)
    for type in pg.quant_types():
        again = pickle.loads(pickle.dumps(type))
        assert again == type and again.id == type.id and str(copy.deepcopy(type)) == type
    assert repr(pg.QuantType("q4_k")) == "QuantType('Q4_K')"


LAYOUTS: dict[str, Callable[[npt.NDArray[np.float32]], Any]] = {
    "float16": lambda x: x.astype(np.float16),
    "float64": lambda x: x.astype(np.float64),
    "longdouble": lambda x: x.astype(np.longdouble),
    "bfloat16": lambda x: x.astype(ml_dtypes.bfloat16),
    "big-endian bfloat16": lambda x: x.astype(np.dtype(ml_dtypes.bfloat16).newbyteorder(">")),
    "big-endian float32": lambda x: x.astype(">f4"),
    "big-endian float64": lambda x: x.astype(">f8"),
    "big-endian float16": lambda x: x.astype(">f2"),
    "every second column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "negative strides": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "Fortran order": np.asfortranarray,
    "zero stride": lambda x: np.broadcast_to(x[:1], x.shape),
    "read-only": lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
    "unaligned": lambda x: np.frombuffer(b"\0" + x.tobytes(), np.float32, offset=1).reshape(
        x.shape
    ),
    "lists of float": lambda x: x.tolist(),
    "memoryview": memoryview,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("type", ["Q4_K", "F32"])
def test_layouts_mean_what_numpy_means(layout: str, type: str) -> None:
    x = LAYOUTS[layout](normal(6, 512, seed=7))
    plain = np.ascontiguousarray(np.asarray(x).astype(np.float32))
    assert np.array_equal(
        pg.quantize(x, type).data, ggml_quantize(plain, pg.QuantType(type).id, None)
    )


def test_layouts_of_imatrix() -> None:
    x, imatrix = normal(2, 512), importances(512)
    expected = pg.quantize(x, "Q4_K", imatrix=imatrix).data
    wide = np.repeat(imatrix, 2).astype(">f8")[::2]
    assert np.array_equal(pg.quantize(x, "Q4_K", imatrix=wide).data, expected)


def test_out_is_filled_and_kept() -> None:
    x = normal(3, 256)
    out = np.empty((3, 144), np.uint8)
    q = pg.quantize(x, "Q4_K", out=out)
    assert np.shares_memory(q.data, out) and out.flags.writeable and not q.data.flags.writeable
    assert np.array_equal(out, pg.quantize(x, "Q4_K").data)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_dequantize_dtype_and_out(dtype: Any) -> None:
    q = pg.quantize(normal(2, 3, 256), "Q6_K")
    expected = q.dequantize().astype(dtype)
    out = np.empty((2, 3, 256), dtype)
    assert pg.dequantize(q, dtype=dtype, out=out) is out
    assert np.array_equal(out, expected)
    assert np.array_equal(q.dequantize(dtype=dtype), expected)
    assert q.dequantize(dtype=dtype).dtype == dtype
    assert np.array_equal(np.asarray(q, dtype=dtype), expected)
    assert np.array_equal(pg.dequantize(q.data, "q6_k", dtype=dtype), expected)


KEYS: list[Any] = [
    0, -1, np.int64(1), slice(1, 3), slice(None, None, -1), (1, 2), (slice(None), 1), [0, 2], [],
    np.array([3, 0]), np.array([True, False, True, False]), np.ones((4, 3), bool), ...,
    (..., 1, slice(None)), (0, ...), None, (None, 1), ([0, 1], [1, 2]), (0, 0, slice(None)), (),
    True,
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_slicing_selects_as_numpy_does(key: Any) -> None:
    q = pg.quantize(normal(4, 3, 64), "Q8_0")
    assert np.array_equal(q[key].dequantize(), q.dequantize()[key])
    assert q[key].shape == q.dequantize()[key].shape and q[key].type == "Q8_0"


def test_quantized_array_is_an_array() -> None:
    q = pg.quantize(normal(4, 64), "Q8_0")
    assert (q.shape, q.nbytes, len(q), q.bits_per_weight) == ((4, 64), 272, 4, 8.5)
    assert repr(q) == "QuantizedArray(shape=(4, 64), type='Q8_0', nbytes=272)"
    assert [row.shape for row in q] == [(64,)] * 4
    assert np.asarray(q).dtype == np.float32
    assert np.array_equal(np.asarray(q), q.dequantize())
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":  # before, copy=False was a wish
        with pytest.raises(ValueError, match="copy=False"):
            np.array(q, copy=False)
    with pytest.raises(ValueError, match="read-only"):
        q.data[0, 0] = 1
    with pytest.raises(TypeError):
        hash(q)
    with pytest.raises(TypeError, match="no length"):
        len(q[0])


def test_quantized_array_keeps_but_does_not_freeze() -> None:
    data = np.zeros((2, 34), np.uint8)
    q = pg.QuantizedArray(data, "q8_0")
    assert np.shares_memory(q.data, data) and data.flags.writeable and q.type == "Q8_0"


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_blocks_of_a_matrix_are_an_array() -> None:
    """numpy.matrix keeps two axes whatever is asked of it."""
    x = normal(2, 256)
    out = np.matrix(np.zeros((2, 144), np.uint8))
    for q in (pg.quantize(x, "Q4_K", out=out), pg.QuantizedArray(out, "Q4_K")):
        assert type(q.data) is np.ndarray and np.shares_memory(q.data, out)
        assert q[0].shape == (256,) and q == pg.quantize(np.matrix(x), "Q4_K")


def test_equality_and_copies() -> None:
    x = normal(4, 64)
    q = pg.quantize(x, "Q8_0")
    for again in (pickle.loads(pickle.dumps(q)), copy.copy(q), copy.deepcopy(q)):
        assert again == q and again.shape == q.shape and not again.data.flags.writeable
    assert q == pg.quantize(x, "Q8_0")
    assert q != pg.quantize(-x, "Q8_0")
    assert q != pg.quantize(x, "Q4_0")
    assert q != q[:2]
    assert q != "Q8_0"
    # The same bytes, of another type of the same size.
    assert pg.quantize(x, "F16") != pg.QuantizedArray(pg.quantize(x, "F16").data, "BF16")
