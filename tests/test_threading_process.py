"""What many threads do with files, arrays, the log and the process, at once."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phiggml as pg
from phiggml.runtime import forward_log
from together import PATIENCE, together


def run(code: str, *arguments: object) -> str:
    """What a child prints, which must end well and say nothing on stderr."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# files and arrays --------------------------------------------------------------------------------


def test_quantizing_models(nano_f16: Path, tmp_path: Path) -> None:
    def quantize(type: str, i: int) -> bytes:
        out = tmp_path / f"{type}-{i}.gguf"
        pg.quantize_model(nano_f16, out, type, threads=3, progress=lambda _: None)
        return out.read_bytes()

    kinds = ("Q4_K_M", "Q8_0", "Q4_K_M")
    first, other, second = together(*[lambda t=t, i=i: quantize(t, i) for i, t in enumerate(kinds)])
    assert first == second == quantize("Q4_K_M", 9) and other == quantize("Q8_0", 9)


def test_one_target(nano_f16: Path, tmp_path: Path) -> None:
    """One of them writes it; the other finds that somebody is at it, or that it is there."""
    out = tmp_path / "out.gguf"
    results = together(*[lambda: pg.quantize_model(nano_f16, out, "Q8_0", threads=2)] * 2)
    errors = [result for result in results if isinstance(result, BaseException)]
    assert len(errors) <= 1 and all(isinstance(error, OSError) for error in errors), errors
    assert [file.name for file in tmp_path.iterdir()] == ["out.gguf"]


def test_quantizing_arrays() -> None:
    """The first of each type makes tables that the others share."""
    x = np.random.default_rng(0).standard_normal((64, 512), np.float32)
    weights = np.ones(512, np.float32)
    types = ("Q4_K", "IQ4_XS", "IQ3_XXS", "IQ1_M", "TQ1_0")

    def quantize() -> list[bytes]:
        arrays = [pg.quantize(x, type, imatrix=weights, threads=2) for type in types]
        return [a.data.tobytes() + a.dequantize().tobytes() for a in arrays]

    first, *others = together(*[quantize] * 3)
    assert len(first) == len(types) and all(other == first for other in others)


def test_a_file_is_closed_while_others_read_it(nano_f16: Path) -> None:
    with pg.GGUFFile(nano_f16) as file:
        truth = {name: tensor.dequantize().sum() for name, tensor in file.tensors.items()}
    for _ in range(5):
        file = pg.GGUFFile(nano_f16)
        tensors = dict(file.tensors)

        def read(file: pg.GGUFFile = file, tensors: Any = tensors) -> None:
            for name, tensor in tensors.items():
                assert tensor.dequantize().sum() == truth[name]
            list(file.metadata.items())

        for result in together(read, read, file.close):
            assert result is None or isinstance(result, pg.InputError), result


# the process -------------------------------------------------------------------------------------


def test_each_hears_of_its_own_faults(tmp_path: Path, nano_f16: Path) -> None:
    names = ("catlike", "doglike")
    for name in names:
        with pg.GGUFFile(nano_f16) as file, pg.GGUFWriter(tmp_path / name) as writer:
            for key in file.metadata:
                writer.metadata[key] = file.metadata.exact(key)
            writer.metadata["tokenizer.ggml.pre"] = name
            writer.metadata["tokenizer.ggml.model"] = "gpt2"
            writer.metadata["tokenizer.ggml.merges"] = ["a b"]
            for tensor in file.tensors.values():
                writer.add_tensor(tensor.name, tensor.data, tensor.type)

    def load(name: str) -> set[str]:
        said = set()
        for _ in range(20):
            with pytest.raises(pg.FormatError) as error:
                pg.Model(tmp_path / name)
            said.add(str(error.value))
        return said

    for result, name in zip(together(*[lambda n=n: load(n) for n in names]), names, strict=True):
        [sentence] = result
        assert f"'{name}'" in sentence and "/proc/" not in sentence


def test_the_log(nano_f16: Path) -> None:
    """Each line comes once, whoever takes it; a handler may use the library."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            if len(lines) % 100 == 0:
                pg.devices()

    logger, handler = logging.getLogger("phiggml"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    done = threading.Event()

    def take() -> None:
        while not done.is_set():
            forward_log()
            time.sleep(0.001)

    def load() -> None:
        for _ in range(3):
            pg.Model(nano_f16).close()

    def named() -> int:
        return sum("general.architecture" in line for line in lines)

    def load_all() -> list[Any]:
        try:
            return together(load, load)
        finally:
            done.set()

    try:
        pg.Model(nano_f16).close()
        n_each = named()
        assert n_each > 0
        assert together(take, take, load_all) == [None, None, [None, None]]
        forward_log()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert named() == 7 * n_each


def test_backends_are_loaded_once() -> None:
    code = """
import threading
import phiggml as pg
found = []
barrier = threading.Barrier(6)
def ask():
    barrier.wait()
    found.append([device.name for device in pg.devices()])
threads = [threading.Thread(target=ask) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(found), len(found[0]) == len(set(found[0])), all(names == found[0] for names in found))
"""
    assert run(code) == "6 True True\n"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_child_of_a_fork_during_a_call(nano_f16: Path, threads: int) -> None:
    """It has the session that another thread was using, and may do nothing with it but close it."""
    code = """
import os, signal, sys, threading, time
import phiggml as pg
model = pg.Model(sys.argv[1])
session = pg.Session(model, n_ctx=4096, threads=int(sys.argv[2]))
thread = threading.Thread(target=session.eval, args=([5] * 4000,))
thread.start()
while True:
    try:
        session.tokens
        time.sleep(0.001)
    except pg.SessionError:  # it is at work
        break
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            session.eval([5])
            os._exit(7)
        except pg.SessionError as error:
            assert "made before this process was forked off" in str(error), error
        with pg.Session(model, n_ctx=64, threads=1) as other:
            assert len(other.eval([5])) == model.n_vocab
        session.close()
        del session, other
        os._exit(0)
    children.append(child)
statuses = [os.waitpid(child, 0)[1] for child in children]
thread.join()
session.close()
assert statuses == [0, 0, 0], statuses
"""
    run(code, nano_f16, threads)
