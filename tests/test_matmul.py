"""Products of quantized arrays, against numpy's in float64 on the dequantized ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg

TYPES = [str(type) for type in pg.quant_types()]
BLOCKS_OF_32 = {
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "NVFP4", "Q1_0", "Q2_0",
}  # fmt: skip

# What rounding x costs, as nrmse of the products of N(0, 1). Measured: F32 1.5e-7, F16 2.2e-4,
# BF16 2.1e-3, 8 bits in blocks of 32 numbers 5.7e-3, of 256 numbers 8.9e-3.
BOUNDS = {"F32": 5e-7, "F16": 3e-4, "BF16": 3e-3}
BOUND_OF_32, BOUND_OF_256 = 8e-3, 1.2e-2


def normal(*shape: int, seed: int = 1) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def quantized(type: str, *shape: int, seed: int = 2) -> pg.QuantizedArray:
    importances = np.ones(shape[-1], np.float32)
    return pg.quantize(normal(*shape, seed=seed), type, imatrix=importances)


def expected(q: pg.QuantizedArray, x: npt.NDArray[Any]) -> Any:
    return np.matmul(q.dequantize(dtype=np.float64), x.astype(np.float64))


def nrmse(found: Any, wanted: Any) -> float:
    return float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(np.square(wanted))))


def in_blocks(x: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float64]:
    """x [n, k] in 8 bits with a scale for each block of a column, as ggml's vectors are."""
    blocks = x.T.reshape(-1, size).astype(np.float64)
    greatest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], 1)
    scale = np.abs(greatest) / 127 if size == 32 else greatest / -127
    codes = np.minimum(np.rint(blocks / scale), 127)
    if size == 32:
        scale = scale.astype(np.float16).astype(np.float64)
    return (codes * scale).reshape(x.T.shape).T


def as_rounded(x: npt.NDArray[np.float32], type: str) -> npt.NDArray[np.float64]:
    if type in ("F32", "F16", "BF16"):
        dtype = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[type]
        return x.astype(dtype).astype(np.float64)
    return in_blocks(x, 32 if type in BLOCKS_OF_32 else 256)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("k", [1, 3, 17])
def test_products_equal_numpys(type: str, k: int) -> None:
    q, x = quantized(type, 96, 1024), normal(1024, k)
    found = q @ x
    bound = BOUNDS.get(type, BOUND_OF_32 if type in BLOCKS_OF_32 else BOUND_OF_256)
    assert found.dtype == np.float32 and found.shape == (96, k)
    assert nrmse(found, expected(q, x)) <= bound
    # All of that is the rounding of x; what is left is float32 sums and ties of rounding (Q4_1
    # and Q5_1 keep sums of blocks in half precision).
    wanted = expected(q, as_rounded(x, type))
    assert nrmse(found, wanted) <= (1e-3 if type in ("Q4_1", "Q5_1") else 2e-4)


@pytest.mark.parametrize("type", ["F32", "Q8_0", "Q4_K"])
@pytest.mark.parametrize(
    ("rows", "x"),
    [
        ((256,), (256,)), ((256,), (256, 3)), ((256,), (2, 256, 3)), ((5, 256), (256,)),
        ((1, 256), (256, 1)), ((5, 256), (256, 9)), ((5, 256), (2, 3, 256, 4)),
        ((2, 5, 256), (256,)), ((2, 5, 256), (256, 3)), ((2, 5, 256), (2, 256, 3)),
        ((2, 1, 5, 256), (3, 256, 2)), ((0, 256), (256,)), ((5, 256), (256, 0)),
        ((2, 0, 256), (2, 256, 3)), ((0, 5, 256), (0, 256, 3)), ((5, 256), (0, 256, 2)),
        ((5, 0), (0,)), ((5, 0), (0, 3)), ((2, 5, 0), (2, 0, 3)), ((300, 512), (512, 40)),
    ],
)  # fmt: skip
def test_shapes_are_those_of_numpy(type: str, rows: tuple[int, ...], x: tuple[int, ...]) -> None:
    q, numbers = quantized(type, *rows), normal(*x)
    wanted = expected(q, numbers)
    for found in (q @ numbers, q.matmul(numbers), np.matmul(q, numbers)):  # type: ignore[call-overload]
        assert found.shape == wanted.shape and found.dtype == np.float32
        assert np.allclose(found, wanted, rtol=0, atol=2.0)  # sums of 256 products are about 16


def test_a_product_of_vectors_is_a_number() -> None:
    q, x = quantized("Q8_0", 64), normal(64)
    found = q @ x
    assert type(found) is np.float32 and found == pytest.approx(expected(q, x), abs=0.2)


LAYOUTS: dict[str, Callable[[npt.NDArray[np.float32]], Any]] = {
    "float16": lambda x: x.astype(np.float16),
    "float64": lambda x: x.astype(np.float64),
    "longdouble": lambda x: x.astype(np.longdouble),
    "bfloat16": lambda x: x.astype(ml_dtypes.bfloat16),
    "big-endian": lambda x: x.astype(">f4"),
    "every second column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "negative strides": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "Fortran order": np.asfortranarray,
    "zero stride": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "unaligned": lambda x: np.frombuffer(b"\0" + x.tobytes(), np.float32, offset=1).reshape(
        x.shape
    ),
    "lists": lambda x: x.tolist(),
    "quantized": lambda x: pg.quantize(x, "F16"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_mean_what_numpy_means(layout: str) -> None:
    x = LAYOUTS[layout](normal(512, 20))
    plain = np.ascontiguousarray(np.asarray(x).astype(np.float32))
    for type in ("Q4_K", "F32"):
        q = quantized(type, 40, 512)
        assert np.array_equal(q @ x, q @ plain)
    assert np.array_equal(q @ np.asarray(x)[:, 3], q @ np.ascontiguousarray(plain[:, 3]))


def test_rows_as_vectors() -> None:
    """(q @ x.T).T is x @ q.T, C-contiguous as numpy's is."""
    q, x = quantized("Q6_K", 48, 256), normal(7, 256)
    found = (q @ x.T).T
    assert found.flags.c_contiguous
    assert nrmse(found, x.astype(np.float64) @ q.dequantize(dtype=np.float64).T) <= BOUND_OF_256


@pytest.mark.parametrize("type", TYPES)
def test_blocks_are_read_at_any_address(type: str) -> None:
    """Slices lie where rows begin; bytes out of a file lie anywhere, and are moved."""
    q, x = quantized(type, 33, 512), normal(512, 2)
    whole = q @ x
    shifted = np.frombuffer(b"\0" + q.data.tobytes(), np.uint8, offset=1).reshape(q.data.shape)
    assert np.array_equal(pg.QuantizedArray(shifted, type) @ x, whole)
    assert np.allclose(q[1:20] @ x, whole[1:20], rtol=1e-4, atol=1e-4)
    assert np.allclose(q[5] @ x, whole[5], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q4_0", "Q5_1", "Q4_K", "IQ4_NL"])
def test_magnitudes_do_not_matter(type: str) -> None:
    """To the last bit: x is scaled by powers of two. Half-precision scales could not hold these."""
    q, x = quantized(type, 40, 256), normal(256, 12)
    factors = np.float32(2.0) ** np.array([-130, -120, -60, -20, -1, 0, 1, 11, 16, 60, 100, 115])
    products = q @ x
    assert np.array_equal(q @ (x * factors)[:, 1:], products[:, 1:] * factors[1:])
    # The numbers of the first column are subnormal themselves.
    assert nrmse((q @ (x * factors))[:, 0] / factors[0], products[:, 0]) <= 1e-2
    assert np.array_equal(q @ np.zeros((256, 9), np.float32), np.zeros((40, 9)))
    assert np.isinf(quantized("F32", 1, 64) @ np.full(64, 3e38, np.float32)).all()


@pytest.mark.parametrize("type", ["F32", "Q8_0", "Q4_K", "IQ2_S"])
@pytest.mark.parametrize("k", [1, 600])
def test_bits_do_not_depend_on_threads(type: str, k: int) -> None:
    q, x = quantized(type, 1500 if k == 1 else 520, 2048 if k == 1 else 256), normal(256, k)
    x = np.tile(x, (8, 1)) if k == 1 else x
    alone = q.matmul(x, threads=1)
    assert nrmse(alone, expected(q, x)) <= BOUND_OF_256
    for threads in (2, 5, None):
        assert np.array_equal(q.matmul(x, threads=threads), alone)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: q.matmul(x, threads=2), range(8)):
            assert np.array_equal(found, alone)


def test_any_bytes_are_blocks() -> None:
    """Random ones reach every code, and scales that are NaN or infinite; rows without are right."""
    rng = np.random.default_rng(3)
    for type in TYPES:
        data = rng.integers(0, 256, (200, pg.QuantType(type).row_bytes(256)), dtype=np.uint8)
        q = pg.QuantizedArray(data, type)
        sound = np.abs(q.dequantize(dtype=np.float64)).max(axis=1) < 1e30
        for x in (normal(256), normal(256, 9)):
            found, wanted = (q @ x)[sound], expected(q[sound], x)
            lengths = np.linalg.norm(q[sound].dequantize(dtype=np.float64), axis=1)
            assert (lengths >= np.abs(found - wanted).T).all(), type


X = np.ones((256, 3), np.float32)
Q = pg.quantize(np.ones((4, 256), np.float32), "Q8_0")


def with_value(value: float) -> npt.NDArray[np.float64]:
    x = np.ones((256, 3))
    x[200, 1] = value
    return x


BAD_CALLS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "too short": (lambda: Q @ X[:255], pg.InputError, r"\(255, 3\).*must be \(256,\)"),
    "turned": (lambda: Q @ X.T, pg.InputError, r"write \(q @ x\.T\)\.T"),
    "short vector": (lambda: Q @ X[:1, 0], pg.InputError, "must be"),
    "0-d": (lambda: Q @ np.float32(1), pg.InputError, "no axes"),
    "number": (lambda: Q @ 2.0, pg.InputError, "no axes"),
    "ints": (lambda: Q @ X.astype(np.int32), pg.InputError, "int32.*only float"),
    "complex": (lambda: Q @ X.astype(np.complex64), pg.InputError, "complex64.*only float"),
    "objects": (lambda: Q @ X.astype(object), pg.InputError, "only float"),
    "text": (lambda: Q @ "x", pg.InputError, "only float"),
    "ragged": (lambda: Q @ [[1.0], [1.0, 2.0]], pg.InputError, "x is no array"),
    "NaN": (lambda: Q @ with_value(np.nan), pg.InputError, "NaN, infinity.*Clean it"),
    "infinity": (lambda: Q @ with_value(-np.inf), pg.InputError, "NaN, infinity"),
    "beyond float32": (lambda: Q @ with_value(1e39), pg.InputError, "beyond float32"),
    "leading axes": (
        lambda: pg.QuantizedArray(np.zeros((2, 4, 272), np.uint8), "Q8_0") @ np.ones((3, 256, 1)),
        pg.InputError,
        r"leading axes of x, \(3,\), do not go with those of the quantized array, \(2,\)",
    ),
    "no threads": (lambda: Q.matmul(X, threads=0), pg.InputError, "threads is 0"),
    "for activations": (
        lambda: pg.QuantizedArray(np.zeros((4, 36), np.uint8), "Q8_1") @ X[:32],
        pg.UnsupportedError,
        "no products for rows of Q8_1",
    ),
    "of integers": (
        lambda: pg.QuantizedArray(np.zeros((4, 256), np.uint8), "I8") @ X,
        pg.UnsupportedError,
        "no products for rows of I8",
    ),
    "other side": (lambda: X.T @ Q, pg.InputError, r"write \(q @ x\.T\)\.T"),
    "other side, list": (lambda: [1.0] * 4 @ Q, pg.InputError, r"x @ q\.dequantize"),  # type: ignore[operator]
    "other side, function": (lambda: np.matmul(X.T, Q), pg.InputError, "different rows"),  # type: ignore[call-overload]
    "out": (lambda: np.matmul(Q, X, out=np.ones((4, 3))), pg.InputError, "without out="),  # type: ignore[call-overload]
}


@pytest.mark.parametrize("call", BAD_CALLS)
def test_bad_calls_say_what_to_do(call: str) -> None:
    function, error, message = BAD_CALLS[call]
    with pytest.raises(error, match=message):
        function()


def test_rows_too_long_for_ggml() -> None:
    """Of numbers that are never there: a stride of 0, and pages that nobody has touched."""
    data = np.zeros((1, 1 << 24, 18), np.uint8).reshape(1, -1)
    x = np.broadcast_to(np.float32(1), 1 << 31)
    with pytest.raises(pg.UnsupportedError, match="2147483648 numbers are longer"):
        pg.QuantizedArray(data, "Q1_0") @ x


def test_other_functions_of_numpy_dequantize() -> None:
    q, x = quantized("Q4_0", 3, 64), normal(3, 64)
    d = q.dequantize()
    assert np.array_equal(x + q, x + d) and np.array_equal(np.add(q, 1), d + 1)
    assert np.array_equal(np.abs(q), np.abs(d))
    assert np.array_equal(np.add.reduce(q), np.add.reduce(d))
    assert np.array_equal(np.dot(q, x.T), d @ x.T)
    with pytest.raises(TypeError):
        np.add(x, 1, out=q)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        np.add.at(q, 0, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="bool"):
        np.add(x, x, out=x.copy(), where=q)  # type: ignore[call-overload]


def test_ctrl_c_ends_a_long_product() -> None:
    q = quantized("IQ2_S", 4096, 256)
    x = np.broadcast_to(np.float32(1), (256, 1 << 16))
    began = 0.0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal began
        began = time.perf_counter()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            q.matmul(x, threads=1)
        assert time.perf_counter() - began < 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


FORKS = """
import os, threading
import numpy as np
import phiggml as pg
q = pg.quantize(np.random.default_rng(1).normal(size=(2000, 2048)), "Q4_K")
x = np.random.default_rng(2).normal(size=2048)
expected = q.matmul(x, threads=2)
stop = threading.Event()
def multiply():
    while not stop.is_set():
        q.matmul(x, threads=2)
thread = threading.Thread(target=multiply)
thread.start()
children = []
for _ in range(10):
    children.append(os.fork())
    if children[-1] == 0:
        os._exit(0 if np.array_equal(q.matmul(x, threads=2), expected) else 1)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
stop.set()
thread.join()
assert codes == [0] * 10, codes
"""


def test_forked_children_multiply() -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", FORKS], check=True, timeout=60, env=environment)
