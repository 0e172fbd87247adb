"""What each sampler draws: against its definition in float64, and llama.cpp's own samplers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
import sampling_reference as reference
from test_sampling import normal, sampler
from upstream_chain import UpstreamChain

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
CHAINS: dict[str, dict[str, Any]] = {
    "temperature": {**OFF, "temperature": 0.7},
    "hot": {**OFF, "temperature": 3.0},
    "defaults": {},
    "top_k": {**OFF, "top_k": 40},
    "large top_k": {**OFF, "top_k": 1500},
    "top_k beyond": {**OFF, "top_k": 10**6},
    "top_p": {**OFF, "top_p": 0.9},
    "small top_p": {**OFF, "top_p": 0.05},
    "top_k and top_p": {**OFF, "top_k": 40, "top_p": 0.9, "temperature": 0.8},
    "min_p": {**OFF, "min_p": 0.05},
    "top_p and min_p": {**OFF, "top_p": 0.95, "min_p": 0.02, "temperature": 0.8},
    "typical_p": {**OFF, "typical_p": 0.5},
    "typical_p of some": {**OFF, "top_k": 100, "typical_p": 0.8, "top_p": 0.9},
    "top_n_sigma": {**OFF, "top_n_sigma": 1.5},
    "top_n_sigma and top_k": {**OFF, "top_n_sigma": 1.0, "top_k": 100},
    "dynatemp": {**OFF, "top_k": 50, "dynatemp_range": 0.6},
    "dynatemp of all": {**OFF, "dynatemp_range": 2.0, "dynatemp_exponent": 2.5},
    "dynatemp from 0": {"temperature": 0.0, "dynatemp_range": 1.5},
    "all": {"typical_p": 0.97, "top_n_sigma": 2.0, "dynatemp_range": 0.3, "min_p": 0.01},
}
SPREADS = (0.3, 3.0, 12.0)


def logits_of(model: pg.Model, spread: float) -> npt.NDArray[np.float32]:
    """Some are equal, and some banned."""
    logits = normal(model, seed=int(spread * 10)) / 3 * np.float32(spread)
    logits[100:200] = logits[300:400]
    logits[500:600] = -math.inf
    return logits


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("name", CHAINS)
def test_draws_follow_the_definition(nano_model: pg.Model, name: str, spread: float) -> None:
    """Each draw is the token in which its random number, as a share of all probability, ends."""
    sampling = pg.Sampling(**CHAINS[name], seed=11)
    logits = logits_of(nano_model, spread)
    expected = reference.drawable(logits.astype(np.float64), sampling)
    chain, n = sampler(nano_model, sampling), 200
    for share in reference.uniforms(11, n):
        token = chain.sample(logits)
        assert expected.fits(token, share), (token, share)


@pytest.mark.parametrize("name", ["defaults", "top_p", "typical_p of some"])
def test_frequencies_are_the_probabilities(nano_model: pg.Model, name: str) -> None:
    """Chi-square over many seeds, one draw each; the bound is passed once in 10^5."""
    logits = logits_of(nano_model, 6)
    settings = pg.Sampling(**CHAINS[name])
    expected = reference.drawable(logits.astype(np.float64), settings)
    n, counts = 3000, np.zeros(nano_model.n_vocab)
    for seed in range(n):
        counts[sampler(nano_model, dataclasses.replace(settings, seed=seed)).sample(logits)] += 1
    assert counts.sum() == counts[expected.tokens].sum() == n
    often = expected.probabilities * n >= 5
    observed = [*counts[expected.tokens[often]], counts[expected.tokens[~often]].sum()]
    wanted = n * np.append(expected.probabilities[often], expected.probabilities[~often].sum())
    kept = wanted > 0
    squares = ((np.array(observed)[kept] - wanted[kept]) ** 2 / wanted[kept]).sum()
    freedom = kept.sum() - 1
    # Wilson and Hilferty: the cube root of chi-square is nearly normal.
    spread = 2 / (9 * freedom)
    assert ((squares / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5 < 4.3


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.15])
def test_xtc_excludes_as_often_as_it_says(nano_model: pg.Model, threshold: float) -> None:
    logits = logits_of(nano_model, 5)
    logits[[900, 950, 1000]] = logits.max()
    settings = {**OFF, "top_k": 30, "xtc_probability": 0.4, "xtc_threshold": threshold}
    sampling = pg.Sampling(**settings, seed=5)
    row = logits.astype(np.float64)
    kept = {on: reference.drawable(row, sampling, excludes=on) for on in (False, True)}
    assert len(kept[True].tokens) < len(kept[False].tokens)
    chain, n = sampler(nano_model, sampling), 400
    shares = reference.uniforms(5, 2 * n)
    for chance, share in zip(shares[0::2], shares[1::2], strict=True):
        assert kept[bool(chance < np.float32(0.4))].fits(chain.sample(logits), share)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_mirostat_learns_its_bound(nano_model: pg.Model, version: int, spread: float) -> None:
    settings = {"temperature": 0.9, "mirostat_tau": 3.0, "mirostat_eta": 0.3}
    sampling = pg.Sampling(mirostat=version, **settings, seed=7)  # type: ignore[arg-type]
    row = normal(nano_model) / 3 * np.float32(spread)
    chain, most = sampler(nano_model, sampling), 6.0
    for share in reference.uniforms(7, 100):
        token = chain.sample(row)
        expected = reference.mirostat_drawable(row.astype(np.float64), sampling, most)
        assert expected.fits(token, share), (token, share, most)
        surprise = -np.log2(expected.probabilities[expected.tokens == token][0])
        most -= 0.3 * (surprise - 3)


REPETITIONS: dict[str, dict[str, Any]] = {
    "repeat": {"repeat_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.9},
    "presence": {"presence_penalty": 2.0, "penalty_last_n": 5},
    "all penalties": {"repeat_penalty": 0.8, "frequency_penalty": -0.4, "presence_penalty": 1.5},
    "last_n=0": {"repeat_penalty": 2.0, "penalty_last_n": 0},
    "dry": {"dry_multiplier": 0.8, "dry_sequence_breakers": ()},
    "dry with breakers": {"dry_multiplier": 0.8, "dry_base": 1.2},
    "dry across tokens": {"dry_multiplier": 2.0, "dry_sequence_breakers": ("at s", "he d", "mat.")},
    "dry of 1": {
        "dry_multiplier": 2.0,
        "dry_allowed_length": 1,
        "dry_sequence_breakers": ("mat.", "a"),
    },
    "short dry": {"dry_multiplier": 0.5, "dry_allowed_length": 1, "dry_penalty_last_n": 9},
    "both": {"dry_multiplier": 0.7, "repeat_penalty": 1.1, "logit_bias": {300: 2, 301: -math.inf}},
}
TEXT = 'The cat sat on the mat. The cat sat on the dog: "The cat sat." The dog sat on the cat s'


@pytest.mark.parametrize("name", REPETITIONS)
def test_repetitions_follow_their_definition(nano_model: pg.Model, name: str) -> None:
    """The tokens that are drawn become part of the text."""
    sampling = pg.Sampling(**{**OFF, **REPETITIONS[name]}, seed=2)
    history = nano_model.tokenize(TEXT).tolist()
    row = np.full(nano_model.n_vocab, -math.inf, np.float32)
    row[[*set(history), 300, 301]] = np.random.default_rng(1).normal(0, 1, len(set(history)) + 2)
    chain, biased = sampler(nano_model, sampling), row.astype(np.float64)
    for token, bias in sampling.logit_bias:  # type: ignore[misc]
        biased[token] += bias
    chain.accept(np.array(history, np.int32))
    core = nano_model._open()
    for share in reference.uniforms(2, 60):
        logits = reference.penalized(biased, history, sampling)
        if sampling.dry_multiplier:
            logits = reference.dried(logits, history, sampling, lambda t: core.piece(t, True))
        token = chain.sample(row)
        assert reference.drawable(logits, sampling).fits(token, share), len(history)
        history.append(token)


# Upstream draws from tokens in another order: a seed gives others of the same probabilities.
OTHER_ORDER = {"all", "dynatemp of all", "top_p", "small top_p", "top_p and min_p"}
SAME_SEED: dict[str, dict[str, Any]] = {
    **{name: CHAINS[name] for name in CHAINS if "typical" not in name and name not in OTHER_ORDER},
    **{name: REPETITIONS[name] for name in ("repeat", "frequency", "all penalties", "dry")},
    "logit_bias": {"logit_bias": {5: 8.0, 9: -math.inf, 300: 6.0}},
    "mirostat 1": {"mirostat": 1},
    "mirostat 2": {"mirostat": 2},
}


@pytest.mark.parametrize("name", SAME_SEED)
def test_same_tokens_as_upstream_for_a_seed(nano_model: pg.Model, name: str) -> None:
    """Without equal logits, which upstream mixes."""
    sampling = pg.Sampling(**SAME_SEED[name], seed=21)
    rows = [normal(nano_model, seed=i) for i in range(4)]
    chain, drawn = sampler(nano_model, sampling), []
    prompt = np.array([5, 6, 7, 5, 6, 7, 300, 5, 6], np.int32)
    chain.accept(prompt)
    with UpstreamChain(sampling, nano_model.n_vocab) as upstream:
        upstream.accept(prompt)
        for i in range(100):
            upstream.offer(rows[i % 4])
            drawn.append((chain.sample(rows[i % 4]), upstream.choose()))
    assert [ours for ours, _ in drawn] == [theirs for _, theirs in drawn]
    assert len({ours for ours, _ in drawn}) > 3


@pytest.mark.parametrize("name", [n for n in CHAINS if n != "large top_k"])
@pytest.mark.parametrize("spread", SPREADS)
def test_same_probabilities_as_upstream(nano_model: pg.Model, name: str, spread: float) -> None:
    """Of the definition that the draws above are held to; upstream adds in float32."""
    sampling = pg.Sampling(**CHAINS[name], seed=1)
    logits = normal(nano_model) / 3 * np.float32(spread)
    expected = reference.drawable(logits.astype(np.float64), sampling)
    with UpstreamChain(sampling, nano_model.n_vocab) as upstream:
        upstream.offer(logits)
        upstream.choose()
        left = upstream.left()
    theirs = np.zeros(nano_model.n_vocab)
    theirs[left["token"]] = left["p"]
    ours = np.zeros(nano_model.n_vocab)
    ours[expected.tokens] = expected.probabilities
    assert np.abs(theirs - ours).max() < 1e-4
