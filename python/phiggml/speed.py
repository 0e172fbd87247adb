"""How fast a model reads and writes on this machine."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from phiggml.errors import InputError
from phiggml.model import Model
from phiggml.number import integer
from phiggml.progress import Progress, ProgressCallback
from phiggml.session import Session

__all__ = ["Speed", "benchmark_model"]

_MOST_REPETITIONS = 1000

Kind = Literal["prompt", "generation"]
_LETTERS: dict[Kind, str] = {"prompt": "pp", "generation": "tg"}


@dataclass(frozen=True)
class Speed:
    """How fast a model read a prompt, or wrote.

    Attributes:
        kind: "prompt" or "generation".
        n_tokens: how many it read, or wrote, in each repetition.
        threads: how many it used.
        seconds: how long each repetition took.

    Example:
        >>> import phiggml as pg
        >>> speed = pg.Speed("generation", n_tokens=128, threads=8, seconds=(4.0, 8.0))
        >>> speed.name, speed.tokens_per_second, round(speed.deviation, 2)
        ('tg128', 24.0, 11.31)
    """

    kind: Kind
    n_tokens: int
    threads: int
    seconds: tuple[float, ...]

    @property
    def name(self) -> str:
        """As llama-bench calls it: "pp512" reads 512 tokens, "tg128" writes 128."""
        return f"{_LETTERS[self.kind]}{self.n_tokens}"

    @property
    def rates(self) -> tuple[float, ...]:
        """Tokens/s of each repetition."""
        return tuple(self.n_tokens / seconds for seconds in self.seconds)

    @property
    def tokens_per_second(self) -> float:
        """The mean of the rates."""
        return statistics.fmean(self.rates)

    @property
    def deviation(self) -> float:
        """The standard deviation of the rates, in tokens/s; 0.0 of a single one."""
        return statistics.stdev(self.rates) if len(self.rates) > 1 else 0.0


def benchmark_model(
    model: Model | str | os.PathLike[str],
    *,
    n_prompt: Sequence[int] = (512,),
    n_gen: Sequence[int] = (128,),
    repetitions: int = 5,
    threads: int | None = None,
    n_batch: int = 512,
    type_k: str = "F16",
    type_v: str = "F16",
    flash_attn: bool | Literal["auto"] = "auto",
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> list[Speed]:
    """Measures how fast a model reads prompts and writes, each from an empty context.

    Tokens are random; what is timed is `Session.eval`, of a prompt or of one token after the other.

    Args:
        model: a Model, or the path of one, which is then loaded and closed.
        n_prompt: tokens of the prompts to read, one test for each.
        n_gen: tokens to write, one test for each.
        repetitions: of each test, beside a first one that is not counted.
        threads, n_batch, type_k, type_v, flash_attn: as for `Session`.
        seed: of the tokens.
        progress: called with a Progress in tokens, whose stage is the name of the test.

    Returns:
        A Speed for each test, prompts first.

    Raises:
        InputError: a number of tokens or of repetitions is no integer >= 1; as `Session`.
        SessionError: there is no memory for the context.
        OSError, FormatError, DeviceError: as `Model`, when a path is given.

    Cost:
        Time: repetitions + 1 times that of each prompt, repetitions times that of each answer.
        Memory: a context for as many tokens as the test has. Ctrl-C ends it as it ends `eval`.

    Source:
        llama-bench, whose tests have these names and are measured in this way.

    Example:
        >>> import phiggml as pg
        >>> speeds = pg.benchmark_model("phi3-nano.gguf", n_prompt=[64], n_gen=[8], repetitions=2)
        >>> [(speed.name, speed.tokens_per_second > 0) for speed in speeds]
        [('pp64', True), ('tg8', True)]
    """
    _require_count("repetitions", repetitions, _MOST_REPETITIONS)
    tests = _tests("prompt", "n_prompt", n_prompt) + _tests("generation", "n_gen", n_gen)
    settings: dict[str, Any] = {"threads": threads, "n_batch": n_batch, "flash_attn": flash_attn}
    settings |= {"type_k": type_k, "type_v": type_v}
    random = np.random.default_rng(seed)
    with ExitStack() as resources:
        if not isinstance(model, Model):
            model = resources.enter_context(Model(model))
        return [
            _speed(model, test, repetitions, settings=settings, random=random, progress=progress)
            for test in tests
        ]


def _speed(
    model: Model,
    test: tuple[Kind, int],
    repetitions: int,
    *,
    settings: dict[str, Any],
    random: np.random.Generator,
    progress: ProgressCallback | None,
) -> Speed:
    kind, n_tokens = test
    at_once, warm_up = (n_tokens, n_tokens) if kind == "prompt" else (1, 1)
    total = warm_up + repetitions * n_tokens
    done = 0

    def tell(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(Progress(f"{_LETTERS[kind]}{n_tokens}", done, total))

    with Session(model, n_ctx=n_tokens, **settings) as session:
        tell(0)
        _timed(session, random.integers(model.n_vocab, size=(1, warm_up)), tell)
        seconds = []
        for _ in range(repetitions):
            session.reset()
            tokens = random.integers(model.n_vocab, size=(n_tokens // at_once, at_once))
            seconds.append(_timed(session, tokens, tell))
        return Speed(kind, n_tokens, session.threads, tuple(seconds))


def _timed(session: Session, calls: np.ndarray[Any, Any], tell: Callable[[int], None]) -> float:
    """Seconds that it takes to evaluate one row of tokens after the other."""
    seconds = 0.0
    for tokens in calls:
        begun = time.perf_counter()
        session.eval(tokens)
        seconds += time.perf_counter() - begun
        tell(len(tokens))
    return seconds


def _tests(kind: Kind, name: str, counts: Sequence[int]) -> list[tuple[Kind, int]]:
    if isinstance(counts, str) or not isinstance(counts, Sequence):
        raise InputError(f"benchmark: {name} is {counts!r}: it must be a list of numbers.")
    for count in counts:
        _require_count(name, count, 1 << 30)
    return [(kind, count) for count in counts]


def _require_count(name: str, count: object, most: int) -> None:
    if integer(count, 1, most) is None:
        raise InputError(
            f"benchmark: {name}: {count!r} is not among the numbers from 1 to {most:,}."
        )
