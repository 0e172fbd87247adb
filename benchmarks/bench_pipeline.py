"""From a checkpoint to a quantized file, beside the two programs of llama.cpp that do it.

A random bfloat16 checkpoint of Phi-3.5-mini's shapes, 3.82 G parameters, 7.6 GB, is made where
there is none (random_checkpoint.py). Each of these ways runs in fresh processes, in turn, on all
cores, and its output is deleted:

* ours: `phiggml convert CHECKPOINT --type Q4_K_M`;
* stock: convert_hf_to_gguf.py to --outtype, then llama-quantize, where their paths are given;
* same: an F16 GGUF file (ours) to Q4_K_M and to Q8_0, by `phiggml quantize` and by
  llama_model_quantize of the library that phiggml was built with.

Before each way the disk is idle (sync) and its source is dropped from the page cache, or read into
it with --warm; a file between two programs stays where the first one left it. Time runs until the
output is on the disk: phiggml waits for that itself, others get an fsync afterwards. What is
counted of a process, measured_process.py says. Of each round the tensor data of all outputs are
compared; only those by way of F16 may differ, which rounds small bfloat16 numbers.

    python benchmarks/bench_pipeline.py [FOLDER] --checkpoint DIR --rounds 3 --outtype f16 bf16
        --stock-python PYTHON --stock-convert build/stock/llama.cpp/convert_hf_to_gguf.py
        --stock-quantize build/stock/build/bin/llama-quantize
        [--only ours] [--warm] [--write docs/pipeline.md]

--write puts the table into a page with marker lines, and a chart beside it (.png; matplotlib).
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import phiggml as pg
from machine import describe
from measured_process import Command, Usage, measure
from page import write_between
from page_cache import seconds_of_fsync, settle
from phiggml.runtime import library_folder
from random_checkpoint import write_checkpoint

MODEL = "phi3.5-mini"
PARTS = ("ours", "stock", "same")
LIBRARY = library_folder() / "libphiggml-llama.so"
SAME_BUILD = Path(__file__).with_name("same_build.py")
COLOURS = ("#4477aa", "#aa3377", "#ddaa33")
HEADING = (
    "| work | by | s | ratio | CPU s | cores | amid | RssAnon MB | VmHWM MB "
    "| rchar | read_bytes | wchar | write_bytes | beside |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: "
    "| ---: | ---: | ---: | ---: | ---: |"
)


@dataclass(frozen=True)
class Step:
    """A program that reads one file, or a checkpoint, and writes `out`."""

    name: str
    command: Command
    out: Path


@dataclass(frozen=True)
class Way:
    """Steps one after the other; `exact`: whether its tensor data must be phiggml's."""

    name: str
    steps: tuple[Step, ...]
    exact: bool = True

    @property
    def ours(self) -> bool:
        return self.name.startswith("phiggml")


@dataclass(frozen=True)
class Work:
    """The same work done in several ways; phiggml's, where it is there, is the first."""

    name: str
    sources: tuple[Path, ...]
    ways: tuple[Way, ...]


@dataclass(frozen=True)
class Run:
    """What a step took, the fsync after it, and how long its output is."""

    usage: Usage
    fsync: float
    nbytes: int

    @property
    def seconds(self) -> float:
        return self.usage.seconds + self.fsync

    @property
    def beside(self) -> int:
        """Bytes that it wrote elsewhere than to its output, to stdout and to stderr."""
        return self.usage.bytes["wchar"] - self.usage.said_bytes - self.nbytes


Rounds = dict[str, list[list[Run]]]  # of each way, in each round, the run of each step


def our_way(verb: str, source: Path, type: str, folder: Path) -> Way:
    out = folder / "ours.gguf"
    program = (sys.executable, "-m", "phiggml", verb)
    name = f"phiggml {verb}"
    step = Step(name, (*program, source, "-o", out, "--type", type, "--json", "--quiet"), out)
    return Way(name, (step,))


def stock_way(arguments: argparse.Namespace, outtype: str, folder: Path) -> Way:
    between, out = folder / f"between-{outtype}.gguf", folder / f"stock-{outtype}.gguf"
    convert = [arguments.stock_python, arguments.stock_convert, arguments.checkpoint]
    convert += ["--outtype", outtype, "--outfile", between]
    quantize = [arguments.stock_quantize, between, out, arguments.type, str(cores())]
    return Way(
        f"stock, by way of {outtype.upper()}",
        (
            Step(f"convert_hf_to_gguf.py, {outtype.upper()}", convert, between),
            Step("llama-quantize", quantize, out),
        ),
        exact=outtype != "f16",
    )


def same_way(source: Path, type: str, folder: Path) -> Way:
    out = folder / "same.gguf"
    plan = pg.quantize_model(source, out, type, dry_run=True).plan
    command = (sys.executable, SAME_BUILD, LIBRARY, source, out, str(plan.file_type))
    return Way("llama_model_quantize", (Step("llama_model_quantize", command, out),))


def cores() -> int:
    return len(os.sched_getaffinity(0))


def works(arguments: argparse.Namespace, folder: Path) -> Iterator[Work]:
    checkpoint, only = arguments.checkpoint, arguments.only
    ways = [our_way("convert", checkpoint, arguments.type, folder)] if "ours" in only else []
    if "stock" in only and arguments.stock_convert is not None:
        ways += [stock_way(arguments, outtype, folder) for outtype in arguments.outtype]
    if ways:
        weights = tuple(checkpoint.glob("*.safetensors"))
        yield Work(f"checkpoint to {arguments.type}", weights, tuple(ways))
    if "same" in only:
        source = folder / "f16.gguf"
        pg.convert(checkpoint, source, "F16")
        for type in arguments.same_types:
            ours = our_way("quantize", source, type, folder)
            yield Work(f"F16 to {type}", (source,), (ours, same_way(source, type, folder)))


def run(way: Way) -> list[Run]:
    """Runs the steps and leaves the last one's output."""
    runs = []
    for step, successor in zip(way.steps, (*way.steps[1:], None), strict=True):
        usage = measure(step.command)
        fsync = seconds_of_fsync(step.out) if successor is None else 0.0
        runs.append(Run(usage, fsync, step.out.stat().st_size))
        print(
            f"  {step.name}: {usage.seconds:.2f} s + {fsync:.2f} s of fsync, "
            f"{usage.cpu_seconds:.2f} s of CPU; {usage.samples}{stages(usage)}",
            flush=True,
        )
    for step in way.steps[:-1]:
        step.out.unlink()
    return runs


def stages(usage: Usage) -> str:
    """Of ours, the seconds that it says each stage took; reading and converting of all threads."""
    if not usage.said.startswith("{"):
        return ""
    told = json.loads(usage.said).get("stages", {}).items()
    return "".join(f"; {stage} {seconds:.2f} s" for stage, seconds in told)


def digests(path: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Of each tensor the type, the shape and a digest of its data."""
    with pg.GGUFFile(path) as file:
        return {
            name: (tensor.type, tensor.shape, hashlib.sha256(tensor.data.data).hexdigest())
            for name, tensor in file.tensors.items()
        }


def compare(work: Work, *, rounds: int, warm: bool) -> tuple[Rounds, str]:
    """Runs all ways in turn; what was found of their tensor data, as a sentence."""
    found: Rounds = {way.name: [] for way in work.ways}
    different: dict[str, int] = {}
    n_tensors = 0
    for i in range(rounds):
        written = {}
        # Who comes first alternates: the machine may be busier now than then.
        for place in range(len(work.ways)):
            way = work.ways[(i + place) % len(work.ways)]
            settle(work.sources, warm=warm)
            print(f"{work.name}, round {i + 1}, {way.name}:", flush=True)
            found[way.name].append(run(way))
            written[way.name] = digests(way.steps[-1].out)
            way.steps[-1].out.unlink()
        first = written[work.ways[0].name]
        n_tensors = len(first)
        for way in work.ways[1:]:
            other = written[way.name]
            unlike = sum(first.get(name) != other.get(name) for name in first.keys() | other.keys())
            different[way.name] = max(different.get(way.name, 0), unlike)
            if unlike and way.exact and work.ways[0].exact:
                sys.exit(f"{work.name}: {unlike} of {n_tensors} tensors of {way.name} differ.")
    return found, verdict(work, different, n_tensors)


def verdict(work: Work, different: dict[str, int], n_tensors: int) -> str:
    parts = [
        f"{way}: {f'{unlike} of {n_tensors} differ' if unlike else f'all {n_tensors} equal'}"
        for way, unlike in different.items()
    ]
    beside = work.ways[0].name
    return f"{work.name}, tensors beside those of {beside}: {'; '.join(parts)}." if parts else ""


def rows(work: Work, found: Rounds) -> Iterator[str]:
    totals = {way: [sum(run.seconds for run in runs) for runs in found[way]] for way in found}
    ours = totals[work.ways[0].name]
    for way in work.ways:
        ratios = [a / b for a, b in zip(totals[way.name], ours, strict=True)]
        ratio = f"{statistics.median(ratios):.2f}" if work.ways[0].ours else ""
        steps = list(zip(*found[way.name], strict=True))
        if len(steps) > 1:
            yield line(work.name, f"**{way.name}**", found[way.name], ratio)
        for step, runs in zip(way.steps, steps, strict=True):
            alone = [[run] for run in runs]
            yield line(work.name, step.name, alone, "" if len(steps) > 1 else ratio)


def line(work: str, by: str, rounds: list[list[Run]], ratio: str) -> str:
    """A row: medians over the rounds, but of memory the greatest."""

    def median(numbers: Iterator[float]) -> float:
        return statistics.median(numbers)

    def peak(name: str) -> str:
        return f"{max(r.usage.samples.peaks[name] for runs in rounds for r in runs) / 1e6:.0f}"

    def gigabytes(name: str) -> str:
        return f"{median(sum(r.usage.bytes[name] for r in runs) for runs in rounds) / 1e9:.2f}"

    seconds = median(sum(r.seconds for r in runs) for runs in rounds)
    cpu = median(sum(r.usage.cpu_seconds for r in runs) for runs in rounds)
    amid = median(runs[0].usage.samples.cores_amid() for runs in rounds)
    # What the first step of two wrote is beside the output, too.
    beside = median(sum(r.beside + r.nbytes for r in runs) - runs[-1].nbytes for runs in rounds)
    cells = [work, by, f"{seconds:.2f}", ratio, f"{cpu:.2f}", f"{cpu / seconds:.2f}"]
    cells += [f"{amid:.2f}" if len(rounds[0]) == 1 else "", peak("RssAnon"), peak("VmHWM")]
    cells += [gigabytes(name) for name in rounds[0][0].usage.bytes]
    cells += [f"{beside:.0f} B" if beside < 1e4 else f"{beside / 1e6:.1f} MB"]
    return f"| {' | '.join(cells)} |"


def head(arguments: argparse.Namespace) -> str:
    nbytes = sum(path.stat().st_size for path in arguments.checkpoint.glob("*.safetensors"))
    machine = describe().replace("\n", ".\n")
    state = "in the page cache" if arguments.warm else "on the disk, not in the page cache"
    rounds = f"medians of {arguments.rounds} rounds" if arguments.rounds > 1 else "one round"
    stock = ""
    if arguments.stock_python is not None and "stock" in arguments.only:
        code = "import sys, torch; print(f'torch {torch.__version__}, Python {sys.version[:7]}')"
        stock = f"Stock converter: {measure([arguments.stock_python, '-c', code]).said.strip()}.\n"
    return (
        f"{datetime.date.today():%Y-%m-%d}.\n{machine}.\n{stock}"
        f"{nbytes / 1e9:.2f} GB of bfloat16 weights; sources {state}; {rounds}. Bytes in GB.\n\n"
    )


def chart(results: list[tuple[Work, Rounds]], path: Path) -> None:
    """Horizontal bars of the seconds of each way, step after step."""
    from matplotlib.figure import Figure

    ways = [(work, way, found[way.name]) for work, found in results for way in work.ways]
    figure = Figure(figsize=(8, 1 + 0.5 * len(ways)), layout="constrained")
    axes = figure.subplots()
    for place, (_, way, rounds) in enumerate(ways):
        left = 0.0
        for i, runs in enumerate(zip(*rounds, strict=True)):
            seconds = statistics.median(run.seconds for run in runs)
            axes.barh(place, seconds, 0.7, left=left, color=COLOURS[0 if way.ours else 1 + i])
            left += seconds
        axes.text(left, place, f" {left:.1f} s", va="center")
    names = [f"{work.name}\n{way.name}" for work, way, _ in ways]
    axes.set_yticks(range(len(ways)), names, fontsize="small")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("seconds")
    axes.grid(axis="x", linewidth=0.4)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=130)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", nargs="?", type=Path, default=Path(), help="on the disk to use")
    add("--checkpoint", type=Path, help="one that is there, or is to be made and kept")
    add("--layers", type=int, help="of a smaller model than Phi-3.5-mini")
    add("--type", default="Q4_K_M", help="of checkpoint to quantized file (%(default)s)")
    add("--same-types", nargs="+", default=["Q4_K_M", "Q8_0"], metavar="TYPE")
    add("--only", nargs="+", choices=PARTS, default=PARTS)
    add("--rounds", type=int, default=1)
    add("--warm", action="store_true", help="begin with the source in the page cache")
    add("--stock-python", type=Path, help="with torch, transformers and sentencepiece")
    add("--stock-convert", type=Path, help="convert_hf_to_gguf.py")
    add("--stock-quantize", type=Path, help="llama-quantize")
    add("--outtype", nargs="+", default=["f16"], choices=["f16", "bf16"], help="between the two")
    add("--write", type=Path, help="a page with the two marker lines")
    arguments = parser.parse_args()
    stock = (arguments.stock_python, arguments.stock_convert, arguments.stock_quantize)
    if any(stock) and not all(stock):
        parser.error("--stock-python, --stock-convert and --stock-quantize belong together")
    return arguments


def require_room(folder: Path, checkpoint: Path) -> None:
    nbytes = sum(path.stat().st_size for path in checkpoint.iterdir())
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    if free < 1.6 * nbytes:
        sys.exit(f"{folder}: {free / 1e9:.1f} GB are free: {1.6 * nbytes / 1e9:.1f} are needed")


def main() -> None:
    arguments = parsed()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        arguments.checkpoint = arguments.checkpoint or folder / MODEL
        if not (arguments.checkpoint / "config.json").exists():
            write_checkpoint(arguments.checkpoint, MODEL, layers=arguments.layers)
        require_room(folder, arguments.checkpoint)
        text = [head(arguments)]
        print(text[0], flush=True)
        results, table, verdicts = [], [HEADING], []
        for work in works(arguments, folder):
            found, told = compare(work, rounds=arguments.rounds, warm=arguments.warm)
            results.append((work, found))
            table += rows(work, found)
            verdicts += [told] if told else []
        text += ["\n".join(table), "\n\n" + "\n".join(verdicts)]
        print("\n" + "".join(text[1:]))
    if arguments.write is not None:
        write_between(arguments.write, Path(__file__).name, "".join(text).strip())
        chart(results, arguments.write.with_suffix(".png"))


if __name__ == "__main__":
    main()
