"""What the tests of grammars share: texts walked through a grammar token by token, and answers
made under one by chance, with no model's forward pass."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt

import phiggml as pg
from phiggml import _core
from phiggml.grammar import grammar_state

State = _core.grammar.GrammarState


def state_of(model: pg.Model, grammar: pg.Grammar | str) -> State:
    state = grammar_state(grammar, None, model._open())
    assert state is not None
    return state


def vocabulary(model: pg.Model) -> list[bytes]:
    """The text of each token, b"" for those that add none to an answer."""
    core = model._open()
    return [
        b"" if core.is_control(token) else core.piece(token, False)
        for token in range(model.n_vocab)
    ]


def spelt(model: pg.Model, text: str) -> list[int]:
    """The tokens of a text, as the model's tokenizer divides it."""
    core = model._open()
    tokens = [int(token) for token in model.tokenize(text, add_special=False)]
    # It puts a space in front, by a token of its own or as a part of the first.
    first = core.piece(tokens[0], False) if tokens else b""
    if first.startswith(b" ") and not text.startswith(" "):
        pieces = vocabulary(model)
        tokens[:1] = [pieces.index(first[i : i + 1]) for i in range(1, len(first))]
    assert b"".join(core.piece(token, False) for token in tokens) == text.encode()
    return tokens


def takes(model: pg.Model, grammar: pg.Grammar | str, text: str) -> bool:
    """Whether an answer may be this text: each token may come, and then the end."""
    state = state_of(model, grammar)
    for token in spelt(model, text):
        if not state.allows(token):
            return False
        state.accept(token)
    return state.may_end()


def ends(model: pg.Model) -> list[int]:
    core = model._open()
    return [token for token in range(model.n_vocab) if core.is_end_of_generation(token)]


def by_chance(
    model: pg.Model, grammar: pg.Grammar | str, seed: int, *, most: int = 2000
) -> bytes | None:
    """An answer whose tokens are drawn from those allowed; None if it did not end in time.

    What closes strings, lists and objects is drawn more often, and the more the longer it lasts.
    """
    chance = random.Random(seed)
    pieces = vocabulary(model)
    end_tokens = {*ends(model)}
    closing = [t for t, piece in enumerate(pieces) if piece in (b'"', b"}", b"]", b'"}', b'"]')]
    state = state_of(model, grammar)
    answer = b""
    for step in range(most):
        allowed = np.flatnonzero(state.allowed())
        assert allowed.size, f"nothing may follow {answer!r}"
        final = [token for token in (*closing, *end_tokens) if token in allowed]
        eager = chance.random() < 0.15 + step / 200
        token = int(chance.choice(final if final and eager else allowed))
        if token in end_tokens:
            return answer
        state.accept(token)
        answer += pieces[token]
    return None


def allowed_one_by_one(state: State, n_vocab: int) -> npt.NDArray[np.uint8]:
    return np.array([state.allows(token) for token in range(n_vocab)], np.uint8)
