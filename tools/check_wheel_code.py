"""Whether the libraries of a build run on any x86-64 CPU up to where they ask what the CPU has.

python tools/check_wheel_code.py FOLDER    (a build folder: the libraries there still have symbols)
ggml-base, ggml, llama and _core must be plain x86-64 code (SSE2) but for the kernels, which are
called only where the CPU has what they use. A CPU module may hold what its name says, but what runs
when it is loaded and asked for its score must be plain. Reads objdump's output.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PLAIN = ("libphiggml-ggml-base.so", "libphiggml-ggml.so", "libphiggml-llama.so")
LOWEST = "libggml-cpu-x64.so"
# As the linker writes the namespaces phiggml::kernels::avx2 and phiggml::kernels::avx512.
KERNELS = re.compile("7phiggml7kernels(4avx2|6avx512)")
# Mnemonics (Intel's manual, volume 2) of SSE3 and later, BMI, AMX, and all with a VEX or EVEX
# prefix. tzcnt is what objdump calls "rep bsf", which compilers write for any CPU.
BEYOND = re.compile(
    r"v(?!err|erw|mcall|mlaunch|mresume|mxo)\w+|k(mov|and|or|xor|xnor|not|test|add|shift|unpck)\w+"
    r"|addsubp[sd]|h(add|sub)p[sd]|lddqu|mov(d|sh|sl)dup|fisttp\w*|monitor|mwait"
    r"|pshufb|ph(add|sub)\w+|pmaddubsw|pmulhrsw|psign[bwd]|pabs[bwd]|palignr"
    r"|p?blend\w+|dpp[sd]|extractps|insertps|mpsadbw|packusdw|pcmp(eqq|gtq|[ei]str[im])|pextr[bdq]"
    r"|pinsr[bdq]|phminposuw|p(max|min)(s[bd]|u[wd])|pmov[sz]x\w+|pmuldq|pmulld|ptest|round[ps][sd]"
    r"|movntdqa|crc32\w*|popcnt\w*|lzcnt\w*|aes\w+|pclmul\w+|sha(1|256)\w+|gf2p8\w+"
    r"|andn|bextr|bls(i|r|msk)|bzhi|mulx|pdep|pext|rorx|s(ar|hl|hr)x|ad[co]x|movbe|rdrand|rdseed"
    r"|tdp\w+|tile\w+|[ls]dtilecfg|st?tilecfg"
)
_FUNCTION = re.compile(r"([0-9a-f]+) <(.+)>:")
_LINE = re.compile(r"\s+[0-9a-f]+:\t(?:(?:bnd|lock|rep\w*|notrack|data16|cs|ds) )*(\w+)(.*)")
_TARGET = re.compile(r"<([^>+]+)>")


@dataclass
class Function:
    """A function of a library.

    Attributes:
        address: where it begins.
        beyond: mnemonics in it that plain x86-64 lacks.
        calls: names of functions that it calls or jumps to; not those whose address it computes.
    """

    address: int
    beyond: set[str] = field(default_factory=set)
    calls: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Finding:
    """What was found in a library, and what is wrong."""

    name: str
    n_functions: int
    beyond: list[str]
    faults: list[str]


def objdump(*arguments: str) -> Iterator[str]:
    with subprocess.Popen(["objdump", *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise SystemExit(f"check_wheel_code: objdump ends with status {process.returncode}.")


def functions(lines: Iterable[str]) -> dict[str, Function]:
    """The functions in what objdump -d writes."""
    found: dict[str, Function] = {}
    current = Function(0)
    for line in lines:
        if heading := _FUNCTION.match(line):
            current = found.setdefault(heading[2], Function(int(heading[1], 16)))
        elif instruction := _LINE.match(line):
            mnemonic, operands = instruction.groups()
            if BEYOND.fullmatch(mnemonic):
                current.beyond.add(mnemonic)
            if mnemonic[0] == "j" or mnemonic.startswith("call"):
                targets = _TARGET.findall(operands)
                current.calls.update(target.partition("@")[0] for target in targets)
    return found


def reached(found: dict[str, Function], roots: Iterable[str]) -> set[str]:
    """The roots and all that they call, directly or through others."""
    seen: set[str] = set()
    ahead = [name for name in roots if name in found]
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            ahead += [called for called in found[name].calls if called in found]
    return seen


def initialisers(library: Path, found: dict[str, Function]) -> list[str]:
    """What the loader calls: the functions in .init_array, and _init."""
    start = end = 0
    for line in objdump("-h", "-j", ".init_array", str(library)):
        fields = line.split()
        if len(fields) > 3 and fields[1] == ".init_array":
            start = int(fields[3], 16)
            end = start + int(fields[2], 16)
    names = {function.address: name for name, function in found.items()}
    called = ["_init"]
    for line in objdump("-R", str(library)):
        relocation = re.fullmatch(r"([0-9a-f]{16}) \S+ +.*\+0x([0-9a-f]+)\n", line)
        if relocation and start <= int(relocation[1], 16) < end:
            called.append(names[int(relocation[2], 16)])
    return called


def examine(library: Path) -> Finding:
    found = functions(objdump("-d", "--no-show-raw-insn", str(library)))
    beyond = sorted(name for name, function in found.items() if function.beyond)
    if library.name in (*PLAIN, LOWEST):
        wrong = beyond
    elif library.name.startswith("_core"):
        wrong = [name for name in beyond if not KERNELS.search(name)]
    else:
        roots = [*initialisers(library, found), "ggml_backend_score"]
        early = reached(found, roots)
        wrong = [name for name in beyond if name in early]
        if "ggml_backend_score" not in found:
            wrong.append("ggml_backend_score")
    faults = [
        f"{name}: {' '.join(sorted(found[name].beyond)[:6]) or 'not there'}"
        if name in found
        else f"{name} is not there"
        for name in wrong
    ]
    if len(found) < 20:
        faults.append("it has no symbols, so that nothing can be told: name a build folder.")
    return Finding(library.name, len(found), beyond, faults)


def libraries(folder: Path) -> list[Path]:
    files = [*folder.rglob("libphiggml-*.so"), *folder.rglob("libggml-cpu*.so")]
    return sorted([*files, *folder.glob("_core*.so")], key=lambda path: path.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    found = [examine(library) for library in libraries(arguments.folder)]
    if not any(finding.name.startswith("_core") for finding in found):
        raise SystemExit(f"check_wheel_code: {arguments.folder}: no libraries are there.")
    print(f"{'library':<46} {'functions':>9} {'beyond SSE2':>11}")
    for finding in found:
        print(f"{finding.name:<46} {finding.n_functions:>9} {len(finding.beyond):>11}")
        for fault in finding.faults:
            print(f"  FAULT {fault}")
    return int(any(finding.faults for finding in found))


if __name__ == "__main__":
    sys.exit(main())
