"""The command line's verbs: what they do and print."""

from __future__ import annotations

import io
import itertools
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest

import phiggml as pg
from command_line import GREEDY, NANO, Out, Terminal, complaint, phiggml, without_template
from phiggml import cli_demo, cli_terminal

# convert and quantize -----------------------------------------------------------------------------


def test_convert_writes_what_the_dry_run_says(tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "nano.gguf"
    line = ("convert", NANO, "-o", out, "--type", "q4_k_m", "--json")
    assert phiggml(*line, "--dry-run") == 0
    planned = json.loads(capsys.readouterr().out)
    assert not out.exists()
    assert phiggml(*line) == 0
    report = json.loads(capsys.readouterr().out)
    assert (planned["written"], report["written"]) == (False, True)
    assert planned["nbytes"] == report["nbytes"] == out.stat().st_size
    found = {t.name: (t.tensor_type.name, int(t.n_bytes)) for t in gguf.GGUFReader(out).tensors}
    assert found == {t["name"]: (t["type"], t["nbytes"]) for t in report["tensors"]}


def test_convert_says_what_it_wrote(tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "nano.gguf"
    overrides = ("--override", r"^output\.weight$=q8_0", "--override", "a=b=Q4_0")
    assert phiggml("convert", NANO, "-o", out, "--type", "Q4_K_M", *overrides) == 0
    text, bar = capsys.readouterr()
    assert re.search(r"^Q8_0 +1 ", text, re.MULTILINE)
    assert "'a=b' has no effect" in text
    assert "bits per weight" in text.splitlines()[-1]
    assert bar == ""  # no terminal
    with pg.GGUFFile(out) as file:
        assert file.tensors["output.weight"].type == "Q8_0"


def test_convert_has_the_default_of_the_api(tmp_path: Path, capsys: Out) -> None:
    assert phiggml("convert", NANO, "-o", tmp_path / "nano.gguf", "--dry-run") == 0
    assert re.search("^F16: ", capsys.readouterr().out, re.MULTILINE)


def test_quiet_is_quiet(tmp_path: Path, capsys: Out) -> None:
    assert phiggml("convert", NANO, "-o", tmp_path / "nano.gguf", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "output", "embedding", "attention"),
    [
        (("--type", "Q4_K_M"), "Q6_K", "Q4_K", "Q6_K"),
        (("--type", "Q4_K_M", "--pure"), "Q4_K", "Q4_K", "Q4_K"),
        (("--type", "Q4_K_M", "--leave-output"), "F16", "Q4_K", "Q6_K"),
        (("--type", "Q8_0", "--output-type", "q5_k"), "Q5_K", "Q8_0", "Q8_0"),
        (("--type", "Q8_0", "--embedding-type", "q5_k"), "Q8_0", "Q5_K", "Q8_0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_quantize_options(
    nano_f16: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    output: str,
    embedding: str,
    attention: str,
) -> None:
    out = tmp_path / "out.gguf"
    assert phiggml("quantize", nano_f16, "-o", out, *arguments) == 0
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(out).tensors}
    found = (types["output.weight"], types["token_embd.weight"], types["blk.3.attn_qkv.weight"])
    assert found == (output, embedding, attention)


def test_quantizing_again_must_be_asked_for(nano_q4: Path, tmp_path: Path, capsys: Out) -> None:
    line = ("quantize", nano_q4, "-o", tmp_path / "out.gguf", "--type", "Q4_0")
    assert phiggml(*line) == 3
    assert "quantized already" in complaint(capsys)
    assert phiggml(*line, "--allow-requantize") == 0


def test_overwriting_must_be_asked_for(tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"mine")
    assert phiggml("convert", NANO, "-o", out) == 8
    assert complaint(capsys) == f"phiggml: {out}: File exists. Pass --overwrite to replace it."
    assert out.read_bytes() == b"mine"
    assert phiggml("convert", NANO, "-o", out, "--overwrite") == 0
    assert out.read_bytes()[:4] == b"GGUF"


def test_progress_shows_on_a_terminal_only(
    nano_f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_terminal, "_BAR_AFTER_SECONDS", 0)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    line = ("quantize", nano_f16, "-o", tmp_path / "out.gguf", "--type", "Q8_0", "--overwrite")
    assert phiggml(*line, "--quiet") == 0
    assert screen.getvalue() == ""
    assert phiggml(*line) == 0
    assert re.search(r"quantize  +\d+%\|", screen.getvalue())


# run and chat -------------------------------------------------------------------------------------


def test_run_writes_the_answer_that_the_api_gives(nano_q4: Path, capsys: Out) -> None:
    with pg.Session(nano_q4, threads=1) as session:
        question = [{"role": "user", "content": "What is GGUF?"}]
        answer = session.chat(question, max_tokens=12, sampling=pg.Sampling(temperature=0))
    line = ("run", nano_q4, "-p", "What is GGUF?", "-n", "12", *GREEDY)
    assert phiggml(*line) == 0
    text, speed = capsys.readouterr()
    assert text == answer.text + "\n"
    assert re.fullmatch(
        r"\d+ tokens read at [\d.]+/s; \d+ written at [\d.]+/s, the first .*\n", speed
    )
    assert phiggml(*line, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["text"] == answer.text
    assert document["tokens"] == list(answer.tokens)
    assert document["finish_reason"] == answer.finish_reason
    assert document["timings"]["prompt_tokens"] == answer.timings.prompt_tokens


def test_run_is_repeatable_by_its_seed(nano_q4: Path, capsys: Out) -> None:
    def answer(seed: str) -> str:
        hot = ("--temperature", "3", "--top-k", "0", "--top-p", "1", "--min-p", "0")
        line = ("run", nano_q4, "-p", "Once", "-n", "16", "--threads", "1", *hot, "--seed", seed)
        assert phiggml(*line, "--json") == 0
        return str(json.loads(capsys.readouterr().out)["tokens"])

    assert answer("1") == answer("1") != answer("2")


def test_run_reads_its_prompt_from_stdin(
    nano_q4: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Where is\nit?\n"))
    assert phiggml("run", nano_q4, "-p", "-", "-n", "1", "--json", *GREEDY) == 0
    assert "Where is\nit?<|end|>" in json.loads(capsys.readouterr().out)["prompt"]


def test_run_raw_and_without_a_template(nano_q4: Path, tmp_path: Path, capsys: Out) -> None:
    answers = []
    for line in ((nano_q4, "--raw"), (without_template(nano_q4, tmp_path),)):
        assert phiggml("run", *line, "-p", "Once upon", "-n", "8", "--json", *GREEDY) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert [answer["prompt"] for answer in answers] == ["Once upon"] * 2
    assert answers[0]["tokens"] == answers[1]["tokens"]


def test_run_stops_where_the_context_ends(nano_q4: Path, capsys: Out) -> None:
    line = ("run", nano_q4, "-p", "Once", "--raw", "--n-ctx", "32", "--json", *GREEDY)
    assert phiggml(*line) == 0
    timings = json.loads(capsys.readouterr().out)["timings"]
    assert timings["prompt_tokens"] + timings["tokens"] <= 32
    assert phiggml(*line, "-n", "400") in (0, 7)  # 7 unless the model ends by itself


@pytest.fixture
def chats(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, str]]]:
    """What the template is asked to render, in order; the first is the probe of the start."""
    seen: list[list[tuple[str, str]]] = []
    rendered = pg.Model.chat_prompt

    def watched(model: pg.Model, messages: Sequence[Any], **settings: Any) -> str:
        asked = [(message["role"], message["content"]) for message in messages]
        if asked not in seen[-1:]:  # once to see how much room is left, and once for the answer
            seen.append(asked)
        return rendered(model, messages, **settings)

    monkeypatch.setattr(pg.Model, "chat_prompt", watched)
    return seen


def test_chat_from_a_pipe(
    nano_q4: Path,
    chats: list[list[tuple[str, str]]],
    capsys: Out,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed = "Hi\n\n/system Be brief.\nWhat?\n/system\n/reset\n/nope\nSo?\n/quit\nnever\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert phiggml("chat", nano_q4, "-n", "4", *GREEDY) == 0
    text, notes = capsys.readouterr()
    assert ">" not in text
    assert "no command /nope" in notes
    first, second, third = chats[1:]
    assert first == [("user", "Hi")]
    answer = second[2]
    assert second == [("system", "Be brief."), ("user", "Hi"), answer, ("user", "What?")]
    assert answer[0] == "assistant"
    assert text.startswith(answer[1] + "\n")
    assert third == [("user", "So?")]


def at_the_keyboard(monkeypatch: pytest.MonkeyPatch, *typed: str | type[BaseException]) -> None:
    lines = iter(typed)

    def typing(_prompt: str) -> str:
        line = next(lines, EOFError)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", typing)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(
    nano_q4: Path,
    chats: list[list[tuple[str, str]]],
    capsys: Out,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streamed = pg.Session.stream_chat
    interrupted = iter([0, 2])

    def stream(session: pg.Session, messages: Any, **settings: Any) -> Iterator[pg.Chunk]:
        stop = next(interrupted, None)
        yield from itertools.islice(streamed(session, messages, **settings), stop)
        if stop is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(pg.Session, "stream_chat", stream)
    at_the_keyboard(monkeypatch, "One", KeyboardInterrupt, "Two", "Three")
    assert phiggml("chat", nano_q4, "-n", "4", *GREEDY) == 0
    notes = capsys.readouterr().err
    assert notes.count("stopped") == 2
    assert notes.rstrip().splitlines()[-1].count("written at") == 1
    first, second, third = chats[1:]
    assert (first, second) == ([("user", "One")], [("user", "Two")])  # One got no answer at all
    assert [role for role, _ in third] == ["user", "assistant", "user"]


def test_a_full_chat_goes_on_at_the_keyboard(
    nano_q4: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_the_keyboard(monkeypatch, "word " * 40, "/reset", "Hi", "/help")
    assert phiggml("chat", nano_q4, "-n", "2", "--n-ctx", "32", *GREEDY) == 0
    notes = capsys.readouterr().err
    assert "/reset makes room." in notes
    assert "written at" in notes
    assert "/system TEXT" in notes


def test_a_full_chat_fails_in_a_pipe(
    nano_q4: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("word " * 40 + "\n"))
    assert phiggml("chat", nano_q4, "--n-ctx", "32", *GREEDY) == 7
    assert "n_ctx = 32" in complaint(capsys)


# devices, demo ------------------------------------------------------------------------------------


def test_devices(capsys: Out) -> None:
    assert phiggml("devices", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [device["name"] for device in listed] == [device.name for device in pg.devices()]
    assert phiggml("devices") == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["name", "kind", "backend", "free", "memory", "description"]
    assert len(rows) == len(listed)


def test_demo(tmp_path: Path, capsys: Out) -> None:
    asked = ("--question", "What?", "--question", "Why?")
    assert phiggml("demo", "--keep", tmp_path / "kept", "--threads", "1", *asked) == 0
    text = capsys.readouterr().out
    files = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert files == ["phi3-nano-BF16.gguf", "phi3-nano-Q4_K_M.gguf"]
    assert re.search(r"^phi3-nano/ \(bf16\) .* 16\.\d\d$", text, re.MULTILINE)
    assert re.search(r"^phi3-nano-Q4_K_M\.gguf .* \d\.\d\d +\d\.\d\dx smaller", text, re.MULTILINE)
    assert re.findall(r"^> (.*)$", text, re.MULTILINE) == ["What?", "Why?"]
    assert text.count("written at") == 2


def test_the_demo_asks_what_the_model_knows(questions: list[dict[str, Any]]) -> None:
    assert set(cli_demo._QUESTIONS) <= {entry["question"] for entry in questions}
    assert len(cli_demo._QUESTIONS) == 2
