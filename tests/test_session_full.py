"""overflow="error": an answer that fills the context, and what was written by then."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import phiggml as pg
from command_line import GREEDY as GREEDILY
from command_line import Out, phiggml
from test_cli import at_the_keyboard
from test_session_cancel import endless

MESSAGES = [{"role": "user", "content": "Hi"}]
REMEDIES = r'larger n_ctx or with overflow="shift", write fewer tokens \(max_tokens\)'


def failed(call: Any) -> pg.Completion:
    with pytest.raises(pg.SessionError, match=REMEDIES) as raised:
        call()
    completion: pg.Completion = raised.value.completion
    assert completion.finish_reason == "failed" and raised.value.completions == ()
    assert completion.timings.tokens == len(completion.tokens)
    return completion


def test_an_answer_is_kept(nano_model: pg.Model) -> None:
    """It is the one that a longer context gives, as far as it goes."""
    sampling = endless(nano_model)
    with pg.Session(nano_model, n_ctx=96) as session, pg.Session(nano_model) as longer:
        for settings in ({}, {"draft": pg.PromptLookup()}, {"logprobs": 1}):
            long: dict[str, Any] = {"sampling": sampling, "max_tokens": 200, **settings}
            found = failed(lambda long=long: session.generate([5, 6, 7], **long))
            wanted = longer.generate([5, 6, 7], sampling=sampling, max_tokens=94)
            assert (found.tokens, found.text) == (wanted.tokens, wanted.text)
            assert (found.logprobs is None) == ("logprobs" not in long)
            found = failed(lambda long=long: session.chat(MESSAGES, **long))
            again = failed(lambda long=long: asyncio.run(session.achat(MESSAGES, **long)))
            n_prompt = found.timings.prompt_tokens
            wanted = longer.chat(MESSAGES, sampling=sampling, max_tokens=97 - n_prompt)
            for one in (found, again):
                assert (one.tokens, one.text) == (wanted.tokens, wanted.text)
        # What may become a stop text is held back, but not for ever.
        stop = wanted.text[-3:] + "?"
        held = failed(lambda: session.chat(MESSAGES, stop=stop, sampling=sampling, max_tokens=200))
        assert held.text == wanted.text


def test_where_there_is_no_answer_yet(nano_model: pg.Model) -> None:
    with pg.Session(nano_model, n_ctx=16) as session:
        for call in (
            lambda: session.eval([5] * 17),
            lambda: session.generate([5] * 17, max_tokens=1),
        ):
            with pytest.raises(pg.SessionError) as raised:
                call()
            assert raised.value.completion is None and raised.value.completions == ()


def test_on_the_command_line(
    nano_q4: Path, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pg.Model(nano_q4) as model:
        bans = [f"{token}=-inf" for token, _ in endless(model).logit_bias]
    never = [word for ban in bans for word in ("--logit-bias", ban)]
    options = ("-n", "200", "--n-ctx", "48", *GREEDILY, *never)
    line = ("run", nano_q4, "-p", "Hi", *options)
    assert phiggml(*line, "--json") == 7
    told = capsys.readouterr()
    document = json.loads(told.out)
    assert document["finish_reason"] == "failed" and len(document["tokens"]) > 16
    assert phiggml(*line) == 7
    plain = capsys.readouterr()
    assert plain.out == document["text"] + "\n"
    for written in (told, plain):
        assert "no room" in written.err.splitlines()[-1] and "Traceback" not in written.err
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    assert phiggml("chat", nano_q4, *options) == 7
    assert capsys.readouterr().out == plain.out
    at_the_keyboard(monkeypatch, "Hi", f"/save {tmp_path / 'talk.json'}", "/undo", "/tokens")
    assert phiggml("chat", nano_q4, *options) == 0
    talk = json.loads((tmp_path / "talk.json").read_text("utf-8"))
    assert talk == [*MESSAGES, {"role": "assistant", "content": document["text"]}]
    assert "takes 0 of 48" in capsys.readouterr().err
