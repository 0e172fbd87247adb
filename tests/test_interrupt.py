"""Ctrl-C ends long work within a second: KeyboardInterrupt, nothing under the final name."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import phiggml as pg

NANO = Path(__file__).resolve().parent.parent / "examples" / "phi3-nano"
MOST_SECONDS = 1.0


def interrupted(code: str, folder: Path) -> dict[str, object]:
    """Runs code in a child until it says "started", presses Ctrl-C, and says how it ended."""
    script = textwrap.dedent(
        """
        import json, os, sys, time
        import phiggml as pg
        def started(*_):
            global says
            if says:
                print("started", flush=True)
                says = False
        says, folder = True, sys.argv[1]
        try:
            {code}
            ended = "finished"
        except KeyboardInterrupt:
            ended = "KeyboardInterrupt"
        print(json.dumps({{"ended": ended, "files": sorted(os.listdir(folder))}}), flush=True)
        """
    ).format(code=textwrap.indent(textwrap.dedent(code), " " * 4).strip())
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "started\n"
        time.sleep(0.1)
        start = time.monotonic()
        child.send_signal(signal.SIGINT)
        said: dict[str, object] = json.loads(child.stdout.readline())
        said["seconds"] = time.monotonic() - start
        assert child.wait(timeout=20) == 0
    return said


def check(said: dict[str, object]) -> None:
    assert said["ended"] == "KeyboardInterrupt"
    assert said["files"] == []
    seconds = said["seconds"]
    assert isinstance(seconds, float) and seconds < MOST_SECONDS


@pytest.fixture(scope="module")
def large_gguf(tmp_path_factory: pytest.TempPathFactory, nano_f16: Path) -> Path:
    """phi3-nano with one weight of 16 million numbers, which take seconds to quantize."""
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    rng = np.random.default_rng(0)
    with pg.GGUFFile(nano_f16) as file, pg.GGUFWriter(path) as writer:
        for key in file.metadata:
            writer.metadata[key] = file.metadata[key]
        for tensor in file.tensors.values():
            writer.add_tensor(tensor.name, tensor.dequantize().astype(np.float16))
        large = rng.standard_normal((4096, 4096), np.float32).astype(np.float16)
        writer.add_tensor("blk.0.attn_large.weight", large)
    return path


def test_quantize_model(tmp_path: Path, large_gguf: Path) -> None:
    check(
        interrupted(
            f"""
            source, out = {str(large_gguf)!r}, folder + "/out.gguf"
            pg.quantize_model(source, out, "IQ3_S", progress=started)
            """,
            tmp_path,
        )
    )


def test_convert(tmp_path: Path) -> None:
    checkpoint, target = tmp_path / "checkpoint", tmp_path / "target"
    shutil.copytree(NANO, checkpoint)
    target.mkdir()
    check(
        interrupted(
            f"""
            for _ in range(50):  # phi3-nano is small: one pass takes a second
                pg.convert({str(checkpoint)!r}, folder + "/out.gguf", "IQ3_S", threads=1,
                           progress=started, overwrite=True)
                os.remove(folder + "/out.gguf")
            """,
            target,
        )
    )


def test_generate(tmp_path: Path, nano_f16: Path) -> None:
    check(
        interrupted(
            f"""
            with pg.Session({str(nano_f16)!r}) as session:
                stream = session.stream([5] * 16, max_tokens=4000,
                                        sampling=pg.Sampling(temperature=9, top_k=0, min_p=0))
                while True:
                    for chunk in stream:
                        started()
                    stream = session.stream([5] * 16, max_tokens=4000)
            """,
            tmp_path,
        )
    )


def test_reading_a_prompt_leaves_the_context_as_it_was(tmp_path: Path, nano_f16: Path) -> None:
    check(
        interrupted(
            f"""
            with pg.Session({str(nano_f16)!r}, n_ctx=4096, threads=1) as session:
                session.eval([5, 6, 7])
                started()
                try:
                    while True:
                        session.eval([5] * 4000)
                        session.reset()
                        session.eval([5, 6, 7])
                finally:
                    assert len(session.tokens) in (0, 3, 4003), len(session.tokens)
            """,
            tmp_path,
        )
    )


@pytest.mark.parametrize("use_mmap", [True, False])
def test_load(tmp_path: Path, nano_f16: Path, use_mmap: bool) -> None:
    check(
        interrupted(
            f"""
            while True:  # a small model: a load takes milliseconds
                pg.Model({str(nano_f16)!r}, use_mmap={use_mmap}).close()
                started()
            """,
            tmp_path,
        )
    )


def test_load_in_the_middle(nano_f16: Path) -> None:
    """What the callback of progress raises, Ctrl-C among it, ends the load."""

    def press(_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    for use_mmap in (True, False):
        with pytest.raises(KeyboardInterrupt):
            pg.Model(nano_f16, use_mmap=use_mmap, progress=press)


def test_quantizing_an_array(tmp_path: Path) -> None:
    check(
        interrupted(
            """
            import numpy as np
            x = np.random.default_rng(0).standard_normal((1, 4096), np.float32)
            x = np.broadcast_to(x, (1 << 17, 4096))
            started()
            pg.quantize(x, "IQ3_S")
            """,
            tmp_path,
        )
    )
