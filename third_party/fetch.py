"""Fetches the pinned llama.cpp source, verifies it, and unpacks the part that phiggml needs.

Run it by hand (`python third_party/fetch.py`), or let the build do so. The tree lands in
third_party/llama.cpp, which git ignores; a stamp inside it carries the hash of the pin, so
that a changed pin fetches anew. PHIGGML_LLAMA_CPP_ARCHIVE names a local archive to use
instead of the package index.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PIN = HERE / "llama_cpp.json"
TREE = HERE / "llama.cpp"
STAMP = TREE / ".pin-sha256"


def pin_hash() -> str:
    return hashlib.sha256(PIN.read_bytes()).hexdigest()


def is_current() -> bool:
    return STAMP.is_file() and STAMP.read_text().strip() == pin_hash()


def verify(archive: Path, pin: dict[str, Any]) -> None:
    """Exits with a sentence unless `archive` has the pinned size and sha256."""
    size = archive.stat().st_size
    if size != pin["size"]:
        raise SystemExit(f"fetch: {archive.name}: {size} bytes, the pin says {pin['size']}.")
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() != pin["sha256"]:
        raise SystemExit(
            f"fetch: {archive.name}: its sha256 is {digest.hexdigest()}, the pin says "
            f"{pin['sha256']}. Do not use this file; look at the source of your packages."
        )


def outside_a_build() -> dict[str, str]:
    """The environment without the outer build hook, which pip 23 would run for llama.cpp too."""
    hook = ("PEP517_", "_PYPROJECT_HOOKS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(hook)}


def download(pin: dict[str, Any], folder: Path) -> Path:
    """Lets pip fetch the source distribution by name, with the user's own pip settings."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", pin["name"], "--dest", str(folder)]
    command += [f"{pin['name']}=={pin['version']}"]
    result = subprocess.run(command, capture_output=True, text=True, env=outside_a_build())
    archive = folder / pin["file"]
    if result.returncode != 0 or not archive.is_file():
        raise SystemExit(
            f"fetch: pip could not download {pin['name']}=={pin['version']}:\n{result.stderr}\n"
            f"Without a network, set PHIGGML_LLAMA_CPP_ARCHIVE to a copy of {pin['file']}."
        )
    return archive


def wanted(member: str, pin: dict[str, Any]) -> bool:
    kept = any(member == k or (k.endswith("/") and member.startswith(k)) for k in pin["keep"])
    return kept and not any(member.startswith(d) for d in pin["drop"])


def copy_out(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Writes one regular file; tarfile's own filters came with 3.11.4, and Debian 12 has 3.11.2."""
    source = tar.extractfile(member)
    assert source is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("wb") as file:
        shutil.copyfileobj(source, file)
    if member.mode & 0o100:
        target.chmod(0o755)


def unpack(archive: Path, folder: Path, pin: dict[str, Any], everything: bool) -> None:
    """Unpacks the pinned prefix of `archive` into `folder`: all of it, or what the pin keeps."""
    prefix = pin["prefix"]
    with tarfile.open(archive) as tar:
        for member in tar:
            inner = member.name.removeprefix(prefix)
            if inner == member.name or not member.isfile():
                continue
            if ".." in Path(inner).parts or Path(inner).is_absolute():
                raise SystemExit(f"fetch: {archive.name}: {member.name} would land outside.")
            if everything or wanted(inner, pin):
                copy_out(tar, member, folder / inner)


def archive_for(pin: dict[str, Any], folder: Path) -> Path:
    local = os.environ.get("PHIGGML_LLAMA_CPP_ARCHIVE")
    archive = Path(local) if local else download(pin, folder)
    if not archive.is_file():
        raise SystemExit(f"fetch: {archive}: no such file (PHIGGML_LLAMA_CPP_ARCHIVE names it).")
    verify(archive, pin)
    return archive


def fetch() -> Path:
    """Makes third_party/llama.cpp current and returns its path; does nothing when it is."""
    if is_current():
        return TREE
    pin = json.loads(PIN.read_text())
    with tempfile.TemporaryDirectory(dir=HERE, prefix=".fetch-") as temporary:
        fresh = Path(temporary) / "llama.cpp"
        unpack(archive_for(pin, Path(temporary)), fresh, pin, everything=False)
        (fresh / STAMP.name).write_text(pin_hash() + "\n")
        shutil.rmtree(TREE, ignore_errors=True)
        fresh.rename(TREE)
    return TREE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", metavar="DIR", help="unpack the whole untouched tree into DIR")
    arguments = parser.parse_args()
    if arguments.all:
        pin = json.loads(PIN.read_text())
        with tempfile.TemporaryDirectory() as temporary:
            archive = archive_for(pin, Path(temporary))
            unpack(archive, Path(arguments.all), pin, everything=True)
    else:
        fetch()


if __name__ == "__main__":
    main()
