"""Whether each CPU module that runs here gives what the best one gives, from the demo checkpoint.

python tools/check_variants.py [--write]    (of the phiggml that this Python has installed)
One process for each; the table says run or not run, and why. --write puts it into docs/variants.md.
Exits with 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpu_variants import VARIANTS
from phiggml.runtime import library_folder

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "variants.md"
# The same file and the same greedy texts, and for float32 weights the logits, by the largest
# difference of any logit where the cache is float32, too, and by nrmse as users run it.
MOST_DIFFERENCE = 1e-3
MOST_PRODUCT = 1e-6
"""nrmse of a quantized product: float32 sums in another order."""
MOST_NUDGES = 2.0
"""Q4_K_M: nrmse, in units of what nudged embeddings do to the best module's own logits."""
MOST_LOSS = 1.05
"""What quantizing costs (nrmse of Q4_K_M logits beside F32's), in units of the best module's."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Result:
    """What a variant gave: sha256 and texts by type, and arrays by name."""

    module: str
    files: Mapping[str, str]
    texts: Mapping[str, list[str]]
    arrays: Mapping[str, Array] = field(repr=False)


@dataclass(frozen=True)
class Row:
    """A line of the table; faults are sentences."""

    variant: str
    cells: tuple[str, ...]
    faults: tuple[str, ...] = ()


def run(folder: Path, variant: str) -> Result | str:
    """The figures of a variant, or the last line that it wrote when it failed."""
    environment = {k: v for k, v in os.environ.items() if k != "PHIGGML_CPU_VARIANT"}
    if variant != "best":
        environment["PHIGGML_CPU_VARIANT"] = variant
    command = [sys.executable, str(ROOT / "tools" / "variant_figures.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        return last or f"it ends with status {done.returncode}"
    found: dict[str, Any] = json.loads((folder / f"{variant}.json").read_text("utf-8"))
    with np.load(folder / f"{variant}.npz") as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    return Result(found["module"]["file"], found["files"], found["texts"], kept)


def nrmse(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def compare(variant: str, found: Result, best: Result) -> Row:
    """A variant beside the best one."""
    faults = []
    for type, digest in best.files.items():
        if found.files[type] != digest:
            faults.append(f"{variant}: its {type} file is another one.")
    same, total = 0, 0
    for type, texts in best.texts.items():
        agree = [a == b for a, b in zip(found.texts[type], texts, strict=True)]
        same, total = same + sum(agree), total + len(agree)
    if same < total:
        faults.append(f"{variant}: {total - same} of {total} greedy texts differ.")
    a, b = found.arrays, best.arrays
    nudge = nrmse(b["nudged"], b["plain"])
    measured = {
        "F32, largest": (float(np.abs(a["F32 exact"] - b["F32 exact"]).max()), MOST_DIFFERENCE),
        "F32": (nrmse(a["F32"], b["F32"]), MOST_DIFFERENCE),
        "Q4_K product": (nrmse(a["product"], b["product"]), MOST_PRODUCT),
        "Q4_K_M": (nrmse(a["Q4_K_M"], b["Q4_K_M"]), MOST_NUDGES * nudge),
        "Q4_K_M beside F32": (
            nrmse(a["Q4_K_M"], a["F32"]),
            MOST_LOSS * nrmse(b["Q4_K_M"], b["F32"]),
        ),
    }
    for name, (value, bound) in measured.items():
        if not value <= bound:
            faults.append(f"{variant}: {name} differs by {value:.1e}, and {bound:.1e} is allowed.")
    files = "same" if found.files == best.files else "**other**"
    figures = tuple(f"{value:.1e}" for value, _ in measured.values())
    return Row(variant, ("run", files, f"{same} of {total}", *figures), tuple(faults))


def flags() -> frozenset[str]:
    """What this CPU has, and the system lets programs use, as Linux lists it."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    found = [line.partition(":")[2].split() for line in lines if line.startswith("flags")]
    return frozenset(found[0]) if found else frozenset()


def rows(folder: Path, best: Result) -> list[Row]:
    here = flags()
    table = []
    for variant, needs in VARIANTS.items():
        missing = sorted(set(needs.split()) - here)
        if not (library_folder() / f"libggml-cpu-{variant}.so").is_file():
            table.append(Row(variant, ("not run: this installation lacks it",)))
        elif missing:
            table.append(Row(variant, (f"not run: this CPU lacks {', '.join(missing)}",)))
        else:
            found = run(folder, variant)
            if isinstance(found, str):
                table.append(Row(variant, ("**failed**",), (f"{variant}: {found}",)))
            else:
                table.append(compare(variant, found, best))
        print(" | ".join((variant, *table[-1].cells)), flush=True)
    return table


HEADINGS = (
    "module",
    "",
    "files",
    "greedy texts",
    "F32 logits, largest difference",
    "F32 logits, nrmse",
    "Q4_K product, nrmse",
    "Q4_K_M logits, nrmse",
    "its own Q4_K_M beside F32",
)


def report(table: list[Row], best: Result) -> str:
    sys.path.append(str(ROOT / "benchmarks"))
    from machine import describe

    b = best.arrays
    lines = [*(f"    {line}" for line in describe().splitlines()), ""]
    lines.append(f"Chosen here: {best.module}; {sum(r.cells[0] == 'run' for r in table)} run.")
    lines.append(f"A nudge changes its Q4_K_M logits by {nrmse(b['nudged'], b['plain']):.1e}.")
    lines += ["", f"| {' | '.join(HEADINGS)} |", "|" + " --- |" * len(HEADINGS)]
    for row in table:
        cells = [*row.cells, *[""] * (len(HEADINGS) - 1 - len(row.cells))]
        lines.append(f"| {row.variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="phiggml-variants-") as name:
        folder = Path(name)
        best = run(folder, "best")
        if isinstance(best, str):
            raise SystemExit(f"check_variants: {best}")
        table = rows(folder, best)
    text = report(table, best)
    print(text)
    faults = [fault for row in table for fault in row.faults]
    for fault in faults:
        print(f"FAULT {fault}")
    if arguments.write:
        from page import write_between

        write_between(PAGE, "tools/check_variants.py", text)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
