"""The command line's chats: tools, system prompts, and answers of several parts."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import phiggml as pg
from command_line import phiggml
from forced_answers import control_checkpoint, forced

SAID = (
    "<think>They \x1b[31mask.</think>Let me see."
    '<|tool_call|>[{"name": "now", "arguments": {"zone": "é"}}]<|/tool_call|>'
)
Out = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return control_checkpoint(tmp_path_factory.mktemp("control"))


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    path = tmp_path / "tools.json"
    path.write_text('[{"type": "function", "function": {"name": "now"}}]', "utf-8")
    return path


@pytest.fixture
def prompts(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is answered with SAID, each prompt once."""
    seen: list[str] = []
    rendered = pg.Model.chat_prompt

    def watched(model: pg.Model, *arguments: Any, **settings: Any) -> str:
        prompt = rendered(model, *arguments, **settings)
        if prompt not in seen:
            seen.append(prompt)
        return prompt

    def opened(_arguments: Any, _resources: Any) -> pg.Session:
        return forced(pg.Model(path), SAID + "<|end|>" + SAID)

    monkeypatch.setattr(pg.Model, "chat_prompt", watched)
    for module in ("cli_run", "cli_chat"):
        monkeypatch.setattr(f"phiggml.{module}.open_session", opened)
    return seen


LISTED = '<|tool|>[{"name": "now"}]<|/tool|>'
CALL = 'now({"zone": "é"})'


def test_run_shows_each_part_in_its_place(
    path: Path, tools: Path, prompts: list[str], capsys: Out
) -> None:
    line = ("run", path, "-p", "Hi", "--system", "Be brief.", "--tools", tools)
    assert phiggml(*line) == 0
    text, notes = capsys.readouterr()
    assert text == f"Let me see.\n{CALL}\n"
    assert notes.startswith("They \x1b[31mask.\n\n")
    assert prompts == [f"<|system|>Be brief.{LISTED}<|end|><|user|>Hi<|end|><|assistant|>"]
    assert phiggml(*line, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["text"] == "Let me see."
    assert document["reasoning"] == "They \x1b[31mask."
    assert document["finish_reason"] == "tool_calls"
    assert document["tool_calls"] == [
        {"type": "function", "function": {"name": "now", "arguments": {"zone": "é"}}}
    ]


def test_thoughts_are_dim_and_harmless_on_a_terminal(
    path: Path, prompts: list[str], capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert phiggml("run", path, "-p", "Hi") == 0
    notes = capsys.readouterr().err
    assert "\x1b[31m" not in notes
    assert notes.replace("\x1b[2m", "").replace("\x1b[0m", "").startswith("They \\x1b[31mask.")
    assert notes.startswith("\x1b[2m")


def test_chat_goes_on_with_results(
    path: Path, tools: Path, prompts: list[str], capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n/result 12:00\n"))
    assert phiggml("chat", path, "--system", "S", "--tools", tools) == 0
    assert capsys.readouterr().out == f"Let me see.\n{CALL}\n" * 2
    system = f"<|system|>S{LISTED}<|end|>"
    first = f"{system}<|user|>Hi<|end|><|assistant|>"
    called = '<|tool_call|>[{"name": "now", "arguments": {"zone": "é"}}]<|/tool_call|>'
    assert prompts[1:] == [
        first,
        f"{first}Let me see.{called}<|end|><|tool|>12:00<|end|><|assistant|>",
    ]


@pytest.mark.parametrize("content", ["", "{}", '{"name": "now"}', "[1]", "\ud800"])
def test_tools_that_are_none(
    path: Path, tmp_path: Path, content: str, prompts: list[str], capsys: Out
) -> None:
    tools = tmp_path / "wrong.json"
    tools.write_bytes(content.encode(errors="surrogatepass"))
    assert phiggml("run", path, "-p", "Hi", "--tools", tools) == 3
    assert "chat: " in capsys.readouterr().err


def test_models_without_a_place_for_tools(nano_q4: Path, tools: Path, capsys: Out) -> None:
    assert phiggml("chat", nano_q4, "--tools", tools) == 5
    assert "no place for tools" in capsys.readouterr().err
    assert phiggml("run", nano_q4, "-p", "Hi", "--raw", "--system", "S") == 3
    assert "need the model's chat template" in capsys.readouterr().err
