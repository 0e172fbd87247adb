"""Fetching the third-party tree from within a build, as pip does when it installs the checkout."""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
METADATA = "Metadata-Version: 2.1\nName: {}\nVersion: 1.0\n"
BACKEND = """
from pathlib import Path

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = Path(folder) / "pinned-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text({metadata!r})
    (info / "WHEEL").write_text({wheel!r})
    return info.name

def build_wheel(*arguments, **keywords):
    raise AssertionError("nobody asked for a wheel")
"""
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def fetch() -> ModuleType:
    source = CHECKOUT / "third_party" / "fetch.py"
    if not source.is_file():
        pytest.skip("the tests run apart from the checkout")
    spec = importlib.util.spec_from_file_location("fetch", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_backend(folder: Path) -> None:
    """The wheel of a build backend that needs nothing."""
    info = "tinybackend-1.0.dist-info"
    files = {
        "tinybackend.py": BACKEND.format(metadata=METADATA.format("pinned"), wheel=WHEEL),
        f"{info}/METADATA": METADATA.format("tinybackend"),
        f"{info}/WHEEL": WHEEL,
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / "tinybackend-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, text)


def write_source_distribution(folder: Path) -> None:
    project = '[build-system]\nrequires = ["tinybackend"]\nbuild-backend = "tinybackend"\n'
    files = {"pyproject.toml": project, "PKG-INFO": METADATA.format("pinned")}
    with tarfile.open(folder / "pinned-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"pinned-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


def test_the_build_that_fetches_leaves_no_trace_in_what_it_fetches(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    write_backend(packages)
    write_source_distribution(packages)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(packages))
    backend = str(CHECKOUT / "build_backend")
    for prefix in ("PEP517_", "_PYPROJECT_HOOKS_"):
        monkeypatch.setenv(prefix + "BUILD_BACKEND", "phiggml_build")
    monkeypatch.setenv("PEP517_BACKEND_PATH", backend)
    monkeypatch.setenv("_PYPROJECT_HOOKS_BACKEND_PATH_JSON", json.dumps([backend]))
    pin = {"name": "pinned", "version": "1.0", "file": "pinned-1.0.tar.gz"}
    assert fetch.download(pin, tmp_path).is_file()
