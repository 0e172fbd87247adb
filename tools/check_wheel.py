"""Whether a wheel of phiggml is fit to be given away: tag, size, licences, libraries, files.

python tools/check_wheel.py [--variants 14] WHEEL...
Prints a table; each fault is a sentence, and the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from email.parser import Parser
from functools import cached_property
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile

from cpu_variants import VARIANTS
from wheel_libraries import check_libraries, check_names, check_search_paths, check_symbols

MOST_BYTES = 25_000_000
NANO = "phiggml/phi3-nano/"
# What is compiled in, by the file of its licence, and whose name stands there.
LICENSES = {
    "LICENSE": "The phiggml authors",
    "LICENSES/llama.cpp.txt": "The ggml authors",
    "LICENSES/llamafile.txt": "Mozilla Foundation",
    "LICENSES/pybind11.txt": "Wenzel Jakob",
    "LICENSES/unicode.txt": "Unicode, Inc.",
    "LICENSES/yarn.txt": "Jeffrey Quesnelle",
}
# What another extension that links our libraries needs (docs/embedding.md).
EMBEDDING = (
    *(f"phiggml/include/{name}.h" for name in ("llama", "llama-cpp", "ggml", "ggml-alloc")),
    *(f"phiggml/include/{name}.h" for name in ("ggml-backend", "ggml-cpp", "ggml-cpu")),
    *(f"phiggml/include/{name}.h" for name in ("ggml-opt", "gguf")),
    "phiggml/cmake/phiggmlConfig.cmake",
    "phiggml/cmake/phiggmlConfigVersion.cmake",
)
# Everything in a wheel is one of these; what is not is litter.
WANTED = (
    r"phiggml/(\w+/)*(?!test_|conftest)\w+\.pyi?",
    r"phiggml/py\.typed",
    r"phiggml/_core[\w.-]*\.(so|pyd)",
    r"phiggml/lib/[\w.-]+\.(so|dylib|dll|lib)",
    r"phiggml/(include/[\w-]+\.h|cmake/\w+\.cmake)",
    r"phiggml/phi3-nano/[\w.-]+\.(json|model|safetensors|txt|md)",
    r"phiggml-[\w.]+\.dist-info/(METADATA|RECORD|WHEEL|entry_points\.txt|licenses/[\w./-]+)",
)


@dataclass(frozen=True)
class Wheel:
    """A wheel's file and its contents."""

    path: Path
    files: dict[str, bytes] = field(repr=False)

    @cached_property
    def platform(self) -> str:
        return self.path.stem.rpartition("-")[2]

    @cached_property
    def information(self) -> str:
        """The folder of the wheel's own metadata."""
        return "-".join(self.path.stem.split("-")[:2]) + ".dist-info/"

    def metadata(self, name: str) -> Message:
        return Parser().parsestr(self.files.get(self.information + name, b"").decode("utf-8"))

    @cached_property
    def libraries(self) -> dict[str, bytes]:
        """Compiled files by name."""
        endings = (".so", ".pyd", ".dll", ".dylib")
        found = {}
        for name, data in self.files.items():
            if name.endswith(endings) or ".so." in PurePosixPath(name).name:
                found[name] = data
        return found


@dataclass(frozen=True)
class Options:
    """What the wheel is held to."""

    variants: int | None = None
    most_bytes: int = MOST_BYTES


@dataclass(frozen=True)
class Finding:
    """A line of the table, and what is wrong."""

    check: str
    found: str
    faults: tuple[str, ...]


def read_wheel(path: Path) -> Wheel:
    """Reads all of a wheel; one is at most some dozens of megabytes."""
    with ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        return Wheel(path, {name: archive.read(name) for name in names})


def check_tag(wheel: Wheel, _: Options) -> tuple[str, list[str]]:
    faults = []
    parts = wheel.path.stem.split("-")
    if len(parts) != 5 or parts[0] != "phiggml":
        return wheel.path.name, ["the file's name is not phiggml-VERSION-PYTHON-ABI-PLATFORM.whl."]
    tags = wheel.metadata("WHEEL").get_all("Tag") or []
    named = {
        f"{python}-{abi}-{platform}"
        for python in parts[2].split(".")
        for abi in parts[3].split(".")
        for platform in parts[4].split(".")
    }
    if set(tags) != named:
        faults.append(f"the name says {sorted(named)}, and WHEEL says {sorted(tags)}.")
    if parts[4].startswith("linux_"):
        faults.append(f"{parts[4]} is no tag that an index takes: repair it with auditwheel.")
    if not re.fullmatch(r"cp3\d+", parts[2]) or parts[2] != parts[3]:
        faults.append(f"{parts[2]}-{parts[3]}: the extension is for one version of CPython.")
    metadata = wheel.metadata("METADATA")
    if metadata["Version"] != parts[1]:
        faults.append(f"the name says version {parts[1]}, and METADATA says {metadata['Version']}.")
    if not str(metadata["Requires-Python"]).startswith(">="):
        faults.append("METADATA names no lowest version of Python.")
    return "-".join(parts[1:]), faults


def check_size(wheel: Wheel, options: Options) -> tuple[str, list[str]]:
    n_bytes = wheel.path.stat().st_size
    unpacked = sum(map(len, wheel.files.values()))
    faults = []
    if n_bytes > options.most_bytes:
        faults.append(f"it has {n_bytes:,} bytes, and {options.most_bytes:,} are the limit.")
    return f"{n_bytes / 1e6:.2f} MB, {unpacked / 1e6:.1f} MB unpacked", faults


def check_record(wheel: Wheel, _: Options) -> tuple[str, list[str]]:
    record = wheel.information + "RECORD"
    recorded = {}
    for line in wheel.files.get(record, b"").decode("utf-8").splitlines():
        name, digest, _size = line.rsplit(",", 2)
        recorded[name.strip('"')] = digest
    faults = [f"RECORD lacks {name}." for name in sorted(set(wheel.files) - set(recorded))]
    faults += [f"RECORD names {name}, absent." for name in sorted(set(recorded) - set(wheel.files))]
    for name, data in wheel.files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        if name != record and name in recorded and recorded[name] != f"sha256={digest}":
            faults.append(f"RECORD has another hash of {name}.")
    return f"{len(recorded)} files", faults


def check_licenses(wheel: Wheel, _: Options) -> tuple[str, list[str]]:
    faults = []
    folder = f"{wheel.information}licenses/"
    declared = set(wheel.metadata("METADATA").get_all("License-File") or [])
    for name, owner in LICENSES.items():
        text = wheel.files.get(folder + name)
        if text is None:
            faults.append(f"the licence {name} is missing.")
        elif owner not in text.decode("utf-8"):
            faults.append(f"the licence {name} does not name {owner}.")
        if name not in declared:
            faults.append(f"METADATA does not declare the licence {name}.")
    found = [name for name in wheel.files if name.startswith(folder)]
    return ", ".join(PurePosixPath(name).stem for name in sorted(found)), faults


def check_variants(wheel: Wheel, options: Options) -> tuple[str, list[str]]:
    pattern = r"phiggml/lib/(?:lib)?ggml-cpu(?:-([\w.]+?))?\.(?:so|dll|dylib)"
    matches = [re.fullmatch(pattern, name) for name in wheel.libraries]
    variants = [match[1] or "(one for all)" for match in matches if match]
    faults = []
    if not variants:
        faults.append("there is no CPU module, so nothing runs.")
    if options.variants is not None and len(variants) != options.variants:
        missing = sorted(set(VARIANTS) - set(variants)) if "x86_64" in wheel.platform else []
        said = f" ({', '.join(missing)} missing)" if missing else ""
        faults.append(
            f"there are {len(variants)} CPU modules, and {options.variants} are wanted{said}."
        )
    return f"{len(variants)} CPU modules: {' '.join(sorted(variants))}", faults


def check_demo(wheel: Wheel, _: Options) -> tuple[str, list[str]]:
    wanted = {f"{NANO}{name}" for name in ("config.json", "tokenizer.model", "questions.json")}
    index = NANO + "model.safetensors.index.json"
    shards = json.loads(wheel.files[index])["weight_map"].values() if index in wheel.files else []
    wanted |= {index, *(NANO + shard for shard in shards)}
    faults = [f"the demo checkpoint lacks {name}." for name in sorted(wanted - set(wheel.files))]
    n_bytes = sum(len(data) for name, data in wheel.files.items() if name.startswith(NANO))
    return f"{len(set(shards))} shards, {n_bytes / 1e6:.1f} MB", faults


def check_embedding(wheel: Wheel, _: Options) -> tuple[str, list[str]]:
    missing = [name for name in EMBEDDING if name not in wheel.files]
    faults = [f"{name}, which embedding needs, is missing." for name in missing]
    config = wheel.files.get("phiggml/cmake/phiggmlConfig.cmake", b"").decode("utf-8")
    faults += [
        f"phiggmlConfig.cmake names {path}, which is a place on the machine of the build."
        for path in re.findall(r"[\"\s](/[\w./-]{2,}|[A-Z]:[\\/][\w\\/.-]+)", config)
    ]
    typed = "phiggml/py.typed" in wheel.files and "phiggml/_core/__init__.pyi" in wheel.files
    if not typed:
        faults.append("py.typed or the stubs of _core are missing.")
    return f"{len(EMBEDDING) - len(missing)} headers and CMake files, types", faults


def check_litter(wheel: Wheel, _: Options) -> tuple[str, list[str]]:
    patterns = re.compile("|".join(WANTED))
    litter = sorted(name for name in wheel.files if not patterns.fullmatch(name))
    faults = [f"{name} does not belong into a wheel." for name in litter]
    return f"{len(litter)} files too many", faults


CHECKS: dict[str, Callable[[Wheel, Options], tuple[str, list[str]]]] = {
    "tag": check_tag,
    "size": check_size,
    "record": check_record,
    "licences": check_licenses,
    "library names": lambda wheel, _: check_names(wheel.libraries),
    "needed": lambda wheel, _: check_libraries(wheel.libraries, wheel.platform),
    "search paths": lambda wheel, _: check_search_paths(wheel.libraries),
    "symbols": lambda wheel, _: check_symbols(wheel.libraries),
    "variants": check_variants,
    "demo model": check_demo,
    "embedding": check_embedding,
    "litter": check_litter,
}


def findings(path: Path, options: Options) -> Iterator[Finding]:
    """What each check found."""
    try:
        wheel = read_wheel(path)
    except (BadZipFile, OSError) as fault:
        yield Finding("archive", "unreadable", (f"{path.name} is no wheel: {fault}.",))
        return
    for name, check in CHECKS.items():
        found, faults = check(wheel, options)
        yield Finding(name, found, tuple(faults))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", type=int, metavar="N", help="this many CPU modules")
    parser.add_argument("--most-megabytes", type=float, default=MOST_BYTES / 1e6)
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL")
    arguments = parser.parse_args()
    options = Options(arguments.variants, int(arguments.most_megabytes * 1e6))
    n_faults = 0
    for path in arguments.wheels:
        print(path.name)
        for finding in findings(path, options):
            print(f"  {finding.check:<14} {'FAULT' if finding.faults else 'ok':<6} {finding.found}")
            for fault in finding.faults:
                print(f"  {'':<14} {fault}")
            n_faults += len(finding.faults)
    return int(n_faults > 0)


if __name__ == "__main__":
    sys.exit(main())
