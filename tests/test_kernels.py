"""The vectorised kernels give the bytes that ggml's own functions give, whatever the numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import phiggml as pg
from ggml_functions import ggml_dequantize, ggml_quantize
from phiggml import _core

TYPES = [str(type) for type in pg.quant_types() if type != "F32"]
SETS = [name for name in _core.quant.kernel_sets() if name != "ggml"]
Numbers = npt.NDArray[np.float32]
Random = np.random.Generator


@pytest.fixture(params=SETS)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each set of kernels that runs here, in use while a test runs."""
    before = _core.quant.kernel_set()
    _core.quant.use_kernel_set(request.param)
    yield request.param
    _core.quant.use_kernel_set(before)


def signs(random: Random, shape: tuple[int, ...]) -> Numbers:
    return random.choice(np.array([-1, 1], np.float32), shape)


def spread(random: Random, low: float, high: float, shape: tuple[int, ...]) -> Numbers:
    """Magnitudes from 10**low to 10**high of either sign, all decades alike."""
    return (10 ** random.uniform(low, high, shape) * signs(random, shape)).astype(np.float32)


def by_sixteen(values: Numbers) -> Numbers:
    """Each row cut into stretches of 16, each of which is one of the row's values."""
    return np.repeat(values[:, ::16], 16, axis=1)[:, : values.shape[1]]


def far_from_zero(random: Random, shape: tuple[int, ...]) -> Numbers:
    offsets = by_sixteen(signs(random, shape))
    return (offsets + random.uniform(0, 1e-3, shape)).astype(np.float32)


def one_hot(random: Random, shape: tuple[int, ...]) -> Numbers:
    x = np.zeros(shape, np.float32)
    x[np.arange(shape[0]), random.integers(0, shape[1], shape[0])] = spread(
        random, -20, 4, shape[:1]
    )
    return x


def denormals(random: Random, shape: tuple[int, ...]) -> Numbers:
    bits = random.integers(0, 1 << 23, shape, dtype=np.uint32)
    return bits.view(np.float32) * signs(random, shape)


def normal(sigma: float) -> Callable[[Random, tuple[int, ...]], Numbers]:
    return lambda random, shape: random.normal(0, sigma, shape).astype(np.float32)


DISTRIBUTIONS: dict[str, Callable[[Random, tuple[int, ...]], Numbers]] = {
    **{f"normal {sigma:g}": normal(sigma) for sigma in (1e-6, 1e-3, 0.02, 1, 1e3)},
    "uniform": lambda random, shape: random.uniform(-1, 1, shape).astype(np.float32),
    "positive": lambda random, shape: random.uniform(0, 1, shape).astype(np.float32),
    "heavy tails": lambda random, shape: np.clip(
        random.standard_cauchy(shape).astype(np.float32), -1e4, 1e4
    ),
    "all decades": lambda random, shape: spread(random, -44, 4, shape),
    "zeros": lambda random, shape: np.zeros(shape, np.float32),
    "zeros of both signs": lambda random, shape: np.zeros(shape, np.float32) * signs(random, shape),
    "constant": lambda random, shape: np.broadcast_to(
        spread(random, -20, 4, (shape[0], 1)), shape
    ).copy(),
    "one-hot": one_hot,
    "denormals": denormals,
    "ties": lambda random, shape: (
        random.integers(-32, 33, shape).astype(np.float32) * 2.0 ** random.integers(-10, 2)
    ),
    "constant sub-blocks": lambda random, shape: by_sixteen(spread(random, -15, 2, shape)),
    "sub-blocks of zeros": lambda random, shape: (
        by_sixteen(random.integers(0, 2, shape).astype(np.float32))
        * random.normal(0, 1, shape).astype(np.float32)
    ),
    "sub-blocks far from zero": far_from_zero,
    "mostly zeros": lambda random, shape: (
        random.normal(0, 1, shape).astype(np.float32) * (random.uniform(0, 1, shape) < 0.2)
    ),
    "beyond the kernels": normal(1e4),
}


def some_importances(random: Random, n: int) -> Numbers:
    """As they come, squares of activations; and with zeros, all decades, all zero, all one."""
    kind = random.integers(0, 5)
    if kind == 0:
        return np.zeros(n, np.float32)
    if kind == 1:
        return np.ones(n, np.float32)
    if kind == 2:
        return np.abs(spread(random, -12, 10, (n,)))
    squares = (random.normal(0, 1, n) ** 2).astype(np.float32)
    return squares * (random.uniform(0, 1, n) < 0.3) if kind == 3 else squares


def assert_ggmls_bytes(x: Numbers, type: pg.QuantType, imatrix: Numbers | None) -> None:
    found = pg.quantize(x, type, imatrix=imatrix, threads=1).data
    truth = ggml_quantize(x, type.id, imatrix)
    if not np.array_equal(found, truth):
        row, byte = np.argwhere(found != truth)[0]
        raise AssertionError(f"{type}: row {row} of {len(x)}, block {byte // type.block_bytes}")


def check(x: Numbers, type: pg.QuantType, random: Random) -> None:
    """Without importances where the type allows that, and with some."""
    x = np.ascontiguousarray(x, np.float32)
    if not type.requires_imatrix:
        assert_ggmls_bytes(x, type, None)
    imatrix = some_importances(random, x.shape[1])
    try:
        assert_ggmls_bytes(x, type, imatrix)
    except pg.InputError as error:
        assert "overflow" in str(error) and (np.abs(x).max() > 16384 or imatrix.max() > 1e3)


def test_the_cpus_kernels_are_there() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("the CPU's features are read from /proc/cpuinfo")
    flags = cpuinfo.read_text().split()
    assert ("avx512" in SETS) == ({"avx512bw", "avx512vl", "avx512dq"} <= set(flags))
    assert ("avx2" in SETS) == ({"avx2", "f16c"} <= set(flags))


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("distribution", list(DISTRIBUTIONS))
def test_distributions(kernels: str, distribution: str, type: str) -> None:
    quant_type = pg.QuantType(type)
    random = np.random.default_rng(11)
    block = quant_type.block_size
    for n_rows, n in ((1, block), (3, 3 * block), (2, 7 * block), (5, 1024)):
        check(DISTRIBUTIONS[distribution](random, (n_rows, n)), quant_type, random)


@pytest.mark.parametrize("type", TYPES)
def test_long_rows(kernels: str, type: str) -> None:
    random = np.random.default_rng(12)
    for n in (4096, 16384):
        check(DISTRIBUTIONS["normal 0.02"](random, (2, n)), pg.QuantType(type), random)


@st.composite
def some_rows(draw: st.DrawFn, block: int) -> tuple[Numbers, Random]:
    """A few rows of one distribution each, with chosen numbers at chosen places."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    n = block * draw(st.integers(1, max(1, 768 // block)))
    names = draw(st.lists(st.sampled_from(list(DISTRIBUTIONS)), min_size=1, max_size=3))
    x = np.concatenate([DISTRIBUTIONS[name](random, (1, n)) for name in names])
    number = st.floats(-65504, 65504, width=32)
    places = st.lists(st.tuples(st.integers(0, x.size - 1), number), max_size=8)
    for place, value in draw(places):
        x.flat[place] = value
    return x, random


def check_examples(type: str, n_examples: int) -> None:
    quant_type = pg.QuantType(type)

    @settings(
        max_examples=n_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(some_rows(quant_type.block_size))
    def run(example: tuple[Numbers, Random]) -> None:
        x, random = example
        check(x, quant_type, random)

    run()


@pytest.mark.parametrize("type", TYPES)
def test_chosen_numbers(kernels: str, type: str) -> None:
    check_examples(type, 200)


@pytest.mark.slow
@pytest.mark.parametrize("type", TYPES)
def test_many_chosen_numbers(kernels: str, type: str) -> None:
    check_examples(type, 10_000)


@pytest.mark.parametrize("type", TYPES)
def test_any_bytes_dequantize_as_ggmls(kernels: str, type: str) -> None:
    quant_type = pg.QuantType(type)
    random = np.random.default_rng(13)
    for n_blocks in (1, 2, 3, 7, 64, 1001):
        data = random.integers(0, 256, n_blocks * quant_type.block_bytes, dtype=np.uint8)
        found = pg.dequantize(data, type, threads=1)
        truth = ggml_dequantize(data, quant_type.id)
        # NaNs are equal whatever their bits.
        same = (found.view(np.uint32) == truth.view(np.uint32)) | (
            np.isnan(found) & np.isnan(truth)
        )
        assert same.all()


def kernel_set_of(variant: str) -> str:
    """What a new process says that is given this variant."""
    code = (
        "import numpy as np, phiggml as pg; from phiggml import _core\n"
        "try: pg.quantize(np.ones(32, np.float32), 'Q8_0'); print(_core.quant.kernel_set())\n"
        "except pg.DeviceError as e: print(e)"
    )
    environment = os.environ | {"PHIGGML_CPU_VARIANT": variant}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_variant_can_be_forced() -> None:
    assert kernel_set_of("") == _core.quant.kernel_sets()[0]
    assert kernel_set_of("x64") == "ggml"
    if "avx2" in SETS:
        assert kernel_set_of("haswell") == "avx2"
    if "avx512" in SETS:
        assert kernel_set_of("skylakex") == "avx512"
    assert "PHIGGML_CPU_VARIANT=z80: no such CPU variant" in kernel_set_of("z80")
