"""Wrong calls raise the right class with a sentence, and none of them ends the process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import hostile_calls
import phiggml as pg
from hostile_endings import endings_of
from phiggml import chat_limits


@pytest.fixture(scope="module")
def endings(nano_f16: Path) -> dict[str, str]:
    """How each case ended in one process that made all of them."""
    lines = endings_of(hostile_calls.__file__, nano_f16)
    return dict(line.rsplit(": ok", 1) if line.endswith(": ok") else (line, "") for line in lines)


def test_the_process_lives_on(endings: dict[str, str]) -> None:
    assert len(endings) == len(hostile_calls.CASES)


@pytest.mark.parametrize("name", list(hostile_calls.CASES))
def test_case(endings: dict[str, str], name: str) -> None:
    assert name in endings, [line for line in endings if line.startswith(name)]


# What a file may say that it is a chat template; tests/test_chat.py has many more by themselves.
TEMPLATES: dict[str, tuple[Any, type[pg.PhiggmlError]]] = {
    "mro": ("{{ ''.__class__.__mro__ }}", pg.FormatError),
    "attr": ("{{ (''|attr('__class__')).mro() }}", pg.FormatError),
    "format": ("{% set f = '{0.__class__.__mro__}'.format %}{{ f(messages) }}", pg.FormatError),
    "ranges": (
        "{% for a in range(10**9) %}{% for b in range(10**9) %}{% endfor %}{% endfor %}",
        pg.FormatError,
    ),
    "time": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        pg.FormatError,
    ),
    "size": ("{{ 'x' * 10**10 }}", pg.FormatError),
    "no template": ("{% if %}", pg.FormatError),
    "nothing": ("", pg.InputError),
    "a refusal": ("{{ raise_exception('no') }}", pg.InputError),
    "a number": (pg.GGUFValue(5, "UINT32"), pg.UnsupportedError),
    "a list": (["{{ 1 }}"], pg.UnsupportedError),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_files(
    name: str, nano_f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, expected = TEMPLATES[name]
    path = tmp_path / "hostile.gguf"
    shutil.copy(nano_f16, path)
    pg.edit_gguf(path, unset=["tokenizer.chat_template"])
    pg.edit_gguf(path, set={"tokenizer.chat_template": template})
    monkeypatch.setattr(chat_limits, "MOST_SECONDS", 0.3)
    message = {"role": "user", "content": "Hi"}
    with pg.Session(path, n_ctx=64) as session:
        for ask in (session.chat, session.stream_chat):
            with pytest.raises(expected):
                ask([message])
        assert session.tokens.size == 0
        assert len(session.eval([5])) == session.model.n_vocab
