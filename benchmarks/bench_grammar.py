"""What a grammar costs for each token: telling of the whole vocabulary which tokens may follow, and
of one token whether it may.

python benchmarks/bench_grammar.py MODEL.gguf
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

import phiggml as pg
from machine import describe
from phiggml.grammar import grammar_state

DOCUMENT = (
    '{"name": "a text of some words, with 漢字 in it", "numbers": [1, 22, 333], "flag": true}'
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "numbers": {"type": "array", "items": {"type": "integer"}},
        "flag": {"type": "boolean"},
    },
    "required": ["name", "numbers", "flag"],
}
GRAMMARS = {
    "schema": pg.Grammar.from_json_schema(SCHEMA),
    "any JSON": pg.Grammar.from_json_schema(True),
    "any text": pg.Grammar("root ::= .*"),
}


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def tokens_of(model: pg.Model) -> list[int]:
    """The document's, without the space that some tokenizers put in front."""
    tokens = [int(token) for token in model.tokenize(DOCUMENT, add_special=False)]
    return tokens[1:] if model.detokenize(tokens[:1]).strip() == "" else tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    with pg.Model(parser.parse_args().model) as model:
        print(describe())
        tokens = tokens_of(model)
        print(f"{model.n_vocab} tokens in the vocabulary, {len(tokens)} in the answer")
        copied = statistics.median(milliseconds(lambda: np.zeros(model.n_vocab)) for _ in range(9))
        for name, grammar in GRAMMARS.items():
            state = grammar_state(grammar, None, model._open())
            assert state is not None
            whole, single = [], []
            for token in tokens:
                whole.append(milliseconds(state.allowed))
                single.append(milliseconds(partial(state.allows, token)))
                state.accept(token)
            assert state.may_end()
            print(
                f"{name}: all tokens {statistics.median(whole):.2f} ms (at most {max(whole):.2f}), "
                f"one {statistics.median(single) * 1e3:.1f} us; ratio to writing as many float64 "
                f"{statistics.median(whole) / copied:.1f}"
            )


if __name__ == "__main__":
    main()
