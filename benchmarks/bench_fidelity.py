"""How near the logits are to transformers: phiggml beside stock llama.cpp, for docs/fidelity.md.

Each tiny checkpoint of tests/data is converted to F32 and evaluated with an F32 cache, without
flash attention, on one thread; the truth is in tests/data/{logits,limit}_*.npz. Stock runs the
same file (and its own converter's, where that accepts the checkpoint). Files of fewer bits are
compared with the F32 one on the texts of tests/test_logits_types.py. The figures are properties of
the code, not of the machine, but for float32 rounding.

    python benchmarks/bench_fidelity.py [--stock build/stock] [--stock-python PYTHON]
        [--write docs/fidelity.md]

--stock is what tools/build_stock.sh made; without it there are no stock columns. --stock-python
runs stock's converter and needs torch and transformers (build_stock.sh converter makes one).
"""

from __future__ import annotations

import argparse
import datetime
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import phiggml as pg
from machine import processor
from page import write_between
from phiggml import _core

# The checkpoints, and the texts on which best tokens are compared, are the tests'.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from best_token import agreement, all_logits, random_texts
from logits_reference import DATA, KINDS, Kind, Logits, TokenIds, exact_session, nrmse

ROOT = Path(__file__).resolve().parent.parent
TYPES = ("F16", "BF16", "Q8_0", "Q4_K_M")

Evaluate = Callable[[Path, int, list[TokenIds]], list[Logits]]


@dataclass(frozen=True)
class Case:
    """One checkpoint: the contexts to allocate, and the lengths of the texts to read in each."""

    name: str
    runs: tuple[tuple[int, tuple[int, ...]], ...] = ((512, (16, 200)),)

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]


RELEASED_WINDOW = ((512, (16, 200)), (4096, (2047, 2048, 2107)))
LONG = ((512, (16, 200)), (131072, (16, 200)), (8192, (4096, 4097, 4156)))
WINDOW = ((64, (60, 64)), (512, (64, 65, 200)))
LINE = ((512, (16, 128, 129, 300)), (4096, (128, 129)))

CASES = (
    Case("phi1.5-tiny"),
    Case("phi2-tiny"),
    Case("phi3-nano", RELEASED_WINDOW),
    Case("phi3-mini-tiny", RELEASED_WINDOW),
    Case("phi3-medium-tiny", RELEASED_WINDOW),
    Case("phi3-window-tiny", WINDOW),
    Case("phi3-128k-tiny", LINE),
    Case("phi3.5-mini-tiny", LONG),
    Case("phi3v-tiny", LONG),
    Case("phi4-tiny"),
    Case("phi4v-tiny"),
    Case("phi4-mini-tiny", LINE),
    Case("phi4mm-tiny", LONG),
    Case("phimoe-tiny", LINE),
    Case("phimoe-hf-tiny", LINE),
    Case("slimmoe-tiny", WINDOW),
)


class StockError(Exception):
    """What stock llama.cpp said, in one line."""


@dataclass(frozen=True)
class Stock:
    """Upstream's library and converter, as tools/build_stock.sh lays them out."""

    folder: Path
    python: Path | None
    program: Path

    @classmethod
    def build(cls, folder: Path, python: Path | None, scratch: Path) -> Stock:
        """Compile tools/stock_logits.cpp against the library in ``folder``."""
        source, libraries = folder / "llama.cpp", (folder / "build" / "bin").resolve()
        program = scratch / "stock_logits"
        command = ["c++", "-std=c++17", "-O1", str(ROOT / "tools" / "stock_logits.cpp")]
        command += [f"-I{source / 'include'}", f"-I{source / 'ggml' / 'include'}"]
        command += [f"-L{libraries}", "-lllama", "-lggml", "-lggml-base"]
        command += [f"-Wl,-rpath,{libraries}", f"-Wl,-rpath-link,{libraries}", "-o", str(program)]
        subprocess.run(command, check=True)
        return cls(folder, python, program)

    def evaluate(self, path: Path, n_ctx: int, texts: list[TokenIds]) -> list[Logits]:
        with tempfile.TemporaryDirectory() as scratch:
            files = []
            for i, text in enumerate(texts):
                files += [Path(scratch) / f"tokens{i}", Path(scratch) / f"logits{i}"]
                text.astype("<i4").tofile(files[-2])
            command = [str(self.program), str(path), str(n_ctx), *map(str, files)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                errors = [line for line in done.stderr.splitlines() if "error" in line]
                said = (errors or done.stderr.splitlines() or [f"exit {done.returncode}"])[0]
                raise StockError(re.sub(r" +", " ", said.rpartition("error loading model: ")[2]))
            return [
                np.fromfile(file, "<f4").reshape(len(text), -1)
                for text, file in zip(texts, files[1::2], strict=True)
            ]

    def convert(self, folder: Path, out: Path) -> None:
        """Run stock's converter.

        Raises:
            StockError: it refused, or there is no Python for it.
        """
        if self.python is None:
            raise StockError("not run")
        converter = self.folder / "llama.cpp" / "convert_hf_to_gguf.py"
        command = [str(self.python), str(converter), str(folder), "--outtype", "f32"]
        done = subprocess.run(
            [*command, "--outfile", str(out)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0 or not out.exists():
            said = done.stderr.strip().splitlines()[-1]  # the exception, or the logged error
            raise StockError(said.removeprefix("ERROR:hf-to-gguf:"))


def evaluate_ours(path: Path, n_ctx: int, texts: list[TokenIds]) -> list[Logits]:
    found = []
    with exact_session(pg.Model(path), n_ctx=n_ctx, threads=1) as session:
        for text in texts:
            session.reset()
            found.append(session.eval(text, logits="all"))
    return found


class Reference:
    """The texts of one checkpoint and what transformers says about them."""

    def __init__(self, case: Case) -> None:
        self.arrays = case.kind.reference()
        path = DATA / f"limit_{case.name}.npz"
        if path.exists():
            with np.load(path) as limit:
                for n, logits in zip(limit["lengths"], limit["logits"], strict=True):
                    self.arrays |= {
                        f"tokens_{n}": limit["tokens"][:n],
                        f"positions_{n}": np.array([n - 1], np.int32),
                        f"logits_{n}": logits[None],
                    }

    def text(self, n: int) -> TokenIds:
        tokens: TokenIds = self.arrays[f"tokens_{n}"].astype(np.int32)
        return tokens

    def error(self, n: int, logits: Logits) -> float:
        """nrmse of the logits after each of n tokens."""
        positions = self.arrays[f"positions_{n}"].astype(np.int64)
        return nrmse(logits[positions], self.arrays[f"logits_{n}"].astype(np.float32))


def cell(error: float) -> str:
    """Two digits; in bold where the answer is another one."""
    text = f"{error:.1e}" if error < 0.01 else f"{error:.2f}"
    return text if error < 0.01 else f"**{text}**"


def short(error: StockError) -> str:
    """What was said, up to its first semicolon, as a cell."""
    return str(error).partition(";")[0].replace("|", "\\|")


def figures(
    reference: Reference, evaluate: Evaluate, path: Path, n_ctx: int, lengths: tuple[int, ...]
) -> list[str]:
    """One cell for each length: the nrmse, or why there is none."""
    texts = [reference.text(n) for n in lengths]
    try:
        rows = evaluate(path, n_ctx, texts)
    except StockError as error:
        return [f"does not load: {short(error)}"] * len(lengths)
    return [cell(reference.error(n, row)) for n, row in zip(lengths, rows, strict=True)]


def table_of_logits(stock: Stock | None, folder: Path) -> list[str]:
    rows = ["| checkpoint | tokens | n_ctx | phiggml | stock, the same file |"]
    rows += ["| --- | ---: | ---: | ---: | --- |"]
    for case in CASES:
        path = folder / f"{case.name}.gguf"
        pg.convert(case.kind.folder, path, "F32")
        reference = Reference(case)
        for n_ctx, lengths in case.runs:
            ours = figures(reference, evaluate_ours, path, n_ctx, lengths)
            theirs = ["not run"] * len(lengths)
            if stock is not None:
                theirs = figures(reference, stock.evaluate, path, n_ctx, lengths)
            for n, mine, other in zip(lengths, ours, theirs, strict=True):
                rows.append(f"| {case.name} | {n} | {n_ctx} | {mine} | {other} |")
    return rows


def rows_of_types(case: Case, folder: Path) -> list[str]:
    """One row for each type, but for one whose blocks the checkpoint's rows do not fill."""
    texts, rows = random_texts(case.kind), []
    truth = all_logits(pg.Model(folder / f"{case.name}.gguf"), texts)
    for type in TYPES:
        path = folder / f"{case.name}-{type}.gguf"
        tensors = pg.convert(case.kind.folder, path, type).tensors
        if type == "Q4_K_M" and any(tensor.note for tensor in tensors):
            continue
        share = agreement(all_logits(pg.Model(path), texts), truth)
        rows.append(f"| {case.name} | {type} | {share:.2%} |")
    return rows


def table_of_types(folder: Path) -> list[str]:
    """Reads the F32 files that table_of_logits made in ``folder``."""
    rows = ["| checkpoint | type | same best token |", "| --- | --- | ---: |"]
    for case in CASES:
        rows += rows_of_types(case, folder)
    return rows


def table_of_conversions(stock: Stock, folder: Path) -> list[str]:
    rows = [
        "| checkpoint | stock's converter | nrmse of its file in stock, 200 tokens, n_ctx 512 |"
    ]
    rows += ["| --- | --- | --- |"]
    for case in CASES:
        path = folder / f"stock-{case.name}.gguf"
        try:
            stock.convert(case.kind.folder, path)
        except StockError as error:
            rows.append(f"| {case.name} | refuses: {short(error)} | |")
            continue
        figure = figures(Reference(case), stock.evaluate, path, 512, (200,))[0]
        rows.append(f"| {case.name} | converts | {figure} |")
    return rows


def report(stock: Stock | None, folder: Path) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in _core.runtime.versions())
    lines = [
        f"{datetime.date.today():%Y-%m-%d}, phiggml {pg.__version__} ({versions}), "
        f"numpy {np.__version__}, Python {platform.python_version()}, {processor()}.",
        "",
        *table_of_logits(stock, folder),
    ]
    if stock is not None and stock.python is not None:
        lines += ["", *table_of_conversions(stock, folder)]
    lines += ["", *table_of_types(folder)]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stock", type=Path, help="what tools/build_stock.sh made")
    parser.add_argument("--stock-python", type=Path, help="runs stock's converter")
    parser.add_argument("--write", type=Path, help="a page with the two marker lines")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, stock = Path(scratch), None
        if arguments.stock is not None:
            stock = Stock.build(arguments.stock, arguments.stock_python, folder)
        text = report(stock, folder)
    print(text)
    if arguments.write is not None:
        write_between(arguments.write, Path(__file__).name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
