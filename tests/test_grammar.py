"""Grammars: what they take is what an independent recogniser takes, and faults are said."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import phiggml as pg
from grammar_walks import (
    allowed_one_by_one,
    by_chance,
    ends,
    spelt,
    state_of,
    takes,
    vocabulary,
)

# A grammar, and the same as an expression for Python's `re`, which shares no code with it.
REGULAR = {
    "literals": ('root ::= "yes" | "no"', r"yes|no"),
    "classes": ("root ::= [a-c]+ [^a-z0-9]", r"[a-c]+[^a-z0-9\0]"),
    "counts": ('root ::= [0-9]{2,4} ("," [0-9]{1,}){0,2}', r"[0-9]{2,4}(,[0-9]+){0,2}"),
    "exact": ('root ::= ("ab" | "c"){3}', r"(ab|c){3}"),
    "optional": ('root ::= "a"? "b"* c? # so\nc ::= "c" |\n  "d"', r"a?b*[cd]?"),
    "any": ('root ::= . "x" .', r"[^\0]x[^\0]"),
    "escapes": (
        r'root ::= "\x41\u00e9\U0001F600\n\t\"\\" [\]\-a]',
        'A\u00e9\U0001f600\n\t"\\\\[\\]\\-a]',
    ),
    "wide": ("root ::= [ä-ö\u4e00-\u9fff😀]+", "[ä-ö\u4e00-\u9fff😀]+"),
    "ambiguous": ('root ::= ("a" | "a" | "aa")* "b"', r"a*b"),
    "empty": ('root ::= "" | "a" none "b"\nnone ::=', r"(ab)?"),
    "nested": ('root ::= (("a" ("b" | "c")?)+ "d")?', r"((a(b|c)?)+d)?"),
}
ALPHABET = ["a", "b", "c", "d", "1", "23", "4567", ",", ".", "x", "é", "ä", "漢", "😀", "yes", "no"]


@pytest.mark.parametrize("name", REGULAR)
def test_takes_what_an_expression_takes(nano_model: pg.Model, name: str) -> None:
    text, expression = REGULAR[name]
    grammar = pg.Grammar(text)
    random = np.random.default_rng(7)
    words = ["".join(random.choice(ALPHABET, size=n)) for n in range(1, 7) for _ in range(40)]
    for word in ["", *ALPHABET, *words]:
        expected = re.fullmatch(expression, word) is not None
        assert takes(nano_model, grammar, word) == expected, word


@pytest.mark.parametrize("name", REGULAR)
def test_answers_by_chance_match_the_expression(nano_model: pg.Model, name: str) -> None:
    text, expression = REGULAR[name]
    for seed in range(10):
        answer = by_chance(nano_model, text, seed)
        assert answer is not None
        assert re.fullmatch(expression, answer.decode()), answer


EDGES = b"\xdf\xe0\xe1\xed\xee\xf0\xf1"
"""First bytes after which not all bytes may follow, and those beside them."""


def balanced(text: str) -> bool:
    depth = 0
    for char in text:
        depth += 1 if char == "(" else -1
        if depth < 0:
            return False
    return depth == 0


def test_takes_what_no_expression_can_say(nano_model: pg.Model) -> None:
    grammar = pg.Grammar('root ::= ("(" root ")")*')
    random = np.random.default_rng(1)
    for _ in range(300):
        text = "".join(random.choice(["(", ")"], size=2 * random.integers(0, 6)))
        assert takes(nano_model, grammar, text) == balanced(text), text
    for seed in range(5):
        answer = by_chance(nano_model, grammar, seed)
        assert answer is not None and balanced(answer.decode())


@pytest.mark.parametrize(
    ("grammar", "ranges"),
    [
        ("root ::= .", [(1, 0x10FFFF)]),
        ("root ::= [^x]", [(1, 0x77), (0x79, 0x10FFFF)]),
        ("root ::= [é-€\U0001f600]", [(0xE9, 0x20AC), (0x1F600, 0x1F600)]),
        (r"root ::= [\uD7FF-\uE001]", [(0xD7FF, 0xD7FF), (0xE000, 0xE001)]),
        (r"root ::= [\U0010FFFE-\U0010FFFF]", [(0x10FFFE, 0x10FFFF)]),
    ],
)
def test_single_bytes_make_whole_characters(
    nano_model: pg.Model, grammar: str, ranges: list[tuple[int, int]]
) -> None:
    """Of all sequences of bytes those go on that begin a character of the grammar's in UTF-8."""
    prefixes = {b""}
    characters = set()
    for code in (code for first, last in ranges for code in range(first, last + 1)):
        if not 0xD800 <= code < 0xE000:
            encoded = chr(code).encode()
            characters.add(encoded)
            prefixes.update(encoded[:n] for n in range(1, len(encoded) + 1))
    token_of = {text: token for token, text in enumerate(vocabulary(nano_model)) if len(text) == 1}
    tokens = [token_of[bytes([byte])] for byte in range(256)]
    begun = [b""]
    for start in begun:
        state = state_of(nano_model, grammar)
        for byte in start:
            state.accept(tokens[byte])
        assert state.may_end() == (start in characters), start
        following = [byte for byte in range(256) if state.allowed()[tokens[byte]]]
        expected = [byte for byte in range(256) if start + bytes([byte]) in prefixes]
        assert following == expected, start
        # Of those that begin alike, the first and the last are enough.
        if start not in characters:
            edges = {*following[:1], *following[-1:], *(EDGES if not start else b"")}
            begun += [start + bytes([byte]) for byte in following if byte in edges]


def test_allowed_tokens_are_those_that_each_call_allows(nano_model: pg.Model) -> None:
    state = state_of(nano_model, 'root ::= "{" ([^"é}] | "é" [0-9])* "}"')
    core = nano_model._open()
    for token in spelt(nano_model, "{ the dog, é7 漢}"):
        allowed = state.allowed()
        assert allowed.dtype == np.uint8 and allowed[token] == 1
        assert np.array_equal(allowed, allowed_one_by_one(state, nano_model.n_vocab))
        assert not any(core.is_control(int(i)) for i in np.flatnonzero(allowed))
        state.accept(token)
    assert np.flatnonzero(state.allowed()).tolist() == ends(nano_model)


def test_control_tokens_never_pass_as_their_names(nano_model: pg.Model) -> None:
    name = "<|user|>"
    [control] = nano_model.tokenize(name, add_special=False, parse_special=True)
    state = state_of(nano_model, f'root ::= "{name}"')
    assert not state.allows(int(control)) and not state.allowed()[control]
    assert takes(nano_model, f'root ::= "{name}"', name)
    anything = state_of(nano_model, "root ::= .*")
    core = nano_model._open()
    for token in range(nano_model.n_vocab):
        if core.is_control(token):
            assert anything.allows(token) == (token in ends(nano_model))


def test_ends_of_the_file_itself_count(nano_f16: Path, tmp_path: Path) -> None:
    """Tokens that the file names as ends, and llama.cpp does not know for such."""
    path = tmp_path / "ends.gguf"
    shutil.copyfile(nano_f16, path)
    further = 500
    pg.edit_gguf(path, set={"phiggml.tokenizer.end_ids": np.array([further], np.int32)})
    with pg.Model(path) as model:
        assert further in ends(model)
        text = model._open().piece(further, False).decode()
        state = state_of(model, "root ::= [a-z ]*")
        assert state.may_end() and state.allows(further) and state.allowed()[further]
        whole = state_of(model, f'root ::= "{text}"')
        assert not whole.allows(further) and not whole.allowed()[further]


def test_accept_refuses_what_is_not_allowed_and_stays(nano_model: pg.Model) -> None:
    state = state_of(nano_model, 'root ::= "ab"')
    before = state.allowed()
    end = ends(nano_model)[0]
    for token in (end, -1, nano_model.n_vocab, 2**31 - 1, spelt(nano_model, "x")[0]):
        assert not state.allows(token)
        with pytest.raises(pg.SessionError, match=f"token {token} is not allowed"):
            state.accept(token)
    assert np.array_equal(state.allowed(), before)
    for token in spelt(nano_model, "ab"):
        state.accept(token)
    state.accept(end)
    assert state.may_end()


def test_long_answers_keep_their_place(nano_model: pg.Model) -> None:
    """Far more brackets than the automaton keeps stacks for before it begins anew."""
    state = state_of(nano_model, 'root ::= "[" root "]" | "x"')
    opening, closing, inner = (spelt(nano_model, char)[0] for char in "[]x")
    n = 300_000
    for _ in range(n):
        state.accept(opening)
    state.accept(inner)
    for _ in range(n):
        assert not state.may_end()
        state.accept(closing)
    assert state.may_end() and not state.allows(closing)


def test_too_many_readings_are_an_error(nano_model: pg.Model) -> None:
    """After n letters there are 2^n stacks."""
    state = state_of(nano_model, 'root ::= "d" | "a" root "b" | "a" root "c"')
    [letter] = spelt(nano_model, "a")
    for _ in range(12):
        state.accept(letter)
    with pytest.raises(pg.SessionError, match="in too many ways"):
        for _ in range(10):
            state.accept(letter)
    assert state.allows(spelt(nano_model, "d")[0])
    with pytest.raises(pg.SessionError, match="in too many ways"):
        state.allowed()


FAULTS = {
    'root ::= "a': ["line 1", "unexpected end of input"],
    'root ::= "a"\nx = "b"': ["line 2, at '= \"b\"'", "expecting ::="],
    'root ::= ("a"': ["line 1, at its end", "expecting ')'"],
    'root ::= "\\q"': ["line 1", "unknown escape"],
    'root ::= "\\xZZ"': ["line 1, at 'ZZ\"'", "2 hex chars"],
    'root ::= "a"\n\nroot ::= "b"': ["line 3", "defined already, on line 1"],
    "root ::= *": ["line 1", "preceding item"],
    "root ::= a\n": ["rule 'a'", "not defined"],
    'x ::= "a"': ["'root'", "there is none"],
    "": ["'root'", "there is none"],
    "root": ["line 1", "expecting ::="],
    'root ::= "a"{5,2}': ["line 1, at '{5,2}'", "above the second"],
    'root ::= "a"{2001}': ["line 1", "more than 2000"],
    "root ::= []": ["line 1, at '[]'", "no characters"],
    "root ::= [^]": ["line 1, at '[^]'", "no characters"],
    "root ::= [z-a]": ["rule 'root'", "no character"],
    r"root ::= [\U00110000]": ["rule 'root'", "no character"],
    'root ::= root "a" | "b"': ["rule 'root'", "left recursion"],
    'root ::= a\na ::= b "x" | "y"\nb ::= a': ["left recursion"],
    'root ::= a\na ::= b c a | "x"\nb ::= d\nc ::= ""\nd ::= "z"?': ["rule 'a'", "left recursion"],
    'root ::= ("a"*)*': ["rule 'root'", "left recursion"],
    'root ::= "a" root': ["rule 'root'", "no text completes it"],
    'root ::= "a" x\nx ::= "b" y\ny ::= "c" x': ["rule 'root'", "no text completes it"],
    "root ::= é": ["line 1, at 'é'", "expecting newline or end"],
    "root ::= \0": ["NUL"],
}


@pytest.mark.parametrize("text", FAULTS)
def test_faults_are_said_and_none_is_printed(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(pg.InputError) as caught:
        pg.Grammar(text)
    message = str(caught.value)
    assert message.startswith("grammar: ") and message.endswith("Correct the grammar.")
    assert [words for words in FAULTS[text] if words not in message] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("text", ["root ::= <[5]>", "root ::= !<think>", 'root ::= "a" <x>'])
def test_tokens_are_not_taken(text: str) -> None:
    with pytest.raises(pg.UnsupportedError, match="tokens are not taken"):
        pg.Grammar(text)


def test_a_grammar_is_a_value() -> None:
    text = 'root ::= "a" # "b"\n'
    grammar = pg.Grammar(text)
    assert str(grammar) == text and repr(grammar) == f"Grammar({text!r})"
    assert grammar == pg.Grammar(text) and grammar != pg.Grammar('root ::= "a"')
    assert len({grammar, pg.Grammar(text)}) == 1
    assert pickle.loads(pickle.dumps(grammar)) == grammar
    assert len(repr(pg.Grammar('root ::= "' + "a" * 1000 + '"'))) < 100


def test_of_two_kinds_one_is_given(nano_model: pg.Model) -> None:
    from phiggml.grammar import grammar_state

    core = nano_model._open()
    assert grammar_state(None, None, core) is None
    with pytest.raises(pg.InputError, match="both grammar and json_schema"):
        grammar_state('root ::= "a"', {}, core)
    with pytest.raises(pg.InputError, match="text is int"):
        grammar_state(5, None, core)  # type: ignore[arg-type]
    assert grammar_state(None, {"type": "null"}, core) is not None
