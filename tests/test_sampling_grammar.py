"""Sampling within a grammar: what it refuses is chosen anew among what it allows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
import sampling_reference as reference
from phiggml import _core
from test_sampling import normal

# "s" begins many words of the vocabulary; all but a few hundred tokens are refused.
GBNF = 'root ::= "s" [a-z]+ | "no."'
ONE = 'root ::= "no"'


def row_of(model: pg.Model) -> npt.NDArray[np.float32]:
    return normal(model, seed=4)


@pytest.mark.parametrize("gbnf", [GBNF, ONE])
@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 40, "min_p": 0},
        {"top_k": 3},
        {"top_k": 0, "min_p": 0},
        {"top_k": 10, "top_n_sigma": 2.0},
        {"top_k": 0, "typical_p": 0.9, "repeat_penalty": 1.2},
    ],
)
def test_refused_tokens_are_drawn_anew(
    nano_model: pg.Model, gbnf: str, settings: dict[str, Any]
) -> None:
    """The first number draws from all; where that is refused, the second from what is allowed."""
    row, grammar = row_of(nano_model), _core.grammar.parse(gbnf)
    allowed = _core.grammar.GrammarState(grammar, nano_model._open()).allowed().astype(bool)
    exact = row.astype(np.float64)
    sampling = pg.Sampling(**settings)
    every = reference.drawable(exact, sampling)
    some = reference.drawable(np.where(allowed, exact, -math.inf), sampling)
    refused = 0
    for seed in range(60):
        chain = dataclasses.replace(sampling, seed=seed)._sampler(nano_model._open(), 512, grammar)
        token = chain.sample(row)
        first, second = reference.uniforms(seed, 2)
        assert allowed[token]
        refused += not every.fits(token, first)
        assert every.fits(token, first) or some.fits(token, second)
    assert refused > 10


def test_greedy_takes_the_likeliest_that_is_allowed(nano_model: pg.Model) -> None:
    grammar, core = _core.grammar.parse(GBNF), nano_model._open()
    for seed in range(20):
        row = normal(nano_model, seed=seed)
        chain = pg.Sampling(temperature=0)._sampler(core, 512, grammar)
        state = _core.grammar.GrammarState(grammar, core)
        for _ in range(5):
            expected = int(np.where(state.allowed(), row, -math.inf).argmax())
            assert chain.sample(row) == expected
            if core.is_end_of_generation(expected):
                break
            state.accept(expected)


def test_mirostat_learns_from_what_is_taken(nano_model: pg.Model) -> None:
    """The surprise is that of the token among those that the grammar allows."""
    grammar, core = _core.grammar.parse('root ::= "s" [a-z]*'), nano_model._open()
    row, sampling, most = row_of(nano_model), pg.Sampling(mirostat=2, seed=3), 10.0
    chain, state = sampling._sampler(core, 512, grammar), _core.grammar.GrammarState(grammar, core)
    shares = iter(reference.uniforms(3, 40))
    for _ in range(12):
        exact = row.astype(np.float64)
        expected = reference.mirostat_drawable(exact, sampling, most)
        token, share = chain.sample(row), next(shares)
        if not expected.fits(token, share):
            exact = np.where(state.allowed(), exact, -math.inf)
            expected = reference.mirostat_drawable(exact, sampling, most)
            assert expected.fits(token, next(shares))
        most -= 0.1 * (-np.log2(expected.probabilities[expected.tokens == token][0]) - 5)
        if core.is_end_of_generation(token):
            break
        state.accept(token)


def test_nothing_left_to_choose(nano_model: pg.Model) -> None:
    core = nano_model._open()
    grammar = _core.grammar.parse(ONE)
    state = _core.grammar.GrammarState(grammar, core)
    banned = dict.fromkeys(np.flatnonzero(state.allowed()).tolist(), -math.inf)
    for temperature in (0.0, 1.0):
        chain = pg.Sampling(temperature=temperature, logit_bias=banned)._sampler(core, 64, grammar)
        with pytest.raises(pg.SessionError, match="grammar allows no token"):
            chain.sample(row_of(nano_model))
