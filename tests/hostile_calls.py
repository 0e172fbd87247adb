"""Wrong calls of models and sessions, each with what it must raise. Run as a script, it makes
all of them in one process and prints how each ended: `python hostile_calls.py MODEL.gguf`."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import hostile_texts
import phiggml as pg
from hostile_texts import HELLO, INPUT, Call, Case

SESSION = (pg.SessionError,)


def _context(**settings: Any) -> Call:
    def call(model: pg.Model, _session: pg.Session) -> None:
        with pg.Session(model, **settings) as made:
            made.eval([5])

    return call


def _loaded(**settings: Any) -> Call:
    def call(_model: pg.Model, _session: pg.Session) -> None:
        pg.Model(sys.argv[1], **settings).close()

    return call


def _sampled(**settings: Any) -> Call:
    def call(_model: pg.Model, session: pg.Session) -> None:
        session.generate("The dog", max_tokens=2, sampling=pg.Sampling(**settings))

    return call


def _generated(prompt: Any, **settings: Any) -> Call:
    return lambda _model, session: session.generate(prompt, **{"max_tokens": 2, **settings})


def _closed(verb: Callable[[pg.Session], object]) -> Call:
    """On a session that is closed."""

    def call(model: pg.Model, _session: pg.Session) -> None:
        session = pg.Session(model, n_ctx=64)
        session.eval([5])
        session.close()
        session.close()
        verb(session)

    return call


def _model_closed(verb: Callable[[pg.Model], object]) -> Call:
    def call(_model: pg.Model, _session: pg.Session) -> None:
        model = pg.Model(sys.argv[1])
        model.close()
        model.close()
        verb(model)

    return call


def _mid_stream(verb: Callable[[pg.Session], object], *, model_too: bool = False) -> Call:
    """Between two chunks."""

    def call(_model: pg.Model, _session: pg.Session) -> None:
        with pg.Model(sys.argv[1]) as model, pg.Session(model, n_ctx=64) as session:
            stream = session.stream("The dog", max_tokens=20)
            next(stream)
            verb(session)
            if model_too:
                model.close()
            next(stream)

    return call


def _said(content: Any) -> Call:
    return lambda _m, s: s.chat([{"role": "user", "content": content}], max_tokens=2)


def _batched(prompts: Any, **settings: Any) -> Call:
    return lambda _model, session: session.generate_batch(prompts, **{"max_tokens": 2, **settings})


def _called(name: str, *arguments: Any, **settings: Any) -> Call:
    return lambda _model, session: getattr(session, name)(*arguments, **settings)


def _after_close(name: str, *arguments: Any, **settings: Any) -> Call:
    def call(model: pg.Model, _session: pg.Session) -> None:
        made = pg.Session(model, n_ctx=64)
        made.close()
        getattr(made, name)(*arguments, **settings)

    return call


def _evaluated(tokens: Any, **settings: Any) -> Call:
    def call(_model: pg.Model, session: pg.Session) -> None:
        session.reset()
        session.eval(tokens, **settings)

    return call


def _close_inside(name: str) -> Call:
    """Between two pieces of what an event loop reads, or of a chat."""

    def call(model: pg.Model, _session: pg.Session) -> None:
        session = pg.Session(model, n_ctx=64)
        if name == "stream_chat":
            chunks = session.stream_chat(HELLO)
            next(chunks)
            session.close()
            list(chunks)
        asyncio.run(_read_and_close(session))

    return call


async def _read_and_close(session: pg.Session) -> None:
    chunks = session.astream("The dog", max_tokens=20)
    async for _ in chunks:
        session.close()


def _made_of(model: Any) -> Call:
    return lambda _model, _session: pg.Session(model, n_ctx=64).close()


SESSION_VERBS: dict[str, Callable[[pg.Session], object]] = {
    "eval": lambda s: s.eval([5]),
    "tokens": lambda s: s.tokens,
    "sequence_tokens": lambda s: s.sequence_tokens(0),
    "reset": lambda s: s.reset(),
    "reset one": lambda s: s.reset(sequence=0),
    "generate": lambda s: s.generate("x", max_tokens=1),
    "stream": lambda s: next(s.stream([5], max_tokens=1)),
    "chat": lambda s: s.chat([{"role": "user", "content": "x"}]),
    "stream_chat": lambda s: next(s.stream_chat([{"role": "user", "content": "x"}])),
    "with": lambda s: s.__enter__().eval([5]),
}
MODEL_VERBS: dict[str, Callable[[pg.Model], object]] = {
    "tokenize": lambda m: m.tokenize("x"),
    "detokenize": lambda m: m.detokenize([5]),
    "chat_prompt": lambda m: m.chat_prompt([{"role": "user", "content": "x"}]),
    "metadata": lambda m: m.metadata["general.architecture"],
    "placement": lambda m: m.placement,
    "n_vocab": lambda m: m.n_vocab,
    "n_ctx_train": lambda m: m.n_ctx_train,
    "nbytes": lambda m: m.nbytes,
    "description": lambda m: m.description,
    "Session": lambda m: pg.Session(m, n_ctx=64),
}
CASES: dict[str, Case] = {
    **{
        f"n_ctx={value!r}": (_context(n_ctx=value), INPUT)
        for value in (0, -1, 2**31, 2**62, True, "many", 1.5)
    },
    **{
        f"n_ctx={value!r}": (_context(n_ctx=value), INPUT)
        for value in (np.int64(0), np.int32(-1), np.int64(2**31), np.bool_(True), np.array([64]))
    },
    **{
        f"n_ctx={value!r}": (_context(n_ctx=value), INPUT)
        for value in (np.float64(64), np.float32(1.5), math.nan, False, "64", 10**30)
    },
    "n_ctx=2^30": (_context(n_ctx=2**30), SESSION),
    "n_ctx=2^26": (_context(n_ctx=2**26), SESSION),
    **{
        f"n_batch={value!r}": (_context(n_ctx=64, n_batch=value), INPUT) for value in (0, -1, 2**31)
    },
    **{
        f"n_seq_max={value!r}": (_context(n_ctx=64, n_seq_max=value), INPUT)
        for value in (0, -1, 10**6, 2**30)
    },
    **{
        f"threads={value!r}": (_context(n_ctx=64, threads=value), INPUT)
        for value in (0, -1, 10**6, 513, "2")
    },
    **{
        f"type_k={value!r}": (_context(n_ctx=64, type_k=value), INPUT)
        for value in ("Q4_K", "IQ2_XXS", "I8", "F64", "TQ1_0", "MXFP4", "Q9_9", None)
    },
    "quantized V without flash attention": (
        _context(n_ctx=64, type_v="Q8_0", flash_attn=False),
        INPUT,
    ),
    "flash_attn='yes'": (_context(n_ctx=64, flash_attn="yes"), INPUT),
    **{
        f"temperature={value!r}": (_sampled(temperature=value), INPUT)
        for value in (math.nan, math.inf, -1, -math.inf, "hot", None, True)
    },
    **{
        f"temperature={value!r}": (_sampled(temperature=value), INPUT)
        for value in (np.float64("nan"), np.float32("nan"), np.float16("inf"), np.bool_(True))
    },
    **{
        f"{name}={value!r:.20}": (_sampled(**{name: value}), INPUT)
        for name in ("repeat_penalty", "frequency_penalty", "presence_penalty", "dry_multiplier")
        for value in (-3e38, 1e39, 10**400, np.float64("nan"), np.float32("nan"))
    },
    **{f"top_k={value!r}": (_sampled(top_k=value), INPUT) for value in (-1, 2**31, 1.5, None)},
    **{f"top_p={value!r}": (_sampled(top_p=value), INPUT) for value in (0, -1, 1.5, math.nan)},
    **{f"min_p={value!r}": (_sampled(min_p=value), INPUT) for value in (-0.1, 1.5, math.nan)},
    **{f"typical_p={value!r}": (_sampled(typical_p=value), INPUT) for value in (0, math.nan)},
    **{
        f"repeat_penalty={value!r}": (_sampled(repeat_penalty=value), INPUT)
        for value in (0, -1, 1e30, math.inf, math.nan)
    },
    **{
        f"frequency_penalty={value!r}": (_sampled(frequency_penalty=value), INPUT)
        for value in (1e30, -1e30, math.nan)
    },
    **{f"seed={value!r}": (_sampled(seed=value), INPUT) for value in (-1, 2**32, 0.5)},
    **{f"mirostat={value!r}": (_sampled(mirostat=value), INPUT) for value in (-1, 3, None)},
    **{f"top_n_sigma={value!r}": (_sampled(top_n_sigma=value), INPUT) for value in (-1, math.nan)},
    **{
        f"dry_sequence_breakers={value!r:.20}": (
            _sampled(dry_multiplier=1, dry_sequence_breakers=value),
            INPUT,
        )
        for value in ("", [""], ["x" * 10**6], ["\udcff"], [None])
    },
    **{
        f"logit_bias={value!r}": (_sampled(logit_bias=value), INPUT)
        for value in ({-1: 1}, {2**31: 1}, {10**6: 1}, {5: math.nan}, {5: math.inf}, 5)
    },
    "penalty_last_n=-1": (_sampled(repeat_penalty=1.1, penalty_last_n=-1), INPUT),
    "empty prompt": (_generated(""), INPUT),
    "no prompt tokens": (_generated([]), INPUT),
    "prompt is None": (_generated(None), INPUT),
    "prompt with lone surrogates": (_generated("\ud800 dog"), INPUT),
    **hostile_texts.CASES,
    "prompt longer than the context": (_generated([5] * 1000), SESSION),
    "prompt of 10 MB": (_generated("dog " * 2_500_000), SESSION),
    **{
        f"max_tokens={value!r}": (_generated("dog", max_tokens=value), INPUT)
        for value in (0, -1, 1.5, "5", None)
    },
    **{
        f"stop={value!r}": (_generated("dog", stop=value), INPUT)
        for value in ("", [""], [5], None, 5)
    },
    **{
        f"tokens={value!r}": (_evaluated(value), INPUT)
        for value in ([], [-1], [2**31], [2**63], [1.5], ["dog"], [[1, 2]], "dog", [True], None)
    },
    "token n_vocab": (lambda m, s: s.eval([m.n_vocab]), INPUT),
    **{
        f"logits={value!r:.30}": (_evaluated([5, 6], logits=value), INPUT)
        for value in ([2], [-1], [0.5], [True], [[0]], [[0], [0, 1]], [2**70], None, 5, b"all")
    },
    **{
        f"logprobs={value!r}": (_generated("dog", logprobs=value), INPUT)
        for value in (-1, 2000, True, 0.5, "3", 2**70)
    },
    **{
        f"{name}={value!r}": (_generated("dog", **{name: value}), INPUT)
        for name in ("logits_processor", "draft")
        for value in (5, "all", True, pg.Draft)
        if (name, value) != ("logits_processor", pg.Draft)
    },
    **{
        f"prompts={value!r:.30}": (_batched(value), INPUT)
        for value in (None, 5, "dog", b"dog", ["dog", ""], ["dog", None], [5], [[]], {"a": 1})
    },
    "a prompt of the batch is too long": (_batched(["dog", [5] * 1000]), SESSION),
    **{
        f"fork{value!r}": (_called("fork", *value), INPUT)
        for value in ((0, 1), (1, 0), (-1, 0), (0, True), (0, "0"), (0, None), (2**31, 0))
    },
    **{
        f"truncate({value!r})": (_called("truncate", value), INPUT)
        for value in (-1, 0.5, True, None, "3", 2.0)
    },
    "truncate of no sequence": (_called("truncate", 0, sequence=1), INPUT),
    **{
        f"score({value!r:.20})": (_called("score", value), INPUT)
        for value in ([], [-1], [10**6], None, 5, [0.5])
    },
    "score of much": (_called("score", [5] * 1000), SESSION),
    **{
        f"overflow={value!r}": (_context(n_ctx=64, overflow=value), INPUT)
        for value in ("x", None, True, "SHIFT", 1)
    },
    **{
        f"closed: {name}": (_after_close(name, *arguments, **settings), SESSION)
        for name, arguments, settings in (
            ("eval", ([5],), {}),
            ("score", ([5],), {}),
            ("fork", (0, 0), {}),
            ("truncate", (0,), {}),
            ("reset", (), {}),
            ("sequence_tokens", (0,), {}),
            ("generate", ([5],), {"max_tokens": 1}),
            ("stream", ([5],), {"max_tokens": 1}),
            ("astream", ([5],), {"max_tokens": 1}),
            ("chat", ([{"role": "user", "content": "Hi"}],), {}),
            ("astream_chat", ([{"role": "user", "content": "Hi"}],), {}),
            ("generate_batch", ([[5]],), {"max_tokens": 1}),
            ("generate_batch", ([],), {"max_tokens": 1}),
            ("set_lora", ([],), {}),
            ("set_control_vector", (None,), {}),
            ("embed", ("dog",), {}),
        )
    },
    "closed: cancel": (_after_close("cancel"), ()),
    "truncate far beyond": (_called("truncate", 2**70), ()),
    "swa_full=False": (_context(n_ctx=64, swa_full=False), ()),
    "swa_full=False, many sequences": (_context(n_ctx=64, n_seq_max=9, swa_full=False), ()),
    "fork of itself": (_called("fork", 0, 0), ()),
    "object array": (_evaluated(np.array([1, None], object)), INPUT),
    "logits='some'": (_evaluated([5], logits="some"), INPUT),
    "more tokens than the context": (_evaluated([5] * 1000), SESSION),
    **{
        f"tokenize({value!r})": (lambda m, _s, v=value: m.tokenize(v), INPUT)
        for value in (5, None, b"dog", "\udcff")
    },
    **{
        f"detokenize({value!r})": (lambda m, _s, v=value: m.detokenize(v), INPUT)
        for value in ([-1], [2**31 - 1], [2**40], [0.5], "dog", [None])
    },
    **{
        f"generate tokens={value!r}": (_generated(value), INPUT)
        for value in ([-1], [2**31], [2**63], [1.5], ["dog"], [[1, 2]], [True], 5, b"dog", {})
    },
    **{
        f"generate far from the vocabulary: {value}": (_generated([5, value]), INPUT)
        for value in (1 << 20, 2**31 - 1, -(2**31))
    },
    "a batch far from the vocabulary": (
        lambda m, s: s.generate_batch([[5], [1 << 20]], max_tokens=1),
        INPUT,
    ),
    "generate token n_vocab": (lambda m, s: s.generate([m.n_vocab], max_tokens=1), INPUT),
    **{
        f"sequence={value!r}": (_evaluated([5], sequence=value), INPUT)
        for value in (-1, 1, 2**31, 2**64, True, "0", None, 0.0)
    },
    "tokens of sequence 1": (lambda _m, s: s.sequence_tokens(1), INPUT),
    "reset of sequence 2^31": (lambda _m, s: s.reset(sequence=2**31), INPUT),
    **{f"model={value!r}": (_made_of(value), (TypeError,)) for value in (None, 5, [], {})},
    "model is a folder": (_made_of("/"), (OSError, pg.FormatError)),
    "model is not there": (_made_of("none-such.gguf"), (FileNotFoundError,)),
    "model is a path with NUL": (_made_of("a\x00b"), (ValueError,)),
    "model is this file": (_made_of(__file__), (pg.FormatError,)),
    "2^24 + 1 tokens to text": (lambda m, _s: m.detokenize(np.zeros(2**24 + 1, np.int32)), INPUT),
    **{f"closed session: {name}": (_closed(verb), SESSION) for name, verb in SESSION_VERBS.items()},
    **{
        f"closed model: {name}": (_model_closed(verb), SESSION)
        for name, verb in MODEL_VERBS.items()
    },
    "close during a stream": (_mid_stream(pg.Session.close), SESSION),
    "close during a stream of a chat": (_close_inside("stream_chat"), SESSION),
    "close during a stream in an event loop": (_close_inside("astream"), SESSION),
    "reset during a stream": (_mid_stream(lambda s: s.reset()), SESSION),
    "eval during a stream": (_mid_stream(lambda s: s.eval([5])), SESSION),
    "another stream during a stream": (
        _mid_stream(lambda s: s.stream("The", max_tokens=1)),
        SESSION,
    ),
    "chat with a lone surrogate": (_said("a\ud800b"), INPUT),
    "chat without messages": (lambda _m, s: s.chat([]), INPUT),
    "chat with a wrong message": (lambda _m, s: s.chat([{"role": "user"}]), INPUT),
    **{
        f"tensor_overrides={value!r:.40}": (_loaded(tensor_overrides=[value]), INPUT)
        for value in (
            ("(?i)ffn", "CPU"),
            ("\0ffn", "CPU"),
            ("\udcff", "CPU"),
            ("a{0,90000}", "CPU"),
            ("(.*){0,9000}x", "CPU"),
            ("(" * 5000 + ")" * 5000, "CPU"),
            ("a{99999999999999}", "CPU"),
            (b"ffn", "CPU"),
            ("ffn", 5),
            ("ffn",),
            "ffn",
        )
    },
    **{f"split_mode={value!r}": (_loaded(split_mode=value), INPUT) for value in (None, "", 5)},
    **{
        f"tensor_split={value!r}": (_loaded(tensor_split=value), INPUT)
        for value in (["a"], 5, [math.nan], [None])
    },
    "many tokens, all logits": (_evaluated([5] * 10**6, logits="all"), SESSION),
    # These are odd, and harmless.
    "more sequences than tokens": (_context(n_ctx=1, n_seq_max=256), ()),
    "more sequences than a batch": (_context(n_ctx=7, n_batch=3, n_seq_max=255), ()),
    "split_mode='none'": (_loaded(split_mode="none"), ()),
    "penalties over all tokens": (_sampled(repeat_penalty=1.1, penalty_last_n=2**31 - 1), ()),
    "DRY over all tokens": (_sampled(dry_multiplier=1, dry_penalty_last_n=2**31 - 1), ()),
    "every token banned": (_sampled(logit_bias=dict.fromkeys(range(2048), -math.inf)), SESSION),
    "tiniest temperature": (_sampled(temperature=1e-44), ()),
    "n_ctx=1": (_context(n_ctx=1), ()),
    "threads=8": (_context(n_ctx=64, threads=8), ()),
    "n_ctx of a closed session": (_closed(lambda s: s.n_ctx), ()),
    "repr of a closed session": (_closed(repr), ()),
    "repr of a closed model": (_model_closed(repr), ()),
    "asked between two chunks": (_mid_stream(lambda s: (s.tokens, repr(s), s.n_ctx)), ()),
    "model closed between two chunks": (_mid_stream(repr, model_too=True), ()),
    "NUL in a chat": (_said("a\x00b"), ()),
    "a chat of control tokens": (_said("<|end|><|assistant|>" * 5), ()),
    "NUL in a stop text": (_generated("dog", stop="\x00"), ()),
    "a stop text that no text holds": (_generated("dog", stop=["\ud800", "x" * 10**6]), ()),
    "many stop texts": (_generated("dog", stop=[f"stop {i}" for i in range(10**4)]), ()),
    "tokenize NUL": (lambda m, _s: m.detokenize(m.tokenize("a\x00b")), ()),
    "NUL in the prompt": (_generated("a\x00b"), ()),
    "tokenize nothing": (lambda m, _s: m.tokenize(""), ()),
    "detokenize nothing": (lambda m, _s: m.detokenize([]), ()),
    "every token": (lambda m, _s: m.detokenize(range(m.n_vocab), special=True), ()),
    "top_k beyond the vocabulary": (_sampled(top_k=2**31 - 1), ()),
    "tiny temperature": (_sampled(temperature=1e-30), ()),
    "huge temperature": (_sampled(temperature=1e30), ()),
    "large penalties": (_sampled(repeat_penalty=100, frequency_penalty=-100), ()),
    "uint64 tokens": (_evaluated(np.array([5, 6], np.uint64)), ()),
    "largest DRY": (_sampled(dry_multiplier=3.4e38, dry_base=3.4e38), ()),
    "strided tokens": (_evaluated(np.arange(20)[::-2]), ()),
}


def ending(case: Case, model: pg.Model, session: pg.Session) -> str:
    """How a case ended: "ok", or what went otherwise than it must."""
    call, expected = case
    try:
        call(model, session)
    except expected as error:
        told = str(error).encode(errors="replace").decode()
        return "ok" if len(told) > 10 and told == str(error) else f"says {told!r}"
    except Exception as error:  # noqa: BLE001 - whatever comes is the finding
        return f"raised {type(error).__name__}: {error}"
    return "ok" if not expected else "raised nothing"


def main() -> None:
    with pg.Model(sys.argv[1]) as model, pg.Session(model, n_ctx=128) as session:
        for name, case in CASES.items():
            print(f"{name}: {ending(case, model, session)}", flush=True)
        session.reset()
        assert session.eval([5]).shape == (model.n_vocab,)
    print("all done")


if __name__ == "__main__":
    main()
