"""Vocabularies that nobody trained: their tokens are found, in time that grows with the text."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phiggml as pg
import tokenizer_models as tm

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
FIRST = 263  # the id of the first token that a test adds


def pieces(extra: Sequence[tuple[str, int]], **flags: Sequence[int]) -> dict[str, Any]:
    """A vocabulary for sentencepiece's BPE, with ids of tokens that have flags."""
    tokens = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    tokens += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    tokens += [(text, NORMAL) for text in "▁abx"] + list(extra)
    return vocabulary("llama", tokens, flags)


def words(pre: str, extra: Sequence[tuple[str, int]], **flags: Sequence[int]) -> dict[str, Any]:
    """A vocabulary for byte-level BPE that merges nothing."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    tokens = [(chr(byte), NORMAL) for byte in shown]
    tokens += [(chr(256 + i), NORMAL) for i in range(256 - len(shown))]
    tokens += [(f"<{i}>", CONTROL) for i in range(256, FIRST)] + list(extra)
    merges = pg.GGUFValue(["a z"], "STRING")
    return vocabulary("gpt2", tokens, flags) | {
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.merges": merges,
    }


def vocabulary(
    model: str, tokens: list[tuple[str, int]], flags: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": pg.GGUFValue([text for text, _ in tokens], "STRING"),
        "tokenizer.ggml.token_type": np.array([kind for _, kind in tokens], np.int32),
        "tokenizer.ggml.scores": np.zeros(len(tokens), np.float32),
        "tokenizer.ggml.add_space_prefix": pg.GGUFValue(False, "BOOL"),
        "tokenizer.ggml.bos_token_id": np.uint32(1),
        "tokenizer.ggml.eos_token_id": np.uint32(2),
        "tokenizer.ggml.unknown_token_id": np.uint32(0),
    }
    for name, ids in flags.items():
        found[f"phiggml.tokenizer.{name}"] = np.array(ids, np.int32)
    return found


def loaded(folder: Path, metadata: Mapping[str, Any]) -> pg.Model:
    return pg.Model(tm.with_vocabulary(folder / "model.gguf", metadata))


def ids(model: pg.Model, text: str, *, parse_special: bool = False) -> list[int]:
    found: list[int] = model.tokenize(text, add_special=False, parse_special=parse_special).tolist()
    return found


def test_byte_tokens_are_two_digits(tmp_path: Path) -> None:
    # strtoul takes signs and white space, and -1 is no place in a table of bytes.
    others = [f"<0x{two}>" for two in ("-1", "-f", "+5", " 5", "\t6", "0x", "5 ", "g0")]
    with loaded(tmp_path, pieces([(text, NORMAL) for text in others])) as model:
        assert ids(model, "".join(map(chr, range(1, 32)))) == list(range(4, 35))


SPACES = [(" ", USER_DEFINED), ("\n", USER_DEFINED)]
LONG = [("a" * 4000 + chr(ord("c") + i), USER_DEFINED) for i in range(15)]
NESTED = [("x" + "a" * i, USER_DEFINED) for i in range(1, 900)]
SLOW = {
    "takes the space before": (
        pieces(SPACES, lstrip=[FIRST]),
        " " * 100_000,
        [FIRST] * 100_000,
    ),
    "takes the space after": (
        pieces(SPACES, rstrip=[FIRST + 1]),
        " \n" * 50_000,
        [FIRST, FIRST + 1] * 50_000,
    ),
    "begin alike": (pieces(LONG), "a" * 300_000, [260] * 300_000),
    "begin with each other": (
        pieces(NESTED),
        ("x" + "a" * 898 + "b") * 300,
        [FIRST + 897, 261] * 300,
    ),
}


@pytest.mark.parametrize("case", SLOW)
def test_added_tokens_are_found_in_time_that_grows_with_the_text(case: str, tmp_path: Path) -> None:
    metadata, text, expected = SLOW[case]
    with loaded(tmp_path, metadata) as model:
        begin = time.process_time()
        assert ids(model, text) == expected
        assert time.process_time() - begin < 2


@pytest.mark.parametrize("beginning", ["", "x", "xa", "xab"])
def test_the_longest_of_many_added_tokens_is_taken(beginning: str, tmp_path: Path) -> None:
    tokens = ["x", "xa", "xab", "xabxab", "xax", "xb", "xabb"]
    names = [(text, USER_DEFINED) for text in tokens if text.startswith(beginning) and text != "x"]
    with loaded(tmp_path, pieces(names)) as model:
        known = {text: FIRST + i for i, (text, _) in enumerate(names)}
        for text in ("xabxa", "xabxab", "xaxab", "xxab", "xabbx", "xbxabxax", "xa", "xabxabb"):
            expected, at = [], 0
            while at < len(text):
                found = [token for token in known if text.startswith(token, at)]
                longest = max(found, key=len, default=text[at])
                expected.append(known.get(longest, 260 + "abx".index(text[at])))
                at += len(longest)
            assert ids(model, text) == expected, text


def test_tokens_may_be_normalized_to_one_text(tmp_path: Path) -> None:
    twins = [(" x", USER_DEFINED), ("▁x", USER_DEFINED)]
    with loaded(tmp_path, pieces(twins, normalized=[FIRST, FIRST + 1])) as model:
        for text in (" x", "▁x", " x\0", "▁x\0\0\0"):
            assert ids(model, text)[0] == FIRST
        assert ids(model, " x\0") == [FIRST, 3]


def test_a_word_is_no_special_token(tmp_path: Path) -> None:
    """Of Llama 3 a word that is a piece is not merged; special tokens are no pieces."""
    with loaded(tmp_path, words("llama-bpe", [("stop", CONTROL), ("Ġstop", NORMAL)])) as model:
        assert ids(model, "stop") == [token for letter in "stop" for token in ids(model, letter)]
        assert ids(model, " stop") == [FIRST + 1]
        assert ids(model, "stop", parse_special=True) == [FIRST]


def test_flags_name_tokens_that_there_are_not(tmp_path: Path) -> None:
    beyond = [-1, -(2**31), 2**31 - 1, 10_000, FIRST]
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word"), beyond)
    with loaded(tmp_path, pieces([("<a>", USER_DEFINED)], **flags)) as model:
        assert ids(model, "b <a> b") == [261, FIRST, 261]


def test_a_model_is_closed_while_others_tokenize(tmp_path: Path) -> None:
    text = "ab x\n" * 20_000
    model = loaded(tmp_path, pieces([("ab", NORMAL), ("\n", USER_DEFINED)]))
    expected = ids(model, text)
    faults: list[str] = []

    def work() -> None:
        try:
            while True:
                if ids(model, text) != expected:
                    faults.append("other ids")
        except pg.SessionError:
            pass

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    model.close()
    for thread in threads:
        thread.join()
    assert not faults
