"""Wrong and hostile array calls. One process of its own makes them all, so that a crash is seen,
and each must have ended there as its case says. Run as a script, this file is that process."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg

Float = npt.NDArray[np.float32]
Call = Callable[[], object]

TYPES = [str(type) for type in pg.quant_types()]
X = np.random.default_rng(1).standard_normal((2, 256)).astype(np.float32)
W = np.ones(256, np.float32)
SENTENCE = re.compile(r"[^\n]+: [^\n]+\.", re.DOTALL)


def spoilt(value: float) -> Float:
    x = X.copy()
    x[1, 77] = value
    return x


def spoilt_imatrix(value: float) -> Float:
    imatrix = W.copy()
    imatrix[9] = value
    return imatrix


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array


def unaligned(*shape: int) -> Float:
    buffer = np.zeros(4 * int(np.prod(shape)) + 1, np.uint8)
    return buffer[1:].view(np.float32).reshape(shape)


def quantizing(x: Any, type: Any = "Q4_K", **settings: Any) -> Call:
    return lambda: pg.quantize(x, type, **settings)


def decoding(data: Any, type: Any = "Q4_K", **settings: Any) -> Call:
    return lambda: pg.dequantize(data, type, **settings)


def indexing(key: Any) -> Call:
    return lambda: pg.quantize(np.zeros((4, 3, 64), np.float32), "F16")[key]


def onto_input() -> object:
    buffer = np.zeros(1024, np.uint8)
    return pg.quantize(buffer.view(np.float32), "Q8_0", out=buffer[:272])


def onto_imatrix() -> object:
    imatrix = np.ones(256, np.float32)
    return pg.quantize(X, "Q4_K", imatrix=imatrix, out=imatrix.view(np.uint8)[:288].reshape(2, 144))


def decoding_onto_input() -> object:
    buffer = np.zeros(1024, np.uint8)
    return pg.dequantize(buffer[:144], "Q4_K", out=buffer.view(np.float32))


def masked(*shape: int) -> Any:
    return np.ma.masked_less(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), 3)


BLOCKS = np.zeros((2, 144), np.uint8)
BIG_ENDIAN_BFLOAT16 = np.dtype(ml_dtypes.bfloat16).newbyteorder(">")

# What raises InputError, and a word that its sentence must hold.
REFUSED: dict[str, tuple[Call, str]] = {
    "0-d": (quantizing(np.float32(1)), "no axes"),
    "Python float": (quantizing(1.5), "no axes"),
    "Q4_K of 200": (quantizing(np.ones((2, 200), np.float32)), "block of 256"),
    "Q8_0 of 33": (quantizing(np.ones(33, np.float32), "Q8_0"), "block of 32"),
    "NVFP4 of 32": (quantizing(np.ones(32, np.float32), "NVFP4"), "block of 64"),
    "Q1_0 of 64": (quantizing(np.ones(64, np.float32), "Q1_0"), "block of 128"),
    "no rows of 200": (quantizing(np.ones((0, 200), np.float32)), "block of 256"),
    **{
        f"{dtype} array": (quantizing(np.ones(256, dtype)), "only float")
        for dtype in ("i1", "u1", "i4", "i8", "bool", "c8", "c16", "S4", "U4", "O", "M8[s]", "V4")
    },
    "float8 array": (quantizing(np.ones(256, ml_dtypes.float8_e5m2)), "only float"),
    "masked array": (quantizing(masked(2, 256)), "masked"),
    "masked imatrix": (quantizing(X, imatrix=masked(256)), "imatrix has masked"),
    "list of int": (quantizing([1] * 256), "only float"),
    "ragged list": (quantizing([[1.0], [1.0, 2.0]]), "no array"),
    "None": (quantizing(None), "only float"),
    "bytes": (quantizing(b"x" * 256), "only float"),
    "beyond float32": (quantizing(np.full(256, 1e300)), "beyond float32"),
    "type None": (quantizing(X, None), "None is unknown"),
    "type ''": (quantizing(X, ""), "unknown"),
    "type Q9_9": (quantizing(X, "Q9_9"), "Known: F32"),
    "type 12": (quantizing(X, 12), "unknown"),
    "type []": (quantizing(X, []), "unknown"),
    "type Q8_K": (quantizing(X, "Q8_K"), "no target"),
    "type I32": (quantizing(X, "I32"), "no target"),
    "type Q4_K_M": (quantizing(X, "Q4_K_M"), "unknown"),
    **{
        f"threads={threads!r}": (quantizing(X, threads=threads), "threads")
        for threads in (0, -1, 10**6, 2**70, True, "2", 1.0)
    },
    "dequantize threads=0": (decoding(BLOCKS, threads=0), "threads"),
    **{
        f"nonfinite={value!r}": (quantizing(X, nonfinite=value), "allow")
        for value in ("x", None, True, "")
    },
    **{
        f"{type} of {value}": (quantizing(spoilt(value), type, imatrix=W), "NaN or infinity")
        for type in TYPES
        for value in (np.nan, np.inf, -np.inf)
    },
    **{
        f"{type} without imatrix": (quantizing(X, type), "importance matrix")
        for type in ("IQ2_XXS", "IQ2_XS", "IQ1_S")
    },
    **{
        f"{type} of N(0, 1e15)": (quantizing(X * np.float32(1e15), type, imatrix=W), "overflow")
        for type in TYPES
        if type not in ("F32", "BF16", "MXFP4", "NVFP4")
    },
    **{
        f"{type} with importances up to 1e38": (
            quantizing(X, type, imatrix=np.geomspace(1e-38, 1e38, 256, dtype=np.float32)),
            "importances up to 1e\\+38 overflow",
        )
        for type in TYPES
        if type.startswith(("IQ1", "IQ2", "IQ3", "Q4_0", "Q3_K", "Q4_K", "IQ4_NL"))
    },
    "F16 of 65520": (quantizing(np.full(256, 65520, np.float32), "F16"), "overflow the range"),
    "BF16 of 3.4e38": (quantizing(np.full(256, 3.4e38, np.float32), "BF16"), "overflow the range"),
    "imatrix too short": (quantizing(X, imatrix=W[:255]), r"float32\[256\]"),
    "imatrix too long": (quantizing(X, imatrix=np.ones(512, np.float32)), r"float32\[256\]"),
    "imatrix of x's shape": (quantizing(X, imatrix=np.ones_like(X)), r"float32\[256\]"),
    "imatrix of int": (quantizing(X, imatrix=np.ones(256, int)), r"float32\[256\]"),
    "imatrix a mapping": (quantizing(X, imatrix={"a": W}), r"float32\[256\]"),
    "imatrix ragged": (quantizing(X, imatrix=[[1.0], [1.0, 2.0]]), "no array"),
    **{
        f"imatrix of {value}": (
            quantizing(X, imatrix=spoilt_imatrix(value)),
            r"imatrix\[9\].*not negative",
        )
        for value in (np.nan, np.inf, -1.0, -1e-30)
    },
    "imatrix beyond float32": (quantizing(X, imatrix=np.full(256, 1e300)), "finite"),
    "out of another shape": (quantizing(X, out=np.empty((2, 143), np.uint8)), "it must be"),
    "out flat": (quantizing(X, out=np.empty(288, np.uint8)), "it must be"),
    "out of int8": (quantizing(X, out=np.empty((2, 144), np.int8)), "it must be"),
    "out a bytearray": (quantizing(X, out=bytearray(288)), "it must be"),
    "out read-only": (quantizing(X, out=read_only(np.empty((2, 144), np.uint8))), "writable"),
    "out not contiguous": (quantizing(X, out=np.empty((2, 288), np.uint8)[:, ::2]), "contiguous"),
    "out over x": (onto_input, "overlaps"),
    "out over imatrix": (onto_imatrix, "overlaps"),
    "dequantize onto its input": (decoding_onto_input, "overlaps"),
    "dequantize float": (decoding(X), "uint8"),
    "dequantize a list": (decoding([0] * 144), "uint8"),
    "dequantize bytes": (decoding(bytes(144)), "uint8"),
    "dequantize 0-d": (decoding(np.uint8(1)), "uint8"),
    "dequantize 0-d array": (decoding(np.array(1, np.uint8)), "whole blocks"),
    "dequantize 143 bytes": (decoding(np.zeros(143, np.uint8)), "144 bytes"),
    "dequantize strided": (decoding(np.zeros((2, 288), np.uint8)[:, ::2]), "ascontiguousarray"),
    "dequantize without type": (decoding(BLOCKS, None), "type="),
    "dequantize as Q8_K": (decoding(np.zeros(292, np.uint8), "Q8_K"), "cannot"),
    "dequantize as I32": (decoding(np.zeros(4, np.uint8), "I32"), "cannot"),
    "dequantize as another type": (decoding(pg.QuantizedArray(BLOCKS, "Q4_K"), "Q5_K"), "not Q5_K"),
    **{
        f"dequantize to {dtype!r}": (decoding(BLOCKS, dtype=dtype), "dtype")
        for dtype in ("int32", "complex64", ">f4", BIG_ENDIAN_BFLOAT16, "nonsense", object, 7)
    },
    "dequantize beyond float16": (
        lambda: pg.quantize(np.full(256, 1e6, np.float32), "Q8_0").dequantize(dtype=np.float16),
        "beyond float16",
    ),
    "dequantize NaN and beyond float16": (
        lambda: pg.QuantizedArray(
            np.array([np.nan, 1e6], np.float32).view(np.uint8), "F32"
        ).dequantize(dtype=np.float16),
        "beyond float16",
    ),
    "dequantize beyond bfloat16": (
        lambda: pg.quantize([3.4e38], "F32").dequantize(dtype=ml_dtypes.bfloat16),
        "beyond bfloat16",
    ),
    "dequantize an array of Q8_K": (
        lambda: pg.QuantizedArray(np.zeros(292, np.uint8), "Q8_K").dequantize(), "Q8_K cannot",
    ),
    "dequantize out shape": (decoding(BLOCKS, out=np.empty((2, 255), np.float32)), "it must be"),
    "dequantize out dtype": (decoding(BLOCKS, out=np.empty((2, 256))), "it must be"),
    "dequantize out read-only": (
        decoding(BLOCKS, out=read_only(np.empty((2, 256), np.float32))),
        "writable",
    ),
    "dequantize out unaligned": (decoding(BLOCKS, out=unaligned(2, 256)), "aligned"),
    "QuantizedArray of floats": (lambda: pg.QuantizedArray(X, "Q4_K"), "uint8"),
    "QuantizedArray of 143": (lambda: pg.QuantizedArray(np.zeros(143, np.uint8), "Q4_K"), "whole"),
    "QuantizedArray of what type": (lambda: pg.QuantizedArray(BLOCKS, "Q4"), "unknown"),
    **{
        f"index {key!r:.40}": (indexing(key), "leading axes")
        for key in (
            (0, 0, 0), (..., 0), (0, 0, slice(0, 2)), (0, 0, 0, 0), (..., None),
            np.ones((4, 3, 128), bool),
        )
    },
    "row of 100": (lambda: pg.QuantType("Q4_K").row_bytes(100), "block of 256"),
    "error of nothing": (lambda: pg.quantization_error(np.ones((0, 256), "f4"), "Q4_K"), "no elem"),
    "error of ints": (lambda: pg.quantization_error(np.ones(256, int), "Q4_K"), "only float"),
    "error of NaN": (lambda: pg.quantization_error(spoilt(np.nan), "Q4_K"), "NaN"),
    "error of 200": (lambda: pg.quantization_error(np.ones(200, "f4"), "Q4_K"), "block of 256"),
}  # fmt: skip


def harmless(make: Callable[[], pg.QuantizedArray]) -> bool:
    """Whether a call was refused by a sentence; otherwise its numbers must be finite."""
    try:
        made = make()
    except pg.InputError as e:
        assert SENTENCE.fullmatch(str(e)), e
        return True
    assert np.isfinite(made.dequantize()).all()
    return False


def extremes(rng: np.random.Generator) -> tuple[Float, Float]:
    """Values and importances of every magnitude that float32 has, in hostile arrangements."""
    shape, n = (2, 512), 512
    m, other = 10.0 ** rng.uniform(-45, 38.5, 2)
    noise = rng.standard_normal(shape)
    x = [
        lambda: noise * m,
        lambda: noise * 10.0 ** rng.uniform(-45, 38, shape),
        lambda: np.full(shape, m),
        lambda: np.where(np.arange(n) == rng.integers(n), m, noise * other),
        lambda: np.where(np.arange(n) % 2, m, -m) * np.ones(shape),
        lambda: rng.choice([0, m, -m, other], shape),
        lambda: rng.choice([m, -other], (2, n // 16)).repeat(16, axis=1),
        lambda: rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32),
    ][rng.integers(8)]()
    weights = [
        lambda: np.ones(n),
        lambda: rng.uniform(0, 1, n) * 10.0 ** rng.uniform(-45, 38),
        lambda: 10.0 ** rng.uniform(-45, 38, n),
        lambda: rng.choice([0, 1e-40, 1, 1e14, 1e38], n),
        lambda: np.where(np.arange(n) == rng.integers(n), 1e38, 0),
        lambda: np.zeros(n),
    ][rng.integers(6)]()
    x = np.clip(np.nan_to_num(np.asarray(x, np.float64)), -3.4e38, 3.4e38)
    return x.astype(np.float32), weights.astype(np.float32)


def survives_extremes(type: str) -> None:
    n_refused = 0
    for seed in range(150):
        x, imatrix = extremes(np.random.default_rng([seed, 3]))
        free = not pg.QuantType(type).requires_imatrix and seed % 3 == 0
        weights = None if free else imatrix
        n_refused += harmless(lambda x=x, w=weights: pg.quantize(x, type, imatrix=w))
    # Types without a scale of half precision reach as far as float32, NVFP4 by saturating.
    assert n_refused < 150
    assert (n_refused == 0) == (type in ("F32", "BF16", "MXFP4", "NVFP4"))


def survives_nonfinite(type: str) -> None:
    """nonfinite="allow" spoils at most the rows that hold such values, or refuses (grid types)."""
    rng = np.random.default_rng(4)
    weights = W if pg.QuantType(type).requires_imatrix else None
    clean = pg.quantize(X, type, imatrix=weights).data
    for seed in range(60):
        x = X.copy()
        x[1, rng.integers(0, 256, 1 + seed)] = rng.choice([np.nan, np.inf, -np.inf], 1 + seed)
        imatrix = W if seed % 2 else weights
        try:
            made = pg.quantize(x, type, imatrix=imatrix, nonfinite="allow")
        except pg.InputError as e:
            assert re.match("IQ[123]", type) and type in str(e)
            continue
        assert not re.match("IQ[123]", type)
        made.dequantize()
        assert imatrix is not weights or np.array_equal(made.data[0], clean[0])


def accepts_sensible(type: str) -> None:
    """|x| up to 1e4 with importances up to 1e4 is no extreme."""
    rng = np.random.default_rng(5)
    for m in (1e-3, 1, 1e2, 1e4):
        x = (rng.uniform(-1, 1, (4, 512)) * m).astype(np.float32)
        for importance in (1e-4, 1, 1e4):
            imatrix = (rng.uniform(0, 1, 512) * importance).astype(np.float32)
            q = pg.quantize(x, type, imatrix=imatrix)
            assert np.isfinite(q.dequantize()).all()
    zeros = pg.quantize(np.zeros((2, 256), np.float32), type, imatrix=W)
    assert not zeros.dequantize().any()


def survives_random_bytes(type: str) -> None:
    n_bytes = pg.QuantType(type).row_bytes(512)
    data = np.random.default_rng(6).integers(0, 256, (64, n_bytes), dtype=np.uint8)
    assert pg.dequantize(data, type).shape == (64, 512)
    assert pg.dequantize(np.full_like(data, 255), type).shape == (64, 512)


def survives_changes_meanwhile(type: str) -> None:
    """What another thread writes while a kernel reads it has passed no check."""
    rng = np.random.default_rng(7)
    x, imatrix = rng.standard_normal((8, 4096), np.float32), np.ones(4096, np.float32)
    clean, wild = x.copy(), x * np.float32(1e19)
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            for row in range(len(x)):
                x[row] = wild[row]
                x[row] = clean[row]
            imatrix[::5] = np.inf
            imatrix[:] = 1

    with ThreadPoolExecutor(1) as executor:
        executor.submit(change)
        for _ in range(200):
            harmless_or_spoilt(lambda: pg.quantize(x, type, imatrix=imatrix, threads=1))
        done.set()


def harmless_or_spoilt(call: Call) -> None:
    try:
        call()
    except pg.InputError as e:
        assert SENTENCE.fullmatch(str(e)), e


def empty(type: str) -> None:
    for shape in ((0, 256), (2, 0, 256), (0,), (3, 0)):
        q = pg.quantize(np.ones(shape, np.float32), type, imatrix=np.ones(shape[-1], np.float32))
        assert q.shape == shape and q.dequantize().shape == shape


# What must end without an exception.
SURVIVED: dict[str, Call] = {
    f"{what.__name__} {type}": lambda what=what, type=type: what(type)  # type: ignore[misc]
    for type in TYPES
    for what in (
        empty,
        accepts_sensible,
        survives_extremes,
        survives_nonfinite,
        survives_random_bytes,
    )
}


def goes_on_working() -> None:
    q = pg.quantize(X, "Q8_0")
    assert np.abs(q.dequantize() - X).max() < np.abs(X).max() / 127


for searching in ("IQ2_XXS", "IQ3_XXS", "IQ1_M", "Q4_K"):
    SURVIVED[f"changes meanwhile {searching}"] = partial(survives_changes_meanwhile, searching)
SURVIVED["goes on working"] = goes_on_working


def outcome(call: Call) -> tuple[str, str]:
    try:
        call()
    except Exception as e:  # noqa: BLE001 - whatever it is, the parent judges it
        return type(e).__name__, str(e)
    return "", ""


def make_all_calls() -> None:
    np.seterr(all="raise", under="ignore")
    for name, call in {**{n: c for n, (c, _) in REFUSED.items()}, **SURVIVED}.items():
        with np.errstate(all="ignore" if name in SURVIVED else "raise"):
            print(json.dumps([name, *outcome(call)]), flush=True)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[str, str]]:
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__], capture_output=True, text=True, timeout=300
    )
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"ended with {done.returncode} after {last}: {done.stderr}"
    assert done.stderr == ""
    return {name: (kind, text) for name, kind, text in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize(
    ("shape", "dtype", "type"),
    [
        ((1 << 40, 256), np.float32, "Q4_K"), ((1 << 53, 256), np.float16, "F32"),
        ((1 << 61,), np.float16, "F32"), ((0, 1 << 61), np.float16, "F32"),
    ],
)  # fmt: skip
def test_results_that_no_memory_holds(shape: tuple[int, ...], dtype: Any, type: str) -> None:
    with pytest.raises(MemoryError):
        pg.quantize(np.broadcast_to(dtype(1), shape), type)
    with pytest.raises(MemoryError):
        pg.dequantize(np.zeros((1 << 62, 0), np.uint8), type)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_a_sentence(name: str, outcomes: dict[str, tuple[str, str]]) -> None:
    kind, text = outcomes[name]
    assert kind == "InputError", text
    assert re.search(REFUSED[name][1], text) and SENTENCE.fullmatch(text), text


@pytest.mark.parametrize("name", SURVIVED)
def test_survived(name: str, outcomes: dict[str, tuple[str, str]]) -> None:
    assert outcomes[name] == ("", "")


ON_CTRL_C = """
import sys, time
import numpy as np
import phiggml as pg

x = np.random.default_rng(0).standard_normal((1, {n}), dtype=np.float32) * np.float32({scale})
x = np.broadcast_to(x, ({rows}, {n}))
imatrix = np.ones({n}, np.float32)
if {warm}:
    pg.quantize(np.ones(256, np.float32), "{type}", imatrix=np.ones(256, np.float32))
print("begin", flush=True)
try:
    pg.quantize(x, "{type}", imatrix=imatrix)
except KeyboardInterrupt:
    print("stopped", flush=True)
    if {warm}:
        assert pg.quantize(x[..., :256], "Q8_0").nbytes > 0
"""


@pytest.mark.parametrize(
    ("type", "rows", "n", "warm", "scale"),
    [
        ("IQ2_XS", 1 << 17, 4096, True, 1),
        ("IQ2_XS", 1 << 5, 1 << 24, True, 1),
        ("IQ2_S", 1, 256, False, 1),  # while ggml builds its tables
        ("IQ1_S", 1, 256, False, 1e5),  # which our kernel does without, but not of such numbers
    ],
)
def test_ctrl_c_ends_within_a_second(
    type: str, rows: int, n: int, warm: bool, scale: float
) -> None:
    script = ON_CTRL_C.format(type=type, rows=rows, n=n, warm=warm, scale=scale)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "begin\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert process.stdout.readline() == "stopped\n", process.stderr.read()
        assert time.monotonic() - start < 1
        assert process.wait(60) == 0, process.stderr.read()


if __name__ == "__main__":
    make_all_calls()
