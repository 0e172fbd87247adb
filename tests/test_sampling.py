"""Settings of sampling, what they are checked for, and log probabilities."""

from __future__ import annotations

import dataclasses
import math
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
import sampling_reference as reference
from phiggml import _core

GREEDY = pg.Sampling(temperature=0)


def sampler(model: pg.Model, sampling: pg.Sampling) -> _core.sampling.Sampler:
    return sampling._sampler(model._open(), 4096)


def normal(model: pg.Model, *, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, model.n_vocab).astype(np.float32)


def test_settings_are_copied_and_hashable() -> None:
    biases, breakers = {5: 1.0, 7: -math.inf}, ["\n", "."]
    sampling = pg.Sampling(logit_bias=biases, dry_sequence_breakers=breakers)
    biases.clear()
    breakers.clear()
    assert sampling.logit_bias == ((5, 1.0), (7, -math.inf))
    assert sampling.dry_sequence_breakers == ("\n", ".")
    assert hash(sampling) == hash(dataclasses.replace(sampling))
    assert sampling == dataclasses.replace(sampling) != pg.Sampling()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("logit_bias", value) for value in (5, [5], {"a": 1}, {-1: 1}, {True: 1}, {5: "x"})),
        *(("logit_bias", value) for value in ({5: None}, [(5, 1), (5, 2)], {2**31: 1}, None)),
        *(("dry_sequence_breakers", value) for value in ("\n", [5], [b"x"], None, ["\ud800"])),
        *(("mirostat", value) for value in (3, -1, 1.0, True)),
        *(("top_n_sigma", value) for value in ("1", None, 10**400)),
        ("dry_allowed_length", -1),
        ("dry_penalty_last_n", 2**31),
    ],
)
def test_values_that_settings_refuse(name: str, value: Any) -> None:
    with pytest.raises(pg.InputError, match=name):
        pg.Sampling(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("dynatemp_range", value) for value in (-1, math.nan, math.inf)),
        *(("dynatemp_exponent", value) for value in (-1, math.nan, 1e30)),
        *(("top_n_sigma", value) for value in (-1, math.nan, math.inf, 1e300)),
        *(("xtc_probability", value) for value in (-0.1, 1.1, math.nan)),
        *(("xtc_threshold", value) for value in (-0.1, 1.1, math.nan)),
        *(("dry_multiplier", value) for value in (-1, math.nan, math.inf)),
        *(("dry_base", value) for value in (0.5, math.nan, math.inf)),
        ("dry_allowed_length", 0),
        *(("dry_sequence_breakers", value) for value in ([""], ["x" * 257], ["x"] * 65)),
        *(("mirostat_tau", value) for value in (0, -1, math.nan, math.inf)),
        *(("mirostat_eta", value) for value in (-1, math.nan, math.inf)),
        *(("logit_bias", value) for value in ({2048: 1}, {5: math.nan}, {5: math.inf})),
    ],
)
def test_values_that_the_sampler_refuses(nano_model: pg.Model, name: str, value: Any) -> None:
    with pytest.raises(pg.InputError, match=rf"^sampling: {name}: .*\.$"):
        sampler(nano_model, pg.Sampling(**{name: value}))


def test_greedy_takes_the_first_of_the_greatest(nano_model: pg.Model) -> None:
    logits = normal(nano_model)
    logits[[77, 78, 1500]] = 50
    assert sampler(nano_model, GREEDY).sample(logits) == 77
    zeros = np.full_like(logits, -1)
    zeros[[9, 300]] = -0.0, 0.0
    assert sampler(nano_model, GREEDY).sample(zeros) == 9


def test_the_same_on_every_machine(nano_model: pg.Model) -> None:
    """Exact logits, and the tokens that one machine drew; they follow the definition."""
    logits = ((np.arange(nano_model.n_vocab) * 7919 % 2048).astype(np.float32) - 1024) / 128
    sampling = pg.Sampling(temperature=1.5, top_k=0, top_p=0.9, typical_p=0.95, min_p=0.01, seed=1)
    drawn = [2041, 1943, 458, 2041, 706, 1043, 1028, 1538, 1951, 1823, 878, 1283]
    expected = reference.drawable(logits.astype(np.float64), sampling)
    assert all(map(expected.fits, drawn, reference.uniforms(1, len(drawn))))
    for _ in range(2):
        chain = sampler(nano_model, sampling)
        assert [chain.sample(logits) for _ in drawn] == drawn
    other = sampler(nano_model, dataclasses.replace(sampling, seed=2))
    assert [other.sample(logits) for _ in drawn] != drawn


@pytest.mark.parametrize("settings", [{}, {"temperature": 0}, {"top_k": 0}, {"mirostat": 2}])
@pytest.mark.parametrize("values", [{5: math.nan}, {5: math.inf}, {5: -math.nan}, "all banned"])
def test_logits_without_order_are_refused(
    nano_model: pg.Model, settings: dict[str, Any], values: Any
) -> None:
    logits = normal(nano_model)
    if values == "all banned":
        logits[:] = -math.inf
    else:
        logits[list(values)] = list(values.values())
    chain = sampler(nano_model, pg.Sampling(**settings, repeat_penalty=1.1))
    chain.accept(np.array([5], np.int32))
    with pytest.raises(pg.SessionError, match="not finite"):
        chain.sample(logits)


def test_banning_all_there_is(nano_model: pg.Model) -> None:
    logits = np.full(nano_model.n_vocab, -math.inf, np.float32)
    logits[[3, 4]] = 1
    chain = sampler(nano_model, pg.Sampling(logit_bias={3: -math.inf}))
    assert {chain.sample(logits) for _ in range(20)} == {4}
    banned = pg.Sampling(logit_bias={3: -math.inf, 4: -math.inf})
    with pytest.raises(pg.SessionError, match="logit_bias bans each token"):
        sampler(nano_model, banned).sample(logits)


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 2**31 - 1},
        {"top_k": 0, "top_p": 1e-30, "typical_p": 1e-30},
        {"repeat_penalty": 1e-40, "frequency_penalty": -100, "presence_penalty": -100},
        {"repeat_penalty": 100, "frequency_penalty": 100, "presence_penalty": 100},
        {"dry_multiplier": 3e38, "dry_base": 3e38, "dry_allowed_length": 1},
        {"mirostat": 1, "mirostat_tau": 1e-30, "mirostat_eta": 3e38},
        {"mirostat": 2, "mirostat_tau": 3e38, "mirostat_eta": 3e38},
        {"mirostat": 2, "temperature": 1e-44},
        {"mirostat": 1, "temperature": 1e30},
        {"dynatemp_range": 3e38, "dynatemp_exponent": 100, "top_k": 0},
        {"temperature": 0, "dynatemp_range": 1e-44},
        {"top_n_sigma": 1e-30, "xtc_probability": 1, "xtc_threshold": 0},
        {"top_n_sigma": 3e38},
        {"logit_bias": dict.fromkeys(range(0, 2048, 2), 3e38)},
    ],
)
def test_extremes_are_harmless(nano_model: pg.Model, settings: dict[str, Any]) -> None:
    sampling = pg.Sampling(**settings, seed=3)
    flat = np.zeros(nano_model.n_vocab, np.float32)
    lone = np.full_like(flat, -math.inf)
    lone[9] = 1
    huge = normal(nano_model) * np.float32(2e37)
    for logits in (flat, lone, huge, normal(nano_model)):
        chain = sampler(nano_model, sampling)
        for _ in range(4):
            assert logits[chain.sample(logits)] > -math.inf


def test_arrays_that_are_no_logits(nano_model: pg.Model) -> None:
    chain, logits = sampler(nano_model, GREEDY), normal(nano_model)
    for wrong in (logits[:-1], logits[None], logits.astype(np.float64), np.tile(logits, 2)[::2]):
        with pytest.raises(pg.InputError, match="logits"):
            chain.sample(wrong)  # type: ignore[arg-type]
    for tokens in ([-1], [nano_model.n_vocab]):
        with pytest.raises(pg.InputError, match="vocabulary of 2048"):
            chain.accept(np.array(tokens, np.int32))


def test_two_threads_at_once_are_told(nano_model: pg.Model) -> None:
    """Where they meet in one sampler, one of them is told so; neither sees the other's work."""
    chain = sampler(nano_model, pg.Sampling(top_k=0, dry_multiplier=1, repeat_penalty=1.1))
    logits, wrong = normal(nano_model), []

    def draw() -> None:
        for _ in range(300):
            try:
                if not 0 <= chain.sample(logits) < nano_model.n_vocab:
                    wrong.append("no token")
            except pg.SessionError as error:
                if "another thread" not in str(error):
                    wrong.append(str(error))

    threads = [threading.Thread(target=draw) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_logprobs_are_those_of_the_logits(nano_model: pg.Model) -> None:
    logits = normal(nano_model)
    logits[[100, 200]] = 9.5, -math.inf
    logits[[1000, 900]] = 9.5
    with np.errstate(divide="ignore"):
        expected = np.log(reference.softmax(logits.astype(np.float64)))
    order = np.argsort(-expected, kind="stable")
    for k in (0, 1, 5, 100, nano_model.n_vocab):
        logprob, top = _core.sampling.logprobs(logits, 42, k)
        assert logprob == pytest.approx(expected[42], abs=2e-6)
        wanted = [(t, expected[t]) for t in order[:k].tolist() if expected[t] > -math.inf]
        assert [token for token, _ in top] == [token for token, _ in wanted]
        assert [p for _, p in top] == pytest.approx([p for _, p in wanted], abs=2e-6)
    assert _core.sampling.logprobs(logits, 200, 0) == (-math.inf, [])


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 129, 4095, 32064, 200064])
def test_the_likeliest_of_vocabularies_of_all_sizes(n: int) -> None:
    random = np.random.default_rng(n)
    for logits in (
        random.normal(0, 3, n),
        random.integers(-9, 9, n),
        np.sort(random.normal(0, 3, n)),
    ):
        row = logits.astype(np.float32)
        order = np.argsort(-row, kind="stable")
        for k in {1, min(n, 40), min(n, 700), n}:
            _, top = _core.sampling.logprobs(row, 0, k)
            assert [token for token, _ in top] == order[:k].tolist()


def test_logprobs_refuse(nano_model: pg.Model) -> None:
    logits = normal(nano_model)
    for token, k in ((-1, 0), (nano_model.n_vocab, 0), (0, -1), (0, nano_model.n_vocab + 1)):
        with pytest.raises(pg.InputError, match="logprobs"):
            _core.sampling.logprobs(logits, token, k)
    with pytest.raises(pg.InputError, match="one row"):
        _core.sampling.logprobs(logits[None], 0, 0)
    with pytest.raises(pg.SessionError, match="not finite"):
        _core.sampling.logprobs(np.full(5, math.nan, np.float32), 0, 0)
