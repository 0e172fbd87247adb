"""Chats of sessions: tools into the prompt, and the parts of what tokens say.

What the model would say is decided by the test: tokens are forced, one after the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phiggml as pg
from forced_answers import TINY, control_checkpoint, forced
from phiggml.chat_tools import ToolCall
from phiggml.model import marker_tokens

USER = [{"role": "user", "content": "What time is it?"}]
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
NOW = '[{"name": "now", "arguments": {"zone": "UTC"}}]'
CALL = ToolCall("now", {"zone": "UTC"})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> pg.Model:
    """A Phi-4-mini, whose markers of tools are ordinary added tokens; it has none of <think>."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    pg.convert(TINY, path, "F32")
    return pg.Model(path)


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> pg.Model:
    """The same with its markers, and those of thoughts, as control tokens."""
    return pg.Model(control_checkpoint(tmp_path_factory.mktemp("control")))


def test_markers_are_tokens_that_detokenizing_hides(tiny: pg.Model, control: pg.Model) -> None:
    assert marker_tokens(tiny) == frozenset()
    assert marker_tokens(control) == frozenset({296, 297, 298, 299})
    ids = control.tokenize("<|tool_call|>[]", add_special=False, parse_special=True)
    assert ids[0] == 296 and control.detokenize(ids) == "[]"


@pytest.mark.parametrize("kind", ["tiny", "control"])
def test_thoughts_text_and_calls(kind: str, request: pytest.FixtureRequest) -> None:
    model: pg.Model = request.getfixturevalue(kind)
    said = f"<think>\nThey ask. \n</think>\n\nLet me see.<|tool_call|>{NOW}<|/tool_call|>"
    with forced(model, said) as session:
        answer = session.chat(USER, tools=TOOLS)
    assert answer.reasoning == "They ask."
    assert answer.text == "Let me see."
    assert answer.tool_calls == (CALL,)
    assert answer.finish_reason == "tool_calls" and not answer.malformed_call
    assert answer.timings.tokens == len(answer.tokens)
    # Control tokens swallow the white space behind them when the text is tokenized.
    written = model.detokenize(np.array(answer.tokens), special=True)
    assert "".join(written.split()) == "".join(said.split())
    # The answer and its result go back into the prompt, without the thoughts.
    result = {"role": "tool", "content": "12:00"}
    prompt = model.chat_prompt([*USER, answer.message, result], tools=TOOLS)
    assert prompt.endswith(
        f"<|user|>What time is it?<|end|><|assistant|>Let me see.<|tool_call|>{NOW}<|/tool_call|>"
        "<|end|><|tool|>12:00<|end|><|assistant|>"
    )
    assert prompt.startswith("<|system|>")
    assert '<|tool|>[{"name": "now", "parameters": {}}]<|/tool|><|end|>' in prompt


@pytest.mark.parametrize("kind", ["tiny", "control"])
def test_streams_never_show_a_marker(kind: str, request: pytest.FixtureRequest) -> None:
    model: pg.Model = request.getfixturevalue(kind)
    said = f"<think>Hm</think>Yes é🙂 <thin<|tool_call|>{NOW}"
    with forced(model, said) as session:
        chunks = list(session.stream_chat(USER))
    texts = dict.fromkeys(("reasoning", "text", "tool_call"), "")
    for chunk in chunks:
        texts[chunk.kind] += chunk.text
    assert texts == {"reasoning": "Hm", "text": "Yes é🙂 <thin", "tool_call": NOW}
    order = [chunk.kind for chunk in chunks if chunk.text]
    assert order == sorted(order, key=["reasoning", "text", "tool_call"].index)
    assert [chunk.tool_calls for chunk in chunks if chunk.tool_calls] == [(CALL,)]
    assert chunks[-1].finish_reason == "tool_calls"


def test_what_is_no_call_stays_text(control: pg.Model) -> None:
    with forced(control, "<|tool_call|>[{]<|/tool_call|>") as session:
        answer = session.chat(USER)
    assert answer.text == "<|tool_call|>[{]<|/tool_call|>"
    assert (answer.malformed_call, answer.finish_reason) == (True, "stop")
    with forced(control, f"<|tool_call|>{NOW}", ends=False) as session:
        answer = session.chat(USER, max_tokens=4)
    assert answer.text.startswith("<|tool_call|>[") and answer.tool_calls == ()
    assert (answer.malformed_call, answer.finish_reason) == (True, "length")


def test_functools_are_calls_where_there_are_tools(tiny: pg.Model) -> None:
    for tools, calls in ((TOOLS, (CALL,)), (None, ())):
        with forced(tiny, f"functools{NOW}") as session:
            answer = session.chat(USER, tools=tools)
        assert answer.tool_calls == calls
        assert answer.text == ("" if calls else f"functools{NOW}")


def test_a_stop_text_ends_thoughts_too(control: pg.Model) -> None:
    with forced(control, "<think>one STOP two</think>three") as session:
        answer = session.chat(USER, stop="STOP")
    assert (answer.reasoning, answer.text, answer.finish_reason) == ("one", "", "stop")


def test_a_template_that_opens_the_thoughts(
    control: pg.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = Path(__file__).parent / "data" / "templates"
    opening = (templates / "opens-thinking.jinja").read_text("utf-8")
    metadata = {**control.metadata, "tokenizer.chat_template": opening}
    monkeypatch.setattr(pg.Model, "metadata", metadata)
    for said, reasoning, text in (
        ("\nHm\n</think>\n\nYes", "Hm", "Yes"),
        ("Hm", "Hm", ""),
        ("<think>Hm</think>Yes", "Hm", "Yes"),
    ):
        with forced(control, said) as session:
            answer = session.chat(USER)
        assert (answer.reasoning, answer.text) == (reasoning, text)
    with forced(control, "Yes") as session:
        answer = session.chat(USER, variables={"enable_thinking": False})
    assert (answer.reasoning, answer.text) == (None, "Yes")


def test_plain_answers_are_what_generate_gives(nano_model: pg.Model) -> None:
    greedy = pg.Sampling(temperature=0)
    with pg.Session(nano_model, threads=1) as session:
        whole = session.generate(
            nano_model.chat_prompt(USER), max_tokens=24, sampling=greedy, stop="."
        )
        answer = session.chat(USER, max_tokens=24, sampling=greedy, stop=".")
        chunks = list(session.stream_chat(USER, max_tokens=24, sampling=greedy, stop="."))
    assert (answer.text, answer.tokens, answer.finish_reason) == (
        whole.text,
        whole.tokens,
        whole.finish_reason,
    )
    assert answer.reasoning is None and answer.tool_calls == ()
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert answer.message == {"role": "assistant", "content": whole.text}


def test_models_without_a_template(tmp_path: Path) -> None:
    path = tmp_path / "phi2.gguf"
    pg.convert(TINY.parent / "phi2-tiny", path, "F32")
    with (
        pg.Session(path, threads=1) as session,
        pytest.raises(pg.UnsupportedError, match="template"),
    ):
        session.chat(USER)


def test_a_stream_that_is_left_or_overtaken(control: pg.Model) -> None:
    with forced(control, "one two three four") as session:
        stream = session.stream_chat(USER)
        next(stream)
        session.reset()
        with pytest.raises(pg.SessionError, match="something else"):
            list(stream)


def test_wrong_tools_are_refused_before_anything_is_read(tiny: pg.Model) -> None:
    with pg.Session(tiny, n_ctx=64, threads=1) as session:
        wrong: Any = json.dumps(TOOLS)
        with pytest.raises(pg.InputError, match="tools is str"):
            session.stream_chat(USER, tools=wrong)
        assert len(session.tokens) == 0
