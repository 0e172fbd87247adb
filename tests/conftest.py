"""Fixtures that many tests share: phi3-nano as GGUF files of several types, converted once."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import phiggml as pg

# The same examples in each run.
settings.register_profile("seeded", derandomize=True)
settings.load_profile("seeded")

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "examples" / "phi3-nano"


@pytest.fixture(scope="session", autouse=True)
def _hear_ctrl_c() -> None:
    """A shell has what it starts in the background ignore Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def nano_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("phi3-nano")


def _converted(folder: Path, type: str) -> Path:
    path = folder / f"phi3-nano-{type}.gguf"
    if not path.exists():
        pg.convert(NANO, path, type)
    return path


@pytest.fixture(scope="session")
def nano_f32(nano_folder: Path) -> Path:
    return _converted(nano_folder, "F32")


@pytest.fixture(scope="session")
def nano_f16(nano_folder: Path) -> Path:
    return _converted(nano_folder, "F16")


@pytest.fixture(scope="session")
def nano_q4(nano_folder: Path) -> Path:
    return _converted(nano_folder, "Q4_K_M")


@pytest.fixture(scope="session")
def nano_model(nano_f16: Path) -> pg.Model:
    return pg.Model(nano_f16)


@pytest.fixture(scope="session")
def questions() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((NANO / "questions.json").read_text("utf-8"))
    return loaded
