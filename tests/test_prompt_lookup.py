"""Guesses from the text itself, against a search that looks at every place."""

from __future__ import annotations

import random

import numpy as np
import pytest

import phiggml as pg
from phiggml import _core


def expected(tokens: list[int], ngram: int, n_most: int) -> list[int]:
    wanted = tokens[-ngram:]
    for place in range(len(tokens) - ngram - 1, -1, -1):
        if tokens[place : place + ngram] == wanted:
            return tokens[place + ngram :][:n_most]
    return []


def found(tokens: list[int], ngram: int, n_most: int) -> list[int]:
    return _core.prompt_lookup.propose(np.array(tokens, np.int32), ngram, n_most).tolist()


def test_what_followed_the_last_time() -> None:
    tokens = [1, 2, 3, 7, 1, 2, 3, 8, 9, 1, 2, 3]
    assert found(tokens, 3, 2) == [8, 9] and found(tokens, 3, 64) == [8, 9, 1, 2, 3]
    assert found(tokens, 4, 2) == found(tokens, 12, 2) == found(tokens, 64, 2) == []
    assert found(tokens, 3, 0) == found([], 1, 1) == found([1], 1, 1) == []
    assert found([5] * 9, 3, 8) == [5]  # the last time is one token ago


def test_every_place_is_found() -> None:
    rng = random.Random(3)
    n_found = 0
    for _ in range(4000):
        n_words, n_tokens = rng.choice([1, 2, 3, 8, 40]), rng.choice([3, 30, 70, 300])
        tokens = rng.choices(range(n_words), k=rng.randrange(n_tokens))
        if rng.random() < 0.5:  # what repeats itself, but for a token here and there
            tokens = (tokens[: rng.randint(1, 20)] * 30)[: len(tokens)]
            for _ in range(rng.randrange(3) if tokens else 0):
                tokens[rng.randrange(len(tokens))] = rng.randrange(n_words)
        ngram, n_most = rng.choice([1, 2, 3, 7, 33, 64]), rng.choice([1, 2, 8, 64])
        wanted = expected(tokens, ngram, n_most)
        assert found(tokens, ngram, n_most) == wanted, (tokens, ngram, n_most)
        n_found += bool(wanted)
    assert 1000 < n_found < 3500


def test_the_settings_are_kept() -> None:
    tokens = np.array([1, 2, 3, 4, 5, 6, 1, 2], np.int32)
    assert pg.PromptLookup(n=3, ngram=2)._propose(tokens, 512, 8).tolist() == [3, 4, 5]
    assert pg.PromptLookup(n=8, ngram=2)._propose(tokens, 512, 2).tolist() == [3, 4]
    assert pg.PromptLookup(ngram=3)._propose(tokens, 512, 8).dtype == np.int32


def test_tokens_that_are_none() -> None:
    with pytest.raises(pg.InputError, match="tokens: its dtype is int64"):
        _core.prompt_lookup.propose(np.zeros(3, np.int64), 1, 1)  # type: ignore[arg-type]
    with pytest.raises(pg.InputError, match="contiguous"):
        _core.prompt_lookup.propose(np.zeros(6, np.int32)[::2], 1, 1)
