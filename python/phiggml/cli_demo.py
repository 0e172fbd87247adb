"""phiggml demo: a checkpoint becomes text, with what the package carries."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import phiggml as pg
from phiggml.cli_answer import speeds, write_answer
from phiggml.cli_terminal import note, say, size, table
from phiggml.runtime import library_folder

__all__ = ["add_demo", "demo_checkpoint"]

# Both are in the checkpoint's questions.json: it knows their answers.
_QUESTIONS = ("What is GGUF?", "What is Q4_K?")
# The longest answer that it knows has half of this.
_MOST_TOKENS = 120


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `phiggml demo`."""
    parser.add_argument("--keep", metavar="DIR", type=Path, help="leave the GGUF files there")
    parser.add_argument(
        "--question",
        action="append",
        help="ask this instead; may be given again (the model knows little beyond quantization)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.set_defaults(verb=_demo)


def demo_checkpoint() -> Path:
    """The folder of the checkpoint that the package carries.

    Raises:
        FileNotFoundError: it is not there.
    """
    folder = library_folder().parent / "phi3-nano"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"demo: {folder}: the checkpoint that belongs there is missing. Reinstall phiggml."
        )
    return folder


def _demo(arguments: argparse.Namespace) -> int:
    checkpoint = demo_checkpoint()
    with ExitStack() as resources:
        folder = arguments.keep
        if folder is None:
            folder = Path(
                resources.enter_context(tempfile.TemporaryDirectory(prefix="phiggml-demo-"))
            )
        folder.mkdir(parents=True, exist_ok=True)
        reports = [
            pg.convert(
                checkpoint,
                folder / f"{checkpoint.name}-{type}.gguf",
                type,
                threads=arguments.threads,
                overwrite=True,
            )
            for type in ("BF16", "Q4_K_M")
        ]
        _tell_sizes(checkpoint, reports)
        model = resources.enter_context(pg.Model(reports[-1].path))
        session = resources.enter_context(pg.Session(model, threads=arguments.threads))
        for question in arguments.question or _QUESTIONS:
            _ask(session, question)
    return 0


def _gain(ratio: float, seconds: float) -> str:
    written = f"written in {seconds:.1f} s"
    return f"{ratio:.2f}x smaller, {written}" if ratio > 1.05 else written


def _tell_sizes(checkpoint: Path, reports: Sequence[pg.Report]) -> None:
    n_params = sum(math.prod(tensor.shape) for tensor in reports[0].tensors)
    original = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    say(f"{checkpoint.name}, a Phi-3 checkpoint of {n_params / 1e6:.1f} million weights:")
    say()
    rows = [(f"{checkpoint.name}/ (bf16)", size(original), f"{8 * original / n_params:.2f}", "")]
    rows += [
        (
            report.path.name,
            size(report.nbytes),
            f"{report.bits_per_weight:.2f}",
            _gain(original / report.nbytes, report.seconds),
        )
        for report in reports
    ]
    say(table(("file", "size", "bits per weight", ""), rows, right=(1, 2)))


def _ask(session: pg.Session, question: str) -> None:
    prompt = session.model.chat_prompt([{"role": "user", "content": question}])
    chunks = session.stream(prompt, max_tokens=_MOST_TOKENS, sampling=pg.Sampling(temperature=0))
    say()
    say(f"> {question}")
    written: list[pg.Chunk] = []
    write_answer(chunks, written)
    note(speeds(written[-1]), stream=sys.stdout)
