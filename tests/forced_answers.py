"""Sessions that say what a test tells them to, token by token."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import phiggml as pg

TINY = Path(__file__).parent / "data" / "phi4-mini-tiny"


def control_checkpoint(folder: Path) -> Path:
    """TINY as a GGUF file, with the markers of tools and of thoughts as control tokens."""
    shutil.copytree(TINY, folder / "tiny")
    for path in (folder / "tiny").glob("*.json"):
        text = path.read_text("utf-8")
        text = text.replace("<|tag|>", "<think>").replace("<|tool_response|>", "</think>")
        path.write_text(text.replace('"special":false', '"special":true'), "utf-8")
    pg.convert(folder / "tiny", folder / "tiny.gguf", "F32")
    return folder / "tiny.gguf"


class Forced:
    """A session's core that says what it is told to."""

    def __init__(self, core: Any, tokens: Sequence[int]) -> None:
        self._core = core
        self._tokens = iter(tokens)

    def sample(self, _sampler: Any, _row: int) -> int:
        return int(next(self._tokens))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


def forced(model: pg.Model, answer: str, *, ends: bool = True) -> pg.Session:
    """A session that answers with the tokens of a text."""
    session = pg.Session(model, n_ctx=1024, threads=1)
    tokens = model.tokenize(answer + ends * "<|end|>", add_special=False, parse_special=True)
    session._core = Forced(session._core, list(tokens))  # type: ignore[assignment]
    return session
