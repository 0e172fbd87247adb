"""tools/check_wheel.py: a good wheel passes, and each fault is seen, by made-up wheels."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "check_wheel.py"
PLATFORM = "manylinux_2_34_x86_64"
LIB = "phiggml/lib/"
INFO = "phiggml-0.1.0.dist-info/"

sys.path.insert(0, str(TOOL.parent))
check_wheel = importlib.import_module("check_wheel")
elf_file = importlib.import_module("elf_file")

Files = dict[str, bytes]


def elf(
    *needed: str, soname: str = "", runpath: str = "$ORIGIN", rpath: str = "", symbols: bool = False
) -> bytes:
    """A library of nothing but sections: no code, and what the loader reads."""
    texts = b"\0"
    dynamic = b""
    entries = [*((1, name) for name in needed), (14, soname), (29, runpath), (15, rpath)]
    for tag, text in entries:
        if text:
            dynamic += struct.pack("<QQ", tag, len(texts))
            texts += text.encode() + b"\0"
    names = b"\0.dynstr\0.dynamic\0.shstrtab\0.symtab\0"
    contents = [
        (3, b".dynstr", texts, 0),
        (6, b".dynamic", dynamic, 1),
        (3, b".shstrtab", names, 0),
    ]
    if symbols:
        contents.append((2, b".symtab", bytes(24), 0))
    body = b""
    headers = bytes(64)
    for type, name, content, link in contents:
        fields = (names.index(name), type, 0, 0, 64 + len(body), len(content), link, 0, 0, 0)
        headers += struct.pack("<IIQQQQIIQQ", *fields)
        body += content
    start = struct.pack("<6s10xHHIQQQ", b"\x7fELF\x02\x01", 3, 62, 1, 0, 0, 64 + len(body))
    start += struct.pack("<IHHHHHH", 0, 64, 0, 0, 64, 1 + len(contents), 3)
    return start + body + headers


def good_files() -> Files:
    """What a wheel holds: every file short, but of the right kind."""
    files = dict.fromkeys(check_wheel.EMBEDDING, b"/* */")
    files |= {
        f"phiggml/{name}": b""
        for name in ("__init__.py", "cli_self_test.py", "py.typed", "_core/__init__.pyi")
    }
    for name, needs in (("ggml-base", ()), ("ggml", ("ggml-base",)), ("llama", ("ggml",))):
        file = f"libphiggml-{name}.so"
        needed = [f"libphiggml-{other}.so" for other in needs]
        files[LIB + file] = elf(*needed, "libstdc++.so.6", "libc.so.6", soname=file)
    files["phiggml/_core.cpython-311-x86_64-linux-gnu.so"] = elf(
        "libphiggml-llama.so", "libgcc_s.so.1", "ld-linux-x86-64.so.2", runpath="$ORIGIN/lib"
    )
    for variant in check_wheel.VARIANTS:
        files[f"{LIB}libggml-cpu-{variant}.so"] = elf("libphiggml-ggml-base.so", "libm.so.6")
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in ("config.json", "tokenizer.model", "questions.json", *shards):
        files[f"phiggml/phi3-nano/{name}"] = b"{}"
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    files["phiggml/phi3-nano/model.safetensors.index.json"] = json.dumps(index).encode()
    for name, owner in check_wheel.LICENSES.items():
        files[f"{INFO}licenses/{name}"] = f"Copyright {owner}".encode()
    licenses = "".join(f"License-File: {name}\n" for name in check_wheel.LICENSES)
    metadata = f"Name: phiggml\nVersion: 0.1.0\nRequires-Python: >=3.10\n{licenses}"
    files[f"{INFO}METADATA"] = metadata.encode()
    files[f"{INFO}WHEEL"] = f"Tag: cp311-cp311-{PLATFORM}\n".encode()
    return files


def packed(folder: Path, files: Files, name: str = f"phiggml-0.1.0-cp311-cp311-{PLATFORM}") -> Path:
    if f"{INFO}RECORD" not in files:
        lines = [
            f"{file},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()[:-1]},{len(data)}"
            for file, data in files.items()
        ]
        files = {**files, f"{INFO}RECORD": "\n".join([*lines, f"{INFO}RECORD,,"]).encode()}
    path = folder / f"{name}.whl"
    with ZipFile(path, "w") as archive:
        for file, data in files.items():
            archive.writestr(file, data)
    return path


def faults(path: Path, **options: int) -> dict[str, str]:
    """The sentences of each check that found something."""
    found = check_wheel.findings(path, check_wheel.Options(**options))
    return {f.check: " ".join(f.faults) for f in found if f.faults}


def test_a_good_wheel_passes(tmp_path: Path) -> None:
    path = packed(tmp_path, good_files())
    assert faults(path, variants=14) == {}


def without(name: str) -> Callable[[Files], None]:
    return lambda files: files.__delitem__(name)


def having(name: str, data: bytes = b"") -> Callable[[Files], None]:
    return lambda files: files.__setitem__(name, data)


CORE = "phiggml/_core.cpython-311-x86_64-linux-gnu.so"
LLAMA = f"{LIB}libphiggml-llama.so"
CONFIG = "phiggml/cmake/phiggmlConfig.cmake"
WRONG: list[tuple[str, Callable[[Files], None], str]] = [
    ("tag", having(f"{INFO}WHEEL", b"Tag: cp311-cp311-linux_x86_64\n"), "WHEEL says"),
    ("tag", having(f"{INFO}METADATA", b"Version: 0.2.0\n"), "METADATA says 0.2.0"),
    ("record", having(f"{INFO}RECORD", f"{INFO}RECORD,,".encode()), "RECORD lacks phiggml/"),
    ("licences", without(f"{INFO}licenses/LICENSES/pybind11.txt"), "pybind11.txt is missing"),
    ("licences", having(f"{INFO}licenses/LICENSE", b"MIT"), "does not name The phiggml authors"),
    ("library names", having(f"{LIB}libggml-base.so", elf()), "no name of ours"),
    ("library names", having(f"{LIB}libllama.so", elf()), "no name of ours"),
    ("library names", having(f"{LIB}libggml.so.0", elf()), "no name of ours"),
    ("library names", having("phiggml.libs/libgomp-24e2ab19.so.1", elf()), "grafted"),
    ("library names", having(LLAMA, elf(soname="libllama.so")), "calls itself libllama.so"),
    ("library names", without(LLAMA), "phiggml-llama is missing"),
    ("needed", having(LLAMA, elf("libgomp.so.1")), "needs libgomp.so.1"),
    ("needed", having(LLAMA, elf("libomp.so.5")), "needs libomp.so.5"),
    ("needed", having(LLAMA, elf("libssl.so.3")), "libssl.so.3, which nobody promises"),
    ("needed", having(LLAMA, b"\x7fELF\x02\x01"), "are no ELF files"),
    ("search paths", having(LLAMA, elf(runpath="/home/me/build")), "has the RUNPATH '/home/me"),
    ("search paths", having(LLAMA, elf(runpath="$ORIGIN:")), "has the RUNPATH '[$]ORIGIN:'"),
    ("search paths", having(LLAMA, elf(rpath="$ORIGIN")), "has an RPATH"),
    ("search paths", having(CORE, elf(runpath="$ORIGIN")), "not [$]ORIGIN/lib"),
    ("symbols", having(LLAMA, elf(symbols=True)), "is not stripped"),
    ("variants", without(f"{LIB}libggml-cpu-zen4.so"), r"13 CPU modules.*\(zen4 missing\)"),
    ("demo model", without("phiggml/phi3-nano/model-00002-of-00002.safetensors"), "00002-of"),
    ("embedding", without("phiggml/include/llama.h"), "llama.h, which embedding needs"),
    ("embedding", having(CONFIG, b'set(x "/home/me/ggml")'), "names /home/me/ggml"),
    ("embedding", without("phiggml/py.typed"), "py.typed"),
    ("litter", having("phiggml/kernels/iq1.cpp"), "iq1.cpp does not belong"),
    ("litter", having("tests/test_quant.py"), "tests/test_quant.py does not belong"),
    ("litter", having("phiggml/test_quant.py"), "test_quant.py does not belong"),
    ("litter", having("phiggml/lib/libllama.a"), "libllama.a does not belong"),
    ("litter", having("phiggml/__pycache__/cli.cpython-311.pyc"), "pyc does not belong"),
]


@pytest.mark.parametrize(("check", "spoil", "sentence"), WRONG)
def test_a_fault_is_a_sentence(
    tmp_path: Path, check: str, spoil: Callable[[Files], None], sentence: str
) -> None:
    files = good_files()
    spoil(files)
    found = faults(packed(tmp_path, files), variants=14)
    assert check in found
    assert re.search(sentence, found[check]), found


def test_names_sizes_and_what_is_no_wheel(tmp_path: Path) -> None:
    files = good_files()
    plain = packed(tmp_path, files, "phiggml-0.1.0-cp311-cp311-linux_x86_64")
    assert "repair it with auditwheel" in faults(plain)["tag"]
    pure = packed(tmp_path, files, f"phiggml-0.1.0-py3-none-{PLATFORM}")
    assert "for one version of CPython" in faults(pure)["tag"]
    assert "the limit" in faults(packed(tmp_path, files), most_bytes=1000)["size"]
    (tmp_path / "text.whl").write_text("no wheel")
    assert "is no wheel" in faults(tmp_path / "text.whl")["archive"]


def test_the_exit_status_tells(tmp_path: Path) -> None:
    good = packed(tmp_path, good_files())
    files = good_files()
    del files[f"{LIB}libggml-cpu-zen4.so"]
    bad = packed(tmp_path, files, f"phiggml-0.1.0-cp311-cp311-{PLATFORM}.linux_x86_64")
    status = {}
    for path in (good, bad):
        command = [sys.executable, str(TOOL), "--variants", "14", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        status[path] = (done.returncode, "zen4 missing" in done.stdout)
    assert status == {good: (0, False), bad: (1, True)}


def test_a_real_library_is_read_as_readelf_reads_it() -> None:
    from phiggml.runtime import library_folder

    library = library_folder() / "libphiggml-llama.so"
    found = elf_file.read_elf(library.read_bytes())
    text = subprocess.run(
        ["readelf", "-d", "-W", str(library)], capture_output=True, text=True, check=True
    ).stdout
    named = [line.rpartition("[")[2].rstrip("]") for line in text.splitlines() if "[" in line]
    listed = [*found.needed, found.soname, ":".join(found.runpath)]
    assert named == listed
    with pytest.raises(ValueError, match="no 64-bit"):
        elf_file.read_elf(b"\x7fELF\x01\x01")
