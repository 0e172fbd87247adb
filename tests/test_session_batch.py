"""Many prompts answered together: each as it would be alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import phiggml as pg
from logits_reference import DATA, exact_session
from test_session_cancel import endless
from test_session_recurrent import mamba

GREEDY = pg.Sampling(temperature=0)
LINE = 128


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pg.Model]:
    folder = tmp_path_factory.mktemp("batch")
    for name in ("phi3-128k-tiny", "phi3-window-tiny"):
        pg.convert(DATA / name, folder / f"{name}.gguf", "F32")
    mamba().write(folder / "mamba.gguf")
    return {path.stem: pg.Model(path) for path in sorted(folder.glob("*.gguf"))}


@pytest.fixture(scope="module")
def nano(nano_f32: Path) -> pg.Model:
    return pg.Model(nano_f32)


def texts(lengths: list[int]) -> list[npt.NDArray[np.int32]]:
    random = np.random.default_rng(5)
    return [random.integers(3, 250, n).astype(np.int32) for n in lengths]


def alone(
    model: pg.Model, prompts: list[npt.NDArray[np.int32]] | list[str], **settings: Any
) -> list[pg.Completion]:
    with exact_session(model) as session:
        return [session.generate(prompt, sampling=GREEDY, **settings) for prompt in prompts]


def as_alone(found: list[pg.Completion], wanted: list[pg.Completion]) -> None:
    assert [(a.tokens, a.text, a.finish_reason) for a in found] == [
        (a.tokens, a.text, a.finish_reason) for a in wanted
    ]


@pytest.mark.parametrize("n_seq_max", [1, 3, 8])
@pytest.mark.parametrize("name", ["phi3-128k-tiny", "phi3-window-tiny", "mamba"])
def test_each_is_answered_as_alone(models: dict[str, pg.Model], name: str, n_seq_max: int) -> None:
    """Of many lengths, on both sides of the line of long rope, which some cross; twice, so that
    sequences hold what they can use again."""
    prompts = texts([1, LINE - 5, 30, 200, 7, LINE, LINE + 1, 90, 2])
    wanted = alone(models[name], prompts, max_tokens=12)
    with exact_session(models[name], n_seq_max=n_seq_max) as session:
        as_alone(session.generate_batch(prompts, max_tokens=12, sampling=GREEDY), wanted)
        as_alone(
            session.generate_batch(prompts[::-1], max_tokens=12, sampling=GREEDY), wanted[::-1]
        )


def test_a_short_cache_of_a_window(models: dict[str, pg.Model]) -> None:
    model, prompts = models["phi3-window-tiny"], texts([400, 3, 300, 500, 10])
    wanted = alone(model, prompts, max_tokens=8)
    with pg.Session(
        model,
        n_ctx=512,
        n_seq_max=2,
        n_batch=64,
        swa_full=False,
        type_k="F32",
        type_v="F32",
        flash_attn=False,
    ) as session:
        for _ in range(2):
            as_alone(session.generate_batch(prompts, max_tokens=8, sampling=GREEDY), wanted)


def test_settings_hold_for_each(nano: pg.Model) -> None:
    prompts = ["The dog", "Once there was", "The child", "A cat"]
    grammar = 'root ::= [a-z ]+ "."'
    stop = alone(nano, prompts, max_tokens=20)[0].text[8:11]
    for settings in (
        {"max_tokens": 16, "stop": [stop, " and"]},
        {"max_tokens": 12, "grammar": grammar},
        {"max_tokens": 8, "logprobs": 3},
        {"max_tokens": 1},
    ):
        wanted = alone(nano, prompts, **settings)
        with exact_session(nano, n_seq_max=3) as session:
            found = session.generate_batch(prompts, sampling=GREEDY, **settings)
        as_alone(found, wanted)
        for a, b in zip(found, wanted, strict=True):
            assert (a.logprobs is None) == (b.logprobs is None)
            for one, other in zip(a.logprobs or (), b.logprobs or (), strict=True):
                assert [t for t, _ in one.top] == [t for t, _ in other.top]
                assert abs(one.logprob - other.logprob) < 1e-4


def test_random_numbers_are_each_ones_own(nano: pg.Model) -> None:
    prompts = ["The dog", "Once there was", "The child"]
    warm = pg.Sampling(temperature=1.5, seed=9)
    with exact_session(nano, n_seq_max=2) as session:
        found = session.generate_batch(prompts, max_tokens=8, sampling=warm)
        for prompt, answer in zip(prompts, found, strict=True):
            assert session.generate(prompt, max_tokens=8, sampling=warm).tokens == answer.tokens


def test_none_at_all(nano: pg.Model) -> None:
    with pg.Session(nano, n_ctx=64) as session:
        assert session.generate_batch([], max_tokens=3) == []


def test_one_that_does_not_fit(nano: pg.Model) -> None:
    with exact_session(nano, n_ctx=32, n_seq_max=2) as session:
        session.eval([5, 6])
        with pytest.raises(pg.SessionError, match="40 tokens do not fit into n_ctx = 32"):
            session.generate_batch([[5], [6] * 40], max_tokens=4)
        assert session.tokens.tolist() == [5, 6]
        # The second has no room for what it writes.
        with pytest.raises(pg.SessionError, match="no room") as raised:
            session.generate_batch([[5], [6] * 30], max_tokens=8, sampling=GREEDY)
        assert raised.value.completion is None
        assert [len(answer.tokens) for answer in raised.value.completions] == [3, 3]
        assert {answer.finish_reason for answer in raised.value.completions} == {"failed"}
        (found,) = session.generate_batch([[5, 6, 7]], max_tokens=4, sampling=GREEDY)
        assert (
            found.tokens
            == alone(nano, [*texts([1])[:0], np.array([5, 6, 7], np.int32)], max_tokens=4)[0].tokens
        )


def test_cancelled(nano: pg.Model) -> None:
    with exact_session(nano, n_ctx=512, n_seq_max=2) as session:

        def cancel() -> None:
            time.sleep(0.3)
            session.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        found = session.generate_batch(
            [[5, 6], [7, 8], [9]] * 40, max_tokens=400, sampling=endless(nano)
        )
        thread.join()
        reasons = [answer.finish_reason for answer in found]
        assert "cancelled" in reasons and reasons[-1] == "cancelled"
        wanted = alone(nano, [np.array([5, 6], np.int32)], max_tokens=5)
        as_alone(session.generate_batch([[5, 6]], max_tokens=5, sampling=GREEDY), wanted)


ODD = """
import sys
import numpy as np, phiggml as pg
random = np.random.default_rng(1)
for path in sys.argv[1:]:
    with pg.Model(path) as model:
        for overflow in ("error", "shift"):
            for swa_full in (True, False):
                with pg.Session(model, n_ctx=96, n_batch=32, n_seq_max=5, swa_full=swa_full,
                                overflow=overflow) as session:
                    for _ in range(60):
                        a, b = (int(x) for x in random.integers(0, 5, 2))
                        tokens = random.integers(3, 250, int(random.integers(1, 60)))
                        try:
                            match int(random.integers(0, 7)):
                                case 0: session.fork(a, b)
                                case 1: session.truncate(int(random.integers(0, 90)), sequence=a)
                                case 2: session.eval(tokens, sequence=a, logits="all")
                                case 3: session.eval(tokens, sequence=b, logits=[])
                                case 4: session.generate_batch([tokens] * 7, max_tokens=3)
                                case 5: session.score(tokens)
                                case 6: session.generate(tokens, max_tokens=40,
                                                         draft=pg.PromptLookup(ngram=1))
                        except pg.SessionError as error:
                            assert "no room" in str(error), error
    print("ok")
"""


@pytest.mark.slow
def test_nothing_ends_the_process(models: dict[str, pg.Model], tmp_path: Path) -> None:
    """Forks, cuts and batches in any order, of caches and states of all kinds."""
    paths = [tmp_path / f"{name}.gguf" for name in ("rope", "window", "mamba")]
    pg.convert(DATA / "phi3-128k-tiny", paths[0], "F32")
    pg.convert(DATA / "phi3-window-tiny", paths[1], "F32")
    mamba().write(paths[2])
    done = subprocess.run(
        [sys.executable, "-c", ODD, *map(str, paths)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "ok\n" * 3), done.stderr[-2000:]
