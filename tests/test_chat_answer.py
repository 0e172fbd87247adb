"""Answers told into their parts: reasoning, text and tool calls, wherever they are cut."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phiggml.chat_answer import MARKERS, AnswerParts, Part, opens_reasoning, split_chunks
from phiggml.chat_tools import CALL_BEGIN, ToolCall, parse_tool_calls
from phiggml.completion import Chunk, Completion, Timings

NOW = '{"name": "now", "arguments": {"zone": "<|/tool_call|>"}}'
CALL = ToolCall("now", {"zone": "<|/tool_call|>"})


def parts_of(pieces: list[str], **settings: bool) -> list[Part]:
    """What the pieces give, neighbours of one kind joined."""
    answer = AnswerParts(**settings)
    found = [part for piece in pieces for part in answer.add(piece)] + answer.rest()
    joined: list[Part] = []
    for part in found:
        assert part.text or part.kind == "reasoning"
        last = joined[-1] if joined else None
        if last is not None and last.kind == part.kind != "tool_call":
            malformed = last.malformed_call or part.malformed_call
            joined[-1] = Part(part.kind, last.text + part.text, (), malformed)
        else:
            joined.append(part)
    return joined


def told(text: str, **settings: bool) -> list[tuple[Any, ...]]:
    """(kind, text or calls, "malformed"), the same for the whole and for its characters."""
    whole = parts_of([text], **settings)
    assert parts_of(list(text), **settings) == whole
    return [
        (part.kind, part.tool_calls or part.text, *(["malformed"] if part.malformed_call else []))
        for part in whole
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        (" plain ", [("text", " plain ")]),
        ("<think>\nHm \n</think>\n\nYes \n", [("reasoning", "Hm"), ("text", "Yes \n")]),
        ("\n <think>a</thin</think>b", [("reasoning", "a</thin"), ("text", "b")]),
        ("<think></think>b", [("reasoning", ""), ("text", "b")]),
        ("<think> a <think> b", [("reasoning", "a <think> b")]),
        ("<think>", [("reasoning", "")]),
        ("<thin", [("text", "<thin")]),
        ("Say <think>a</think>", [("text", "Say <think>a</think>")]),
        ("<think>a</think><think>b</think>", [("reasoning", "a"), ("text", "<think>b</think>")]),
        ("a </think> b", [("text", "a </think> b")]),
        ("<think>a<|tool_call|>[]</think>b", [("reasoning", "a<|tool_call|>[]"), ("text", "b")]),
    ],
)
def test_reasoning(text: str, parts: list[tuple[str, str]]) -> None:
    assert told(text) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [("reasoning", "")]),
        ("\nHm\n</think>\n\nYes", [("reasoning", "Hm"), ("text", "Yes")]),
        ("Hm", [("reasoning", "Hm")]),
        ("<think>\nHm</think>Yes", [("reasoning", "Hm"), ("text", "Yes")]),
        ("</think>Yes", [("reasoning", ""), ("text", "Yes")]),
        (f"a</think>\n<|tool_call|>{NOW}", [("reasoning", "a"), ("tool_call", (CALL,))]),
    ],
)
def test_reasoning_that_the_prompt_has_opened(text: str, parts: list[tuple[Any, ...]]) -> None:
    assert told(text, reasoning=True) == parts


def test_prompts_that_open_it() -> None:
    assert opens_reasoning("<|assistant|><think>\n")
    assert not opens_reasoning("<|assistant|><think>\n\n</think>\n\n")
    assert not opens_reasoning("Write <think> a </think> b<|assistant|>")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (f"<|tool_call|>[{NOW}]<|/tool_call|>", [("tool_call", (CALL,))]),
        (f"<|tool_call|>{NOW}", [("tool_call", (CALL,))]),
        (f"<|tool_call|> [{NOW}, {NOW}]\n", [("tool_call", (CALL, CALL))]),
        (
            f"So: <|tool_call|>{NOW}<|/tool_call|> Done.",
            [("text", "So: "), ("tool_call", (CALL,)), ("text", " Done.")],
        ),
        (f"<|tool_call|>{NOW} Done.", [("tool_call", (CALL,)), ("text", " Done.")]),
        (
            f"<|tool_call|>{NOW}<|/tool_call|>\n<|tool_call|>{NOW}<|/tool_call|>\n",
            [("tool_call", (CALL,)), ("tool_call", (CALL,))],
        ),
        (f"<|tool_call|>{NOW},\n{NOW}", [("tool_call", (CALL,)), ("tool_call", (CALL,))]),
        (f"functools[{NOW}]", [("text", f"functools[{NOW}]")]),
        # What is none stays as it is.
        ("<|tool_call|>", [("text", "<|tool_call|>", "malformed")]),
        ("<|tool_call|>now()", [("text", "<|tool_call|>now()", "malformed")]),
        (
            "<|tool_call|>[1]<|/tool_call|>",
            [("text", "<|tool_call|>[1]<|/tool_call|>", "malformed")],
        ),
        (f"<|tool_call|>[{NOW}", [("text", f"<|tool_call|>[{NOW}", "malformed")]),
        (
            f"<|tool_call|>no <|tool_call|>{NOW}",
            [("text", "<|tool_call|>no ", "malformed"), ("tool_call", (CALL,))],
        ),
        (
            f"<|tool_call|>{NOW}, {{a: 1}}",
            [("tool_call", (CALL,)), ("text", ", {a: 1}", "malformed")],
        ),
        ("<|tool_ca", [("text", "<|tool_ca")]),
        ("<|/tool_call|>", [("text", "<|/tool_call|>")]),
    ],
)
def test_tool_calls(text: str, parts: list[tuple[Any, ...]]) -> None:
    assert told(text) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (f"functools[{NOW}]", [("tool_call", (CALL,))]),
        (f"A functools [{NOW}] b", [("text", "A "), ("tool_call", (CALL,)), ("text", " b")]),
        ("functools is a module", [("text", "functools is a module")]),
        ("functools[1]", [("text", "functools[1]", "malformed")]),
        ("functools", [("text", "functools")]),
        (f"<|tool_call|>functools[{NOW}]", None),
    ],
)
def test_functools(text: str, parts: list[tuple[Any, ...]] | None) -> None:
    parts = parts or [("text", "<|tool_call|>", "malformed"), ("tool_call", (CALL,))]
    assert told(text, functools=True) == parts


WORDS = st.text(alphabet='ab <|/>{}[]"\\th\n🙂', max_size=12)
PIECES = st.one_of(
    WORDS, st.sampled_from([*MARKERS, "functools", NOW, f"[{NOW}]", "[1]", "{", "<|tool_"])
)


@given(
    pieces=st.lists(PIECES, max_size=8),
    cuts=st.lists(st.integers(0, 200), max_size=12),
    reasoning=st.booleans(),
    functools=st.booleans(),
)
def test_cuts_change_nothing(
    pieces: list[str], cuts: list[int], reasoning: bool, functools: bool
) -> None:
    text = "".join(pieces)
    at = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    settings = {"reasoning": reasoning, "functools": functools}
    whole = parts_of([text], **settings)
    assert parts_of([text[a:b] for a, b in itertools.pairwise(at)], **settings) == whole


TEXTS = st.text(alphabet='ab1 {}[]".,\n🙂', max_size=20)
CALLS = st.builds(
    ToolCall,
    st.text(alphabet="fg_", min_size=1, max_size=5),
    st.dictionaries(st.text(max_size=4), st.text(max_size=8) | st.integers(), max_size=3),
)


@given(
    thoughts=st.none() | TEXTS,
    opened=st.booleans(),
    turns=st.lists(st.tuples(TEXTS.filter(str.strip), st.lists(CALLS, min_size=1)), max_size=3),
    last=TEXTS,
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
def test_what_was_put_together_is_told_apart(
    thoughts: str | None,
    opened: bool,
    turns: list[tuple[str, list[ToolCall]]],
    last: str,
    sizes: list[int],
) -> None:
    written = ""
    expected: list[tuple[str, object]] = []
    if thoughts is not None:
        written = f"{'' if opened else ' <think>'}{thoughts}</think>\n\n"
        expected.append(("reasoning", thoughts.strip()))
    after_thoughts = thoughts is not None
    for text, calls in turns:
        # Letters around, so that white space at the edges is a matter of other tests.
        document = json.dumps([call.as_message() for call in calls], ensure_ascii=False)
        written += f"x{text}x<|tool_call|>{document}<|/tool_call|>"
        expected += [("text", f"x{text}x"), ("tool_call", tuple(calls))]
    written += f"y{last}y"
    expected.append(("text", f"y{last}y"))
    pieces, at = [], 0
    for size in itertools.cycle(sizes):
        if at >= len(written):
            break
        pieces.append(written[at : at + size])
        at += size
    found = parts_of(pieces, reasoning=opened and after_thoughts)
    assert [(part.kind, part.tool_calls or part.text) for part in found] == expected
    assert not any(part.malformed_call for part in found)


def completed(pieces: list[str], reason: Any, **settings: bool) -> tuple[Completion, list[Chunk]]:
    """The answer of tokens 0, 1, ..., one a piece."""
    chunks = [Chunk(piece, i) for i, piece in enumerate(pieces)]
    chunks.append(Chunk("", None, reason, Timings(1, 0.0, len(pieces), 0.0)))
    found = list(split_chunks(chunks, AnswerParts(**settings)))
    return Completion.of(found), found


def test_chunks_say_their_part_and_keep_their_tokens() -> None:
    pieces = ["<thi", "nk>\nHm", " \n", "</think>\n\nYes <|tool", f"_call|>{NOW}", "<|/tool_call|>"]
    answer, chunks = completed(pieces, "stop")
    assert (answer.reasoning, answer.text, answer.tool_calls) == ("Hm", "Yes ", (CALL,))
    assert answer.tokens == tuple(range(6)) and answer.finish_reason == "tool_calls"
    assert not answer.malformed_call
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].timings == answer.timings
    assert not any(marker in chunk.text for chunk in chunks for marker in MARKERS[:3])
    assert [c.text for c in chunks if c.kind == "tool_call" and c.text] == [NOW]
    assert answer.message == {
        "role": "assistant",
        "content": "Yes ",
        "tool_calls": [CALL.as_message()],
    }


@pytest.mark.parametrize(
    ("text", "reason", "finish"),
    [
        ("Yes", "stop", "stop"),
        (f"<|tool_call|>{NOW}", "stop", "tool_calls"),
        (f"<|tool_call|>{NOW}", "length", "length"),
        ("<|tool_call|>[1", "stop", "stop"),
    ],
)
def test_why_an_answer_ended(text: str, reason: str, finish: str) -> None:
    answer, _ = completed([text], reason)
    assert answer.finish_reason == finish
    assert answer.malformed_call == text.endswith("[1")
    assert answer.reasoning is None
    assert bool(answer.tool_calls) == ("tool_calls" in answer.message)


def test_long_answers_are_read_once() -> None:
    text = "<|tool_call|>[" * 20_000 + "[" + "<" * 20_000 + "<|/tool_call|>" * 5_000
    parts = parts_of([text[i : i + 7] for i in range(0, len(text), 7)])
    assert "".join(part.text for part in parts) == text
    assert parse_tool_calls(text) is None


@pytest.mark.parametrize(
    "begin", ["", "<think>", "<think>a", "<think>a</think>", f"{CALL_BEGIN}{NOW},"]
)
def test_blanks_are_not_read_again_with_each_token(begin: str) -> None:
    """A model that has lost its way writes lines without end."""
    n = 100_000
    start = time.process_time()
    parts = parts_of([begin, *[" \n   "] * n, "x"])
    assert time.process_time() - start < 2
    assert parts == parts_of([begin + " \n   " * n + "x"])


def test_many_words_that_begin_no_call_are_found_once() -> None:
    start = time.process_time()
    text = "functools " * 40_000
    assert "".join(part.text for part in parts_of([text], functools=True)) == text
    assert time.process_time() - start < 2
