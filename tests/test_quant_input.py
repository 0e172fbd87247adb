"""Arrays of every float dtype, stride and library, read in place, by many threads at once."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from ggml_functions import ggml_quantize

DTYPES = (np.float32, np.float16, np.float64, ml_dtypes.bfloat16)
Array = npt.NDArray[Any]


def normal(*shape: int, seed: int = 1) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def expected(x: Array, type: str, imatrix: npt.NDArray[np.float32] | None = None) -> Array:
    """ggml's bytes of a contiguous float32 copy."""
    return ggml_quantize(np.array(x, np.float32, order="C"), pg.QuantType(type).id, imatrix)


VIEWS = {
    "plain": lambda x: x,
    "transposed": lambda x: x.transpose(1, 0, 2),
    "every second row, backwards": lambda x: x[:, ::-2],
    "columns backwards": lambda x: x[..., ::-1],
    "Fortran order": np.asfortranarray,
    "a window of columns": lambda x: np.concatenate([x, x, x], axis=-1)[..., 256:-256],
    "broadcast rows": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "broadcast columns": lambda x: np.broadcast_to(x[..., :1], x.shape),
    "one axis of one": lambda x: x[:1, :, None],
    "unaligned": lambda x: (
        np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", list(VIEWS))
def test_views_mean_what_numpy_means(view: str, dtype: Any) -> None:
    x = VIEWS[view](normal(5, 30, 512).astype(dtype))  # more than one piece
    imatrix = np.square(normal(x.shape[-1], seed=2))
    assert np.array_equal(pg.quantize(x, "Q4_K").data, expected(x, "Q4_K"))
    assert np.array_equal(pg.quantize(x, "Q8_0", threads=2).data, expected(x, "Q8_0"))
    weighted = pg.quantize(x, "Q4_0", imatrix=imatrix)
    assert np.array_equal(weighted.data, expected(x, "Q4_0", imatrix))
    copy = np.ascontiguousarray(x).astype(np.float32)
    assert pg.quantization_error(x, "Q4_K") == pg.quantization_error(copy, "Q4_K")


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_strides(dtype: Any) -> None:
    random = np.random.default_rng(3)
    for _ in range(40):
        whole = random.standard_normal((4, 5, 6, 192)).astype(dtype)
        steps = random.choice([-2, -1, 1, 2], 4)
        steps[3] = random.choice([-3, -1, 1, 2, 3])
        x = whole[tuple(slice(None, None, step) for step in steps)]
        x = x.transpose(*random.permutation(3), 3)[..., : x.shape[-1] // 32 * 32]
        assert np.array_equal(pg.quantize(x, "Q5_1").data, expected(x, "Q5_1"))


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_rows_longer_than_a_piece(threads: int) -> None:
    for dtype, step in product(DTYPES, (1, -2)):
        x = normal(2, 300 * 256 * 2).astype(dtype)[:, ::step][:, : 300 * 256]
        imatrix = np.square(normal(x.shape[-1], seed=2))
        for type in ("Q6_K", "Q4_1"):
            found = pg.quantize(x, type, imatrix=imatrix, threads=threads).data
            assert np.array_equal(found, expected(x, type, imatrix))


def test_float64_beyond_float32_is_told_apart_from_infinity() -> None:
    x = np.ones((3, 64))
    x[1, 5] = 1e200
    for nonfinite in ("error", "allow"):
        with pytest.raises(pg.InputError, match="beyond float32"):
            pg.quantize(x, "Q8_0", nonfinite=nonfinite)
    x[1, 5] = np.inf
    with pytest.raises(pg.InputError, match="NaN or infinity"):
        pg.quantize(x[:, ::-1], "Q8_0")
    assert pg.quantize(x, "F32", nonfinite="allow").dequantize()[1, 5] == np.inf


def test_dequantize_to_bfloat16() -> None:
    q = pg.quantize(normal(3, 70_000 // 32 * 32), "Q5_0")
    found = q.dequantize(dtype=ml_dtypes.bfloat16)
    assert found.dtype == ml_dtypes.bfloat16
    truth = q.dequantize().astype(ml_dtypes.bfloat16)
    assert np.array_equal(found.view(np.uint16), truth.view(np.uint16))


def test_numbers_beyond_float16_are_refused() -> None:
    q = pg.quantize(np.array([[65519.0, 1, 2, 3], [70000.0, 0, 0, 0]], np.float32), "F32")
    assert np.isfinite(q[0].dequantize(dtype=np.float16)).all()
    with pytest.raises(pg.InputError, match="beyond float16"):
        q.dequantize(dtype=np.float16)


class DLDevice(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class DLManagedTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("deleter", Deleter),
    )


CODES = {"float32": (2, 32), "float16": (2, 16), "float64": (2, 64), "bfloat16": (4, 16)}
capsule_of = ctypes.pythonapi.PyCapsule_New
capsule_of.restype = ctypes.py_object
capsule_of.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


kept: list[Tensor] = []


class Tensor:
    """What another library has: no array protocol but DLPack's. Gives out one capsule."""

    def __init__(self, array: Array, *, device: int = 1, compact: bool = False) -> None:
        self.released = 0
        self.device = device
        kept.append(self)  # until its consumer lets go, as the protocol asks, and beyond

        def let_go(_: int) -> None:
            self.released += 1

        code, bits = CODES.get(array.dtype.name, (0, 8 * array.itemsize))
        self.array = array
        self.shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        steps = [stride // array.itemsize for stride in array.strides]
        self.strides = (ctypes.c_int64 * array.ndim)(*steps)
        self.managed = DLManagedTensor(
            data=array.ctypes.data - 64,
            device=DLDevice(device, 0),
            ndim=array.ndim,
            dtype=DLDataType(code, bits, 1),
            shape=self.shape,
            strides=None if compact else self.strides,
            byte_offset=64,
            deleter=Deleter(let_go),
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.device, 0)

    def __dlpack__(self) -> Any:
        return capsule_of(ctypes.addressof(self.managed), b"dltensor", None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compact", [True, False])
def test_tensors_are_read_in_place_and_let_go(dtype: Any, compact: bool) -> None:
    x = normal(6, 512).astype(dtype)
    x = x if compact else x[::2, ::-1]
    tensor = Tensor(x, compact=compact)
    assert np.array_equal(pg.quantize(tensor, "Q4_K").data, expected(x, "Q4_K"))
    assert tensor.released == 1


def test_tensors_of_devices_and_of_integers_are_refused() -> None:
    x = normal(2, 64)
    with pytest.raises(pg.InputError, match=r"memory of a device .* x\.cpu\(\)"):
        pg.quantize(Tensor(x, device=2), "Q8_0")
    tensor = Tensor(x.view(np.int32))
    with pytest.raises(pg.InputError, match="no tensor of float16"):
        pg.quantize(tensor, "Q8_0")


class Tracked(Tensor):
    def __dlpack__(self) -> Any:
        raise BufferError("it requires a gradient")


class Newer(Tensor):
    def __dlpack__(self) -> Any:
        return capsule_of(ctypes.addressof(self.managed), b"dltensor_versioned", None)


class Strange(Tensor):
    def __dlpack__(self) -> Any:
        return None


class Nowhere(Tensor):
    __dlpack_device__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Tracked, "it requires a gradient. Pass a numpy array"), (Newer, "incorrect name"),
        (Strange, "invalid PyCapsule"), (Nowhere, "not callable"),
    ],
)  # fmt: skip
def test_a_tensor_that_will_not_be_read(kind: type[Tensor], message: str) -> None:
    with pytest.raises(pg.InputError, match=f"^quantize: x cannot be read in place: .*{message}"):
        pg.quantize(kind(normal(2, 64)), "Q8_0")


def test_a_capsule_is_used_once() -> None:
    tensor = Tensor(normal(2, 64))
    capsule = Tensor.__dlpack__(tensor)
    tensor.__class__ = type("Miser", (Tensor,), {"__dlpack__": lambda _: capsule})
    assert pg.quantize(tensor, "Q8_0").shape == (2, 64) and tensor.released == 1
    with pytest.raises(pg.InputError, match="cannot be read in place"):
        pg.quantize(tensor, "Q8_0")
    assert tensor.released == 1


def sizes(*numbers: int) -> Any:
    return (ctypes.c_int64 * len(numbers))(*numbers)


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "no axes": ({"ndim": 0}, "no axes"),
    "fewer than no axes": ({"ndim": -1}, "no shape"),
    "more axes than numpy has": (
        {"ndim": 65, "shape": sizes(*[1] * 65), "strides": None}, "dimensions",
    ),
    "no shape": ({"shape": None}, "no shape"),
    "no data": ({"data": None, "byte_offset": 0}, "no data"),
    "negative sizes": ({"shape": sizes(-1, 64)}, "no sizes"),
    "too many numbers": ({"shape": sizes(1 << 62, 1 << 62), "strides": None}, "too big"),
    "strides beyond memory": ({"strides": sizes(1 << 62, 1)}, "no sizes"),
    "another device": ({"device": DLDevice(2, 0)}, "memory of a device"),
    "vectors": ({"dtype": DLDataType(2, 32, 2)}, "no tensor of float16"),
}  # fmt: skip


@pytest.mark.parametrize("what", MALFORMED)
def test_capsules_that_are_malformed(what: str) -> None:
    fields, message = MALFORMED[what]
    tensor = Tensor(normal(2, 64))
    for name, value in fields.items():
        setattr(tensor.managed, name, value)
    with pytest.raises(pg.InputError, match=message):
        pg.quantize(tensor, "Q8_0")


def test_an_empty_tensor_needs_no_data() -> None:
    tensor = Tensor(normal(0, 64))
    tensor.managed.data, tensor.managed.byte_offset = None, 0
    assert pg.quantize(tensor, "Q8_0").shape == (0, 64) and tensor.released == 1


def test_out_may_not_overlap_a_tensor() -> None:
    memory = np.zeros((2, 256), np.uint8)
    with pytest.raises(pg.InputError, match="overlaps"):
        pg.quantize(
            Tensor(memory.view(np.float32)), "Q8_0", out=memory.reshape(-1)[:136].reshape(2, 68)
        )


def test_many_threads_at_once_share_the_pool() -> None:
    arrays = [normal(40 + i, 4096, seed=i) for i in range(6)]
    truths = [expected(x, "Q4_K") for x in arrays]

    def work(i: int) -> bool:
        threads = 1 + i % 5
        return np.array_equal(
            pg.quantize(arrays[i % 6], "Q4_K", threads=threads).data, truths[i % 6]
        )

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(work, range(120)))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_threads_are_kept_and_not_started_for_each_call() -> None:
    x = normal(200, 4096)
    pg.quantize(x, "Q8_0", threads=4)
    before = {path.name for path in Path("/proc/self/task").iterdir()}
    for _ in range(20):
        pg.quantize(x, "Q8_0", threads=4)
        pg.dequantize(pg.quantize(x, "F16", threads=3), threads=2)
    after = {path.name for path in Path("/proc/self/task").iterdir()}
    assert len(after - before) <= threading.active_count()


FORKED = """
import os, sys
import numpy as np
import phiggml as pg

x = np.random.default_rng(0).standard_normal((64, 4096), dtype=np.float32)
truth = pg.quantize(x, "Q4_K", threads=1)
assert pg.quantize(x, "Q4_K", threads=3) == truth
for _ in range(20):
    child = os.fork()
    if child == 0:
        os._exit(0 if pg.quantize(x, "Q4_K", threads=3) == truth else 1)
    assert os.waitpid(child, 0)[1] == 0
assert pg.quantize(x, "Q4_K", threads=3) == truth
"""


FORKED_WHILE_BUILDING = """
import os, signal, threading, time
import numpy as np
import phiggml as pg

x = np.ones(256, np.float32)
builds = threading.Thread(target=pg.quantize, args=(x, "IQ3_S"))
builds.start()
time.sleep(0.05)
child = os.fork()
if child == 0:
    signal.alarm(20)
    pg.quantize(x, "Q4_K")
    pg.quantize(x, "IQ3_S")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
builds.join()
"""


def test_a_fork_waits_for_tables_that_are_being_built() -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED_WHILE_BUILDING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_children_have_a_pool_of_their_own() -> None:
    # Python 3.12 on warns of forks beside threads, which is what this is about.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


MEMORY = """
import re, sys
from pathlib import Path
import ml_dtypes, numpy as np
import phiggml as pg

def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

x = np.tile(np.random.default_rng(0).integers(0, 0x4000, 1 << 22, dtype=np.uint16), 128)
x = x.view(ml_dtypes.bfloat16).reshape(-1, 4096)
assert x.nbytes == 1 << 30
pg.quantize(x[:16], "Q4_K")
before = status("VmRSS")
q = pg.quantize(x, "Q4_K")
print(status("VmHWM") - before - q.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status")
def test_a_gigabyte_takes_no_more_than_its_result() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=600, check=True
    )
    assert int(done.stdout) <= 64 << 20


@pytest.mark.parametrize("type", ["Q4_K", "IQ2_S", "IQ4_NL", "Q8_0", "MXFP4"])
def test_results_and_blocks_at_odd_addresses(type: str) -> None:
    x = normal(5, 1024)
    plain = pg.quantize(x, type).data
    memory = np.zeros(plain.nbytes + 1, np.uint8)
    odd = memory[1:].reshape(plain.shape)
    assert odd.ctypes.data % 2 == 1
    assert np.array_equal(pg.quantize(x, type, out=odd).data, plain)
    assert np.array_equal(pg.dequantize(odd, type), pg.dequantize(plain, type))
