"""The pipeline's chunks, straight from the compiled half: their order, bytes, memory and ends."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from ggml_functions import ggml_dequantize, ggml_quantize
from phiggml import _core
from phiggml.errors import FormatError, InputError
from phiggml.pipeline import PipelineSettings, RowConversion
from phiggml.quant import QuantType
from phiggml.recipe import PlannedTensor
from phiggml.source import SourceTensor
from test_process import run

WIDE = 256
Array = npt.NDArray[Any]


def type_id(name: str) -> int:
    return QuantType(name).id


def row_run(
    source: _core.pipeline.RowSource, n_rows: int, *, type: str = "F32", offset: int = 0
) -> _core.pipeline.RowRun:
    return _core.pipeline.RowRun(source=source, offset=offset, n_rows=n_rows, type_id=type_id(type))


def in_memory(x: Array) -> _core.pipeline.RowSource:
    return _core.pipeline.source_of_array(x.reshape(-1).view(np.uint8), "numbers")


def tensor(
    runs: Sequence[_core.pipeline.RowRun],
    type: str,
    *,
    name: str = "t",
    wide: int = WIDE,
    imatrix: npt.NDArray[np.float32] | None = None,
    rows_of_expert: int = 0,
) -> _core.pipeline.Tensor:
    return _core.pipeline.Tensor(
        name=name,
        type_id=type_id(type),
        n_per_row=wide,
        runs=runs,
        imatrix=imatrix,
        rows_of_expert=rows_of_expert,
    )


def pipeline(
    *tensors: _core.pipeline.Tensor,
    threads: int = 2,
    max_memory: int = 1 << 16,
    measure_error: bool = False,
) -> _core.pipeline.Pipeline:
    return _core.pipeline.Pipeline(
        tensors=tensors, threads=threads, max_memory=max_memory, measure_error=measure_error
    )


def pulled(chunks: _core.pipeline.Pipeline) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    while (chunk := chunks.next()) is not None:
        yield chunk


def numbers(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# Bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("max_memory", [1024 + 144, 3000, 20_000, 1 << 20, 1 << 63])
def test_chunks_come_in_order_with_the_bytes_of_ggml(threads: int, max_memory: int) -> None:
    """Four tensors of several runs: converted, by importances of each expert, and copied."""
    x = numbers(60, WIDE)
    imatrix = np.abs(numbers(3, WIDE, seed=1))
    source = in_memory(x)
    row = 4 * WIDE
    runs = [row_run(source, 7), row_run(source, 0), row_run(source, 23, offset=20 * row)]
    taken = np.concatenate([x[:7], x[20:43]])
    experts = [
        ggml_quantize(part, 12, w) for part, w in zip(x.reshape(3, -1, WIDE), imatrix, strict=True)
    ]
    expected = [
        ggml_quantize(taken, type_id("Q4_K"), None).tobytes(),
        np.concatenate(experts).tobytes(),
        b"",
        taken.tobytes(),
        ggml_quantize(taken, type_id("Q3_K"), None).tobytes(),
    ]
    assert type_id("Q4_K") == 12
    chunks = pipeline(
        tensor(runs, "Q4_K"),
        # Two runs that do not end where an expert does.
        tensor(
            [row_run(source, 33), row_run(source, 27, offset=33 * row)],
            "Q4_K",
            imatrix=imatrix,
            rows_of_expert=20,
        ),
        tensor([row_run(source, 0)], "Q4_K"),
        tensor(runs, "F32"),
        tensor(runs, "Q3_K"),
        threads=threads,
        max_memory=max_memory,
    )
    found = [b""] * 5
    places = []
    for place, rows in pulled(chunks):
        places.append(place)
        found[place] += rows.tobytes()
        assert rows.nbytes <= max_memory
    assert places == sorted(places)
    assert found == expected
    reading, converting = chunks.seconds()
    assert reading > 0 and converting > 0
    assert chunks.next() is None
    chunks.close()
    chunks.close()


def test_errors_are_those_of_the_numbers_and_of_quantization_error() -> None:
    x = numbers(40, WIDE)
    x[7] *= 1e-30
    x[9] *= 1e3
    chunks = pipeline(
        tensor([row_run(in_memory(x), 40)], "Q4_K"),
        tensor([row_run(in_memory(x), 40)], "F32"),
        max_memory=20_000,
        measure_error=True,
    )
    found = b"".join(rows.tobytes() for place, rows in pulled(chunks) if place == 0)
    quantized = np.frombuffer(found, np.uint8)
    error = x.astype(np.float64) - ggml_dequantize(quantized, type_id("Q4_K")).reshape(x.shape)
    sums, copied = chunks.error_sums()
    assert sums["squared_error"] == pytest.approx((error**2).sum(), rel=1e-12)
    assert sums["squared_value"] == pytest.approx((x.astype(np.float64) ** 2).sum(), rel=1e-12)
    assert sums["max_abs"] == np.abs(error).max()
    assert copied == dict.fromkeys(copied, 0.0)
    nrmse = (sums["squared_error"] / sums["squared_value"]) ** 0.5
    assert nrmse == pytest.approx(pg.quantization_error(x, "Q4_K").nrmse, rel=1e-12)


@pytest.mark.parametrize("memory", [2000, 10_000, None])
def test_rows_that_do_not_lie_in_files_become_the_same(memory: int | None) -> None:
    """As those of big-endian files: pulled by range, errors added up over many pipelines."""
    x, imatrix = numbers(2, 3, 10, WIDE), np.abs(numbers(6, WIDE, seed=1))
    shapes = {"experts": x.shape, "zeros": (4, WIDE), "copied": (5, WIDE), "flat": (WIDE,)}
    values = {name: x.reshape(-1, WIDE)[: np.prod(s[:-1], dtype=int)] for name, s in shapes.items()}
    values["zeros"] = np.zeros((4, WIDE), np.float32)
    planned = []
    for name, shape in shapes.items():
        type = "F32" if name == "copied" else "Q4_K"
        n_rows = len(values[name])
        nbytes = n_rows * QuantType(type).row_bytes(WIDE)
        planned.append(PlannedTensor(name, shape, "F32", type, n_rows * 4 * WIDE, nbytes))
    settings = PipelineSettings(2, memory, measure_error=True)

    def converted(apart: bool) -> tuple[list[bytes], dict[str, float]]:
        def source(name: str) -> SourceTensor:
            rows = values[name]
            runs = None if apart else (row_run(in_memory(rows), len(rows)),)
            read = lambda start, stop: rows[start:stop].view(np.uint8)  # noqa: E731
            return SourceTensor(name, shapes[name], "F32", read, runs)

        weights = {"experts": imatrix, "flat": imatrix[:1], "copied": imatrix[:1]}
        conversion = RowConversion(
            planned, {name: source(name) for name in shapes}, weights, settings=settings
        )
        found = [b""] * len(planned)
        for chunk in conversion.chunks():
            found[chunk.tensor] += chunk.rows.tobytes()
        assert conversion.read_seconds > 0 and conversion.convert_seconds > 0
        return found, conversion.errors()

    (found, errors), (others, same) = converted(True), converted(False)
    assert found == others
    expected = [
        ggml_quantize(p, 12, w) for p, w in zip(x.reshape(6, 10, WIDE), imatrix, strict=True)
    ]
    assert found[0] == np.concatenate(expected).tobytes()
    assert errors == pytest.approx(same, rel=1e-12)
    assert list(errors) == ["experts", "zeros", "flat"] and errors["zeros"] == 0


# Failures -----------------------------------------------------------------------------------------


def test_what_a_thread_throws_is_raised_in_its_turn() -> None:
    x = numbers(64, WIDE)
    x[40, 3] = np.inf
    good = ggml_quantize(x[:40], type_id("Q8_0"), None).tobytes()
    for threads in (1, 2, 8):
        for kind, first in (("Q8_0", good), ("F32", x[:40].tobytes())):
            chunks = pipeline(
                tensor([row_run(in_memory(x), 64)], kind, name="bad"),
                tensor([row_run(in_memory(x[:40]), 40)], "Q4_K"),
                threads=threads,
                max_memory=3000,
            )
            found = b""
            with pytest.raises(InputError, match=r"^quantize: bad: .*NaN or infinity.*source") as e:
                for _, rows in pulled(chunks):
                    found += rows.tobytes()
            assert "nonfinite" not in str(e.value)
            assert found == first[: len(found)] and len(first) - len(found) < 3000
            assert chunks.next() is None


def test_numbers_that_a_type_cannot_hold_are_refused() -> None:
    """Beyond the kernels' own bounds, where ggml is asked and its blocks are looked at."""
    wide = np.full((4, WIDE), 30_000, np.float32)
    weights = np.full((1, WIDE), 1e25, np.float32)
    (_, rows), *_ = pulled(pipeline(tensor([row_run(in_memory(wide), 4)], "Q4_K")))
    assert rows.tobytes() == ggml_quantize(wide, type_id("Q4_K"), None).tobytes()
    weighted = tensor(
        [row_run(in_memory(wide), 4)], "Q4_K", imatrix=np.ones((1, WIDE), np.float32) * 1e20,
        rows_of_expert=4,
    )  # fmt: skip
    (_, rows), *_ = pulled(pipeline(weighted))
    assert rows.tobytes() == ggml_quantize(wide, 12, np.full(WIDE, 1e20, np.float32)).tobytes()
    for x, type, imatrix, match in (
        (wide * 1e4, "F16", None, "overflow the range of F16"),
        (wide * 1e20, "Q8_0", None, "overflow the range of Q8_0"),
        (wide, "IQ3_S", weights, "overflow the search of IQ3_S"),
        (wide, "Q4_K", -weights, "importances are finite and not negative"),
        (wide, "IQ1_S", None, "needs an importance matrix"),
    ):
        hard = tensor([row_run(in_memory(x), 4)], type, imatrix=imatrix, rows_of_expert=4)
        with pytest.raises(InputError, match=rf"^quantize: t: .*{match}"):
            pipeline(hard).next()


def test_sizes_that_do_not_fit_are_refused_at_once() -> None:
    """Some of them ended the process, or read beyond their arrays."""
    x = numbers(8, WIDE)
    source = in_memory(x)
    ones = np.ones((2, WIDE), np.float32)
    beyond, unsound = "reaches beyond the end of numbers", "cannot become what was planned"
    for made, error, match in (
        (tensor([row_run(source, 9)], "Q4_K"), FormatError, beyond),
        (tensor([row_run(source, 8, offset=4)], "F32"), FormatError, beyond),
        (tensor([row_run(source, 1, offset=2**64 - 8)], "F32"), FormatError, beyond),
        (tensor([row_run(source, 2**62)], "F32"), FormatError, beyond),
        (tensor([row_run(source, 3)], "F32", wide=2**62), InputError, unsound),
        (tensor([row_run(source, -1)], "F32"), InputError, unsound),
        (tensor([row_run(source, 8, type="F64")], "Q4_K", wide=128), InputError, unsound),
        (tensor([row_run(source, 8)], "Q4_K", wide=128), InputError, unsound),
        (
            tensor([row_run(source, 8)], "Q4_K", imatrix=ones, rows_of_expert=3),
            InputError,
            "importances do not fit",
        ),
        (
            tensor([row_run(source, 8)], "Q4_K", imatrix=ones, rows_of_expert=0),
            InputError,
            "importances do not fit",
        ),
        (tensor([row_run(source, 8, type="F64")], "F32", wide=2**40), InputError, "cannot"),
        (tensor([row_run(source, 8)], "Q4_K", wide=WIDE * 128), FormatError, beyond),
    ):
        with pytest.raises(error, match=match):
            pipeline(made)
    with pytest.raises(InputError, match="one row of it takes 1168 bytes"):
        pipeline(tensor([row_run(source, 8)], "Q4_K"), max_memory=1167)
    whole = tensor([row_run(source, 8)], "Q4_K", imatrix=ones, rows_of_expert=2**62)
    assert sum(rows.nbytes for _, rows in pulled(pipeline(whole))) == 8 * 144
    assert pipeline().next() is None
    assert PipelineSettings(2, 2**80).memory == 2**64 - 1


def test_integers_and_doubles_are_only_copied() -> None:
    doubles = np.full((4, WIDE), np.nan)
    chunks = pipeline(
        tensor([row_run(in_memory(doubles), 4, type="F64")], "F64"),
        tensor([row_run(in_memory(doubles), 32, type="I8")], "I8"),
    )
    found = [b"", b""]
    for place, rows in pulled(chunks):
        found[place] += rows.tobytes()
    assert found == [doubles.tobytes(), doubles.tobytes()[: 32 * WIDE]]


# Memory -------------------------------------------------------------------------------------------


def own_memory() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))


def hole(path: Path, nbytes: int) -> _core.pipeline.RowSource:
    with path.open("w+b") as file:
        try:
            file.truncate(nbytes)
        except OSError:
            pytest.skip("no such large files here")
        return _core.pipeline.source_of_file(file.fileno(), path.name)


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Four terabytes, a hole, in chunks of one row: a list of them would take 20 GB."""
    wide, n_rows = 4096, (1 << 42) // (2 * 4096)
    source = hole(tmp_path / "large", 1 << 42)
    before, started = own_memory(), time.perf_counter()
    large = tensor([row_run(source, n_rows, type="F16")], "Q8_0", wide=wide)
    chunks = pipeline(large, max_memory=20_000)
    for _ in range(3):
        chunk = chunks.next()
        assert chunk is not None and not chunk[1].any()
    chunks.close()
    assert time.perf_counter() - started < 5
    assert own_memory() - before < 32 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_tensors_of_several_types_share_the_memory(tmp_path: Path) -> None:
    """What copies need of a chunk and what converting needs of it came on top of each other."""
    budget = 192 << 20
    source = hole(tmp_path / "hole", 1 << 28)
    runs = [row_run(source, (1 << 28) // 8192, type="F16")]
    before, most = own_memory(), 0
    chunks = pipeline(
        tensor(runs, "F16", wide=4096), tensor(runs, "Q8_0", wide=4096), max_memory=budget
    )
    for n, _ in enumerate(pulled(chunks)):
        time.sleep(0.1 if n % 16 == 1 else 0)  # all that there may be are filled meanwhile
        most = max(most, own_memory() - before)
    # Beside the rows each thread has the numbers of a piece, and a stack.
    assert budget // 2 < most <= budget + (8 << 20), most


def test_arrays_outlive_their_pipeline() -> None:
    x = numbers(64, WIDE)
    chunks = pipeline(tensor([row_run(in_memory(x), 64)], "F32"), max_memory=4000)
    kept = [rows for _, rows in pulled(chunks)]
    del chunks
    assert len(kept) > 20
    assert b"".join(rows.tobytes() for rows in kept) == x.tobytes()
    starts = sorted(rows.ctypes.data for rows in kept)
    assert all(b - a >= kept[0].nbytes for a, b in pairwise(starts))


# Ends ---------------------------------------------------------------------------------------------


def test_closing_while_it_runs_and_while_another_waits() -> None:
    x = numbers(2048, WIDE)
    source = in_memory(x)
    for kept in range(12):
        chunks = pipeline(tensor([row_run(source, 2048)], "Q4_K"), threads=4, max_memory=1 << 20)
        for _ in range(kept % 4):
            assert chunks.next() is not None
        if kept < 8:
            closer = threading.Thread(target=chunks.close)
            closer.start()
            for _ in pulled(chunks):
                pass
            closer.join()
        elif kept < 10:
            chunks.close()
        del chunks


def test_the_process_ends_while_chunks_are_on_their_way(tmp_path: Path) -> None:
    """Threads that had ended a chunk waited for ever to begin the next, and closing for them."""
    run(
        """
        from phiggml import _core
        from phiggml.quant import QuantType
        with open(path, "wb") as file:
            file.truncate(1 << 28)
        with open(path, "rb") as file:
            source = _core.pipeline.source_of_file(file.fileno(), path)
        types = [QuantType(name).id for name in ("F16", "IQ3_S", "Q8_0")]
        def begun(to, memory):
            rows = _core.pipeline.RowRun(source=source, offset=0, n_rows=1 << 15, type_id=types[0])
            tensor = _core.pipeline.Tensor(
                name="t", type_id=to, n_per_row=4096, runs=[rows], imatrix=None, rows_of_expert=0)
            return _core.pipeline.Pipeline(
                tensors=[tensor], threads=2, max_memory=memory, measure_error=False)
        def pulled(pipeline):
            try:
                while pipeline.next() is not None:
                    yield
            finally:
                pipeline.close()
        def last():
            try:
                while left[0].next() is not None:
                    pass
                os._exit(3)
            except pg.SessionError as error:
                assert "as the process ends" in str(error)
            late = begun(types[2], 1 << 20)  # who ends the process may go on
            assert late.next() is not None
            late.close()
        left = [begun(to, 1 << 26) for to in types[1:]]
        half = pulled(begun(types[1], 1 << 26))
        next(half)
        signal.alarm(20)
        """,
        tmp_path / "hole",
    )


def test_a_forked_child_is_told_and_ends(tmp_path: Path) -> None:
    run(
        """
        from phiggml.pipeline import PipelineSettings, RowConversion
        from phiggml.recipe import PlannedTensor
        from phiggml.source import SourceTensor
        from phiggml import _core
        x = np.ones((4096, 256), np.float32)
        source = _core.pipeline.source_of_array(x.reshape(-1).view(np.uint8), "x")
        rows = _core.pipeline.RowRun(source=source, offset=0, n_rows=4096, type_id=0)
        planned = [PlannedTensor("t", (4096, 256), "F32", "Q8_0", x.nbytes, 4096 * 272)]
        conversion = RowConversion(
            planned, {"t": SourceTensor("t", (4096, 256), "F32", None, (rows,))}, {},
            settings=PipelineSettings(2, 1 << 18, measure_error=True))
        chunks = conversion.chunks()
        kept = [next(chunks), next(chunks)]
        def pull():
            try:
                next(chunks)
                os._exit(3)
            except pg.SessionError as error:
                assert "forked" in str(error)
        forked(pull)
        forked(chunks.close)
        def leave():
            global chunks, kept
            del chunks, kept
        forked(leave)
        forked(lambda: pg.quantize(x, "Q8_0", threads=2))
        kept += chunks
        assert sum(chunk.rows.nbytes for chunk in kept) == 4096 * 272
        """,
        tmp_path,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="others count threads elsewhere")
def test_without_threads_who_asks_does_the_work(tmp_path: Path) -> None:
    run(
        """
        from phiggml import _core
        x = np.random.default_rng(0).standard_normal((512, 256), np.float32)
        expected = pg.quantize(x, "Q4_K", threads=1).data.tobytes()
        source = _core.pipeline.source_of_array(x.reshape(-1).view(np.uint8), "x")
        rows = _core.pipeline.RowRun(source=source, offset=0, n_rows=512, type_id=0)
        tensor = _core.pipeline.Tensor(
            name="t", type_id=12, n_per_row=256, runs=[rows], imatrix=None, rows_of_expert=0)
        if os.getuid() == 0:
            os.setuid(65534)  # root has as many threads as it wants
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        n_threads = len(os.listdir("/proc/self/task"))
        pipeline = _core.pipeline.Pipeline(
            tensors=[tensor], threads=3, max_memory=1 << 15, measure_error=False)
        found = []
        while (chunk := pipeline.next()) is not None:
            found.append(chunk[1].tobytes())
        assert len(found) > 8 and b"".join(found) == expected
        assert len(os.listdir("/proc/self/task")) == n_threads
        """,
        tmp_path,
    )
