"""What the compiled files of a wheel may be called, need and carry; only ELF files are read."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import PurePosixPath

from elf_file import ElfFile, read_elf

# What manylinux promises (PEP 600; the lists are auditwheel's policies), as far as we use it.
SYSTEM = re.compile(
    r"lib(c|m|dl|pthread|rt)\.so\.\d+|libstdc\+\+\.so\.6|libgcc_s\.so\.1|ld-linux[\w-]*\.so\.\d"
)
OPENMP = re.compile(r"lib(gomp|omp|iomp5)\b|vcomp|libomp")
# The module that drives Metal is part of the wheel for macOS.
MODULE = re.compile(r"(lib)?ggml-(cpu(-[\w.]+)?|metal)\.(so|dylib|dll)")
OURS = re.compile(r"(lib)?phiggml-(ggml-base|ggml|llama)\.(so|dylib|dll)")

Found = tuple[str, list[str]]


def check_names(libraries: dict[str, bytes]) -> Found:
    """No name under which another package may carry something else."""
    faults = []
    for name in sorted(libraries):
        path = PurePosixPath(name)
        if re.fullmatch(r"_core[\w.-]*\.(so|pyd)", path.name) and path.parent.name == "phiggml":
            continue
        if str(path.parent) != "phiggml/lib":
            faults.append(f"{name} lies outside phiggml/lib: it was grafted, or is not ours.")
        elif not (MODULE.fullmatch(path.name) or OURS.fullmatch(path.name)):
            faults.append(
                f"{name} is no name of ours: another package may have loaded one of that name."
            )
    for name, elf in _elves(libraries).items():
        file = PurePosixPath(name).name
        if elf.soname and elf.soname != file:
            faults.append(f"{name} calls itself {elf.soname}: the loader goes by that name.")
    for wanted in ("ggml-base", "ggml", "llama"):
        if not any(f"phiggml-{wanted}." in name for name in libraries):
            faults.append(f"phiggml-{wanted} is missing.")
    return f"{len(libraries)} libraries", faults


def check_libraries(libraries: dict[str, bytes], platform: str) -> Found:
    """Nothing is needed that is not here or promised by the platform; least of all OpenMP."""
    here = {PurePosixPath(name).name for name in libraries}
    faults = []
    outside = set()
    elves = _elves(libraries)
    for name, elf in elves.items():
        for needed in elf.needed:
            if OPENMP.match(needed):
                faults.append(f"{name} needs {needed}: two of these in a process may end it.")
            elif needed not in here and not SYSTEM.fullmatch(needed):
                faults.append(f"{name} needs {needed}, which nobody promises.")
            if needed not in here:
                outside.add(needed)
    if "linux" in platform and len(elves) < len(libraries):
        faults.append(f"{sorted(set(libraries) - set(elves))} are no ELF files.")
    said = " ".join(sorted(outside)) if elves else "not looked at: no ELF files"
    return said, faults


def check_search_paths(libraries: dict[str, bytes]) -> Found:
    """Each finds the others beside it, and looks nowhere else."""
    faults = []
    for name, elf in _elves(libraries).items():
        inside = PurePosixPath(name).parent.name == "lib"
        wanted = "$ORIGIN" if inside else "$ORIGIN/lib"
        if elf.rpath:
            faults.append(
                f"{name} has an RPATH, which users cannot override: {':'.join(elf.rpath)}."
            )
        if elf.runpath != (wanted,):
            faults.append(f"{name} has the RUNPATH {':'.join(elf.runpath)!r}, not {wanted}.")
    return "$ORIGIN, $ORIGIN/lib", faults


def check_symbols(libraries: dict[str, bytes]) -> Found:
    """Only what the loader needs: the rest doubles the size."""
    elves = _elves(libraries)
    faults = [
        f"{name} is not stripped."
        for name, elf in elves.items()
        if elf.has_symbols or any(section.startswith(".debug") for section in elf.sections)
    ]
    return f"{len(elves) - len(faults)} stripped", faults


def _elves(libraries: dict[str, bytes]) -> dict[str, ElfFile]:
    """Those that can be read; check_libraries tells of the others."""
    elves = {}
    for name, data in libraries.items():
        with suppress(ValueError):
            elves[name] = read_elf(data)
    return elves
