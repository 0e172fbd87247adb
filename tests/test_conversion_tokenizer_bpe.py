"""Byte-level BPE tokenizers as GGUF metadata, and those that are refused."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import phiggml as pg
import tokenizer_models as tm
from checkpoints import write_json
from phiggml.conversion import plan_conversion
from tokenizer_texts import texts

ROWS = 1600
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
Document = dict[str, Any]
Change = Callable[[Document], Any]


def metadata_of(folder: Path) -> dict[str, Any]:
    return dict(plan_conversion(folder).metadata)


def written(folder: Path, document: Document) -> dict[str, Any]:
    return metadata_of(tm.write_bpe(folder, document, rows=ROWS))


@pytest.mark.parametrize(
    ("kind", "pre"),
    [
        ("gpt-2", "gpt-2"),
        ("cl100k", "dbrx"),
        ("o200k", "gpt-4o"),
        ("qwen2", "qwen2"),
        ("llama-bpe", "llama-bpe"),
    ],
)
def test_tokens_types_and_merges(kind: str, pre: str, tmp_path: Path) -> None:
    document = tm.bpe_document(kind)
    metadata = written(tmp_path, document)
    pieces = {i: token for token, i in document["model"]["vocab"].items()}
    added = {entry["id"]: entry for entry in document["added_tokens"]}
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert (len(tokens), types.dtype, len(types)) == (ROWS, np.int32, ROWS)
    for i in range(ROWS):
        if i in added:
            kind_of = CONTROL if added[i]["special"] else USER_DEFINED
            expected = (added[i]["content"], kind_of)
        else:
            expected = (pieces[i], NORMAL) if i in pieces else (f"[PAD{i}]", UNUSED)
        assert (tokens[i], types[i]) == expected
    merges = [f"{left} {right}" for left, right in document["model"]["merges"]]
    assert metadata["tokenizer.ggml.merges"] == merges
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == pre
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert "tokenizer.ggml.scores" not in metadata


def test_flags_that_llama_cpp_has_no_keys_for(tmp_path: Path) -> None:
    def own(kind: str) -> dict[str, list[int]]:
        metadata = written(tmp_path / kind, tm.bpe_document(kind))
        prefix = "phiggml.tokenizer."
        return {
            key.removeprefix(prefix): value.tolist()
            for key, value in metadata.items()
            if key.startswith(prefix)
        }

    ids = [entry["id"] for entry in tm.bpe_document("cl100k")["added_tokens"]]
    assert own("cl100k") == {"lstrip": ids, "rstrip": ids}
    assert own("gpt-2") == {}
    assert list(own("o200k")) == ["rstrip"]


def test_merges_may_be_texts_or_pairs(tmp_path: Path) -> None:
    document = tm.bpe_document("o200k")
    pairs = written(tmp_path / "pairs", document)
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    assert (
        written(tmp_path / "texts", document)["tokenizer.ggml.merges"]
        == (pairs["tokenizer.ggml.merges"])
    )


def test_the_last_of_equal_merges_counts(tmp_path: Path) -> None:
    document = tm.bpe_document("gpt-2")
    merges = document["model"]["merges"]
    document["model"]["merges"] = [*merges, merges[0]]
    found = written(tmp_path, document)["tokenizer.ggml.merges"]
    assert found == [" ".join(pair) for pair in [*merges[1:], merges[0]]]
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with tm.load(tmp_path) as model:
        for text in texts(300, seed=7):
            expected = tokenizer.encode(text, add_special_tokens=False).ids
            assert model.tokenize(text, add_special=False).tolist() == expected


def write_slow(folder: Path, document: Document, **config: Any) -> None:
    """The files of a tokenizer without tokenizer.json."""
    tm.write_bpe(folder, document, rows=ROWS)
    (folder / "tokenizer.json").unlink()
    write_json(folder / "vocab.json", document["model"]["vocab"])
    lines = ["#version: 0.2", *map(" ".join, document["model"]["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    added = {entry["content"]: entry["id"] for entry in document["added_tokens"]}
    write_json(folder / "added_tokens.json", added)
    write_json(folder / "tokenizer_config.json", config)


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "CodeGenTokenizer", "CodeGenTokenizerFast", ...])
def test_vocab_json_and_merges_txt(kind: Any, tmp_path: Path) -> None:
    document = tm.bpe_document("gpt-2")
    fast = written(tmp_path / "fast", document)
    config = {} if kind is ... else {"tokenizer_class": kind}
    write_slow(tmp_path / "slow", document, **config)
    slow = metadata_of(tmp_path / "slow")
    for key in ("tokens", "merges", "pre", "model"):
        assert slow[f"tokenizer.ggml.{key}"] == fast[f"tokenizer.ggml.{key}"], key
    types = [metadata["tokenizer.ggml.token_type"].tolist() for metadata in (slow, fast)]
    assert types[0] == types[1]


def test_tokenizer_json_comes_before_the_other_two(tmp_path: Path) -> None:
    document = tm.bpe_document("cl100k")
    tm.write_bpe(tmp_path, document, rows=ROWS)
    (tmp_path / "vocab.json").write_bytes(b"no JSON")
    (tmp_path / "merges.txt").write_bytes(b"\xff")
    assert metadata_of(tmp_path)["tokenizer.ggml.pre"] == "dbrx"


def test_tokenizer_model_is_not_read_beside_a_byte_level_tokenizer(tmp_path: Path) -> None:
    tm.write_bpe(tmp_path, tm.bpe_document("cl100k"), rows=ROWS)
    (tmp_path / "tokenizer.model").write_bytes(b"tiktoken's, not sentencepiece's")
    assert metadata_of(tmp_path)["tokenizer.ggml.model"] == "gpt2"


def test_later_files_lay_their_added_tokens_over_earlier_ones(tmp_path: Path) -> None:
    document = tm.bpe_document("o200k")
    first = document["added_tokens"][0]["id"]
    free = first + len(document["added_tokens"])
    entry = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    document["added_tokens"].append({"id": free + 2, "content": "<fast>", "special": True, **entry})
    tm.write_bpe(tmp_path, document, rows=ROWS)
    added = {f"<added {i}>": free + i for i in range(3)}
    write_json(tmp_path / "added_tokens.json", added)
    decoder = {
        str(free + i): {"content": f"<config {i}>", "special": False, **entry} for i in (1, 2)
    }
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    metadata = metadata_of(tmp_path)
    shown = [metadata["tokenizer.ggml.tokens"][free + i] for i in range(3)]
    assert shown == ["<added 0>", "<config 1>", "<fast>"]
    types = metadata["tokenizer.ggml.token_type"][free : free + 3].tolist()
    assert types == [USER_DEFINED, USER_DEFINED, CONTROL]


def test_a_name_that_says_phi_3_is_spelt_otherwise(tmp_path: Path) -> None:
    # llama.cpp would look for sentencepiece's tokens, and not find them.
    folder = tm.write_bpe(tmp_path / "phi-3-bytes", tm.bpe_document("o200k"), rows=ROWS)
    assert metadata_of(folder)["general.name"] == "Phi 3 Bytes"
    tm.load(folder).close()
    other = tm.write_bpe(tmp_path / "phi-4-mini", tm.bpe_document("o200k"), rows=ROWS)
    assert metadata_of(other)["general.name"] == "Phi 4 Mini"


def test_generation_ends_where_the_files_say(tmp_path: Path) -> None:
    document = tm.bpe_document("o200k")
    ids = {entry["content"]: entry["id"] for entry in document["added_tokens"]}
    tm.write_bpe(tmp_path, document, rows=ROWS)
    ends = ["<|endoftext|>", "<|end|>", "<|user|>", "<|tag|>"]
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [ids[e] for e in ends]})
    metadata = metadata_of(tmp_path)
    assert metadata["tokenizer.ggml.eos_token_id"] == ids["<|endoftext|>"]
    assert metadata["tokenizer.ggml.eom_token_id"] == ids["<|user|>"]
    assert metadata["tokenizer.ggml.eot_token_id"] == ids["<|tag|>"]
    with tm.load(tmp_path) as model:
        is_end = model._open().is_end_of_generation
        assert {token for token in ids if is_end(ids[token])} == set(ends)


def without_end(folder: Path, document: Document) -> dict[str, Any]:
    tm.write_bpe(folder, document, rows=ROWS)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    del config["eos_token_id"]
    write_json(folder / "config.json", config)
    return metadata_of(folder)


def test_some_token_ends_generation(tmp_path: Path) -> None:
    document = tm.bpe_document("gpt-2")
    end = document["added_tokens"][0]["id"]
    found = without_end(tmp_path / "a", document)
    assert found["tokenizer.ggml.eos_token_id"] == end
    document["added_tokens"][0]["content"] = "<stop>"
    with pytest.raises(pg.FormatError, match="names no eos_token_id"):
        without_end(tmp_path / "b", document)


def split(document: Document) -> Document:
    found: Document = document["pre_tokenizer"]["pretokenizers"][0]
    return found


LOWER = "'s|'t|'re|'ve|'m|'ll|'d"
GPT2_TAIL = r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = tm.reference_tokenizers.CL100K_SPLIT
TIKTOKEN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
SPELLINGS = {
    "cl100k": (CL100K, "dbrx"),
    "tiktoken's": (TIKTOKEN, "dbrx"),
    "possessive": (TIKTOKEN.replace(r"?+\p{L}+", r"?+\p{L}++").removesuffix("+"), "dbrx"),
    "single digits": (TIKTOKEN.replace(r"\p{N}{1,3}", r"\p{N}"), "qwen2"),
    "GPT-2's": (LOWER + GPT2_TAIL, "gpt-2"),
    "GPT-2's in tiktoken": ("'(?:[sdmt]|ll|ve|re)" + GPT2_TAIL, "gpt-2"),
    "o200k": (tm.reference_tokenizers.O200K_SPLIT, "gpt-4o"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_of_a_pattern_have_one_name(name: str, tmp_path: Path) -> None:
    pattern, pre = SPELLINGS[name]
    document = tm.bpe_document("cl100k")
    tm.set_split(document, pattern)
    assert written(tmp_path, document)["tokenizer.ggml.pre"] == pre
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with tm.load(tmp_path) as model:
        for text in texts(1200, seed=11):
            expected = tokenizer.encode(text, add_special_tokens=False).ids
            assert model.tokenize(text, add_special=False).tolist() == expected, text


@pytest.mark.parametrize("behavior", [("Removed", True), ("Isolated", False), ("Isolated", True)])
def test_manners_of_splitting_that_come_to_the_same(
    behavior: tuple[str, bool], tmp_path: Path
) -> None:
    document = tm.bpe_document("cl100k")
    split(document).update(behavior=behavior[0], invert=behavior[1])
    assert written(tmp_path, document)["tokenizer.ggml.pre"] == "dbrx"


def put(value: Any, *path: str | int) -> Change:
    def change(document: Document) -> None:
        part: Any = document
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value

    return change


PRE = ("pre_tokenizer", "pretokenizers")
UNSUPPORTED: dict[str, tuple[Change, str]] = {
    "unknown pattern": (put({"Regex": r"\w+|\W+"}, *PRE, 0, "pattern"), r"'\\\\w\+\|\\\\W\+'"),
    "longer pattern": (put({"Regex": CL100K + "|x"}, *PRE, 0, "pattern"), "is unknown"),
    "a text": (put({"String": " "}, *PRE, 0, "pattern"), "splits at"),
    "no pattern": (put(None, *PRE, 0, "pattern"), "splits at"),
    "another manner": (put("MergedWithNext", *PRE, 0, "behavior"), "MergedWithNext"),
    "digits first": (put({"type": "Digits"}, *PRE, 0), "begins with 'Digits'"),
    "a number": (put(7, *PRE, 0), "begins with '7'"),
    "split twice": (put(True, *PRE, 1, "use_regex"), "splits 2 times"),
    "a space in front": (put(True, *PRE, 1, "add_prefix_space"), "in front of texts"),
    "nothing after": (put([{"type": "ByteLevel"}, {"type": "Split"}], *PRE), "end with ByteLevel"),
    "NFC": (put({"type": "NFC"}, "normalizer"), "'NFC'"),
    "NFC in a sequence": (
        put({"type": "Sequence", "normalizers": [{"type": "NFC"}]}, "normalizer"),
        "'NFC'",
    ),
    "a prefix": (put("##", "model", "continuing_subword_prefix"), "continuing_subword_prefix"),
    "a suffix": (put("</w>", "model", "end_of_word_suffix"), "end_of_word_suffix"),
    "dropout": (put(0.1, "model", "dropout"), "dropout"),
    "no BPE": (put("Unigram", "model", "type"), "no other kinds"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_llama_cpp_cannot_do_is_refused(name: str, tmp_path: Path) -> None:
    change, word = UNSUPPORTED[name]
    document = tm.bpe_document("cl100k")
    change(document)
    with pytest.raises(pg.UnsupportedError, match=word) as caught:
        written(tmp_path, document)
    if "pattern" in name:
        assert "gpt-2, dbrx, qwen2, gpt-4o, llama-bpe" in str(caught.value)


def test_ignored_merges_need_a_name_for_that(tmp_path: Path) -> None:
    document = tm.bpe_document("o200k")
    document["model"]["ignore_merges"] = True
    with pytest.raises(pg.UnsupportedError, match=r"ignores merges.*'gpt-4o'"):
        written(tmp_path, document)


def test_an_empty_sequence_normalizes_nothing(tmp_path: Path) -> None:
    document = tm.bpe_document("o200k")
    document["normalizer"] = {"type": "Sequence", "normalizers": []}
    assert written(tmp_path, document)["tokenizer.ggml.pre"] == "gpt-4o"


def test_an_unknown_class_without_tokenizer_json_is_refused(tmp_path: Path) -> None:
    write_slow(tmp_path, tm.bpe_document("gpt-2"), tokenizer_class="Qwen2Tokenizer")
    with pytest.raises(pg.UnsupportedError, match="'Qwen2Tokenizer' splits text is unknown"):
        metadata_of(tmp_path)


def token(name: str, token_id: Any) -> Change:
    return lambda document: document["model"]["vocab"].update({name: token_id})


def merge(value: Any) -> Change:
    return lambda document: document["model"]["merges"].append(value)


def drop(name: str) -> Change:
    return lambda document: document["model"]["vocab"].pop(name)


HOSTILE: dict[str, tuple[Change, str]] = {
    "model a list": (put([], "model"), "model must be an object"),
    "vocab a list": (put([], "model", "vocab"), "model.vocab must be an object"),
    "vocab absent": (put(None, "model", "vocab"), "model.vocab must be an object"),
    "merges an object": (put({}, "model", "merges"), "model.merges must be a list"),
    "id a fraction": (token("x1", 1590.0), "its id 1590.0 must be an integer"),
    "id true": (token("x1", True), "its id True must be"),
    "id a text": (token("x1", "7"), "its id '7' must be"),
    "id negative": (token("x1", -1), "its id -1 must be"),
    "id huge": (token("x1", 10**30), "beyond the 1600 rows"),
    "id beyond": (token("x1", ROWS), "its id 1600 is beyond the 1600 rows"),
    "id twice": (token("x1", 5), "have the same id 5"),
    "token a lone surrogate": (token("\ud800", 1590), "must be UTF-8"),
    "token empty": (token("", 1590), "not empty"),
    "token of an added one": (token("<|im_end|>", 1590), r"'<\|im_end\|>' twice"),
    "byte absent": (drop("Ġ"), "lacks tokens for 1 bytes: 0x20"),
    "merge of one": (merge("a"), "'a' must be two tokens"),
    "merge of three": (merge(["a", "b", "c"]), "must be two tokens"),
    "merge of numbers": (merge([1, 2]), "must be two tokens"),
    "merge of nothing": (merge(None), "must be two tokens"),
    "merge of a surrogate": (merge(["\ud800", "a"]), "must be two tokens"),
    "merge of unknown tokens": (merge(["zzz", "a"]), "'zzz' is not in the vocabulary"),
    "merge to an unknown token": (merge("z q"), "'zq' is not in the vocabulary"),
    "added a fraction": (put(1500.5, "added_tokens", 0, "id"), "its id 1500.5"),
    "added a surrogate": (put("\udfff", "added_tokens", 0, "content"), "must be UTF-8"),
    "added a number": (put([7], "added_tokens"), "must be an object"),
    "added an object": (put({"a": 1}, "added_tokens"), "added_tokens must be a list"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tokenizer_json_is_refused(name: str, tmp_path: Path) -> None:
    change, word = HOSTILE[name]
    document = tm.bpe_document("cl100k")
    tm.write_bpe(tmp_path, document, rows=ROWS)
    change(document)
    write_json(tmp_path / "tokenizer.json", document)
    with pytest.raises(pg.FormatError, match=word) as caught:
        plan_conversion(tmp_path)
    assert caught.value.path == str(tmp_path / "tokenizer.json")


def test_all_faults_are_told_together(tmp_path: Path) -> None:
    document = tm.bpe_document("cl100k")
    tm.write_bpe(tmp_path, document, rows=ROWS)
    for name in ("id a fraction", "merge of one", "added a number"):
        HOSTILE[name][0](document)
    document["model"]["vocab"] |= {f"y{i}": -i for i in range(1, 50)}
    write_json(tmp_path / "tokenizer.json", document)
    with pytest.raises(pg.FormatError) as caught:
        plan_conversion(tmp_path)
    text = str(caught.value)
    for word in ("1590.0", "-4", "45 more of the like", "two tokens", "must be an object"):
        assert word in text
    assert "-5 must" not in text


def test_bad_vocab_json_and_merges_txt(tmp_path: Path) -> None:
    write_slow(tmp_path, tm.bpe_document("gpt-2"))
    (tmp_path / "merges.txt").write_bytes(b"#version: 0.2\na b c\n\xff \xfe\n")
    vocabulary = json.loads((tmp_path / "vocab.json").read_text("utf-8"))
    write_json(tmp_path / "vocab.json", vocabulary | {"x1": 2.5})
    with pytest.raises(pg.FormatError) as caught:
        plan_conversion(tmp_path)
    for word in ("vocab.json: token 'x1': its id 2.5", "merges.txt: merge 0: 'a b c'", "merge 1"):
        assert word in str(caught.value)


def nested(depth: int) -> bytes:
    return b'{"pre_tokenizer": {"type": "ByteLevel"}, "model": ' + b"[" * depth


def wide(count: int) -> bytes:
    """A vocabulary far beyond the embedding, with merges of nothing in it."""
    tokens = ",".join(f'"t{i}":{i}' for i in range(count))
    merges = ",".join(f'"u{i} v{i}"' for i in range(count))
    head = '{"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},"model":'
    return f'{head}{{"type":"BPE","vocab":{{{tokens}}},"merges":[{merges}]}}}}'.encode()


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: nested(100), "not valid JSON"),
        (lambda: nested(4_000_000), "nested too deep"),
        (lambda: wide(300_000), "beyond the 1600 rows"),
        (lambda: b'{"pre_tokenizer"', "not valid JSON"),
        (lambda: b'"text"', "an object is needed"),
        (lambda: b'{"a": "\xff"}', "not valid JSON"),
    ],
)
def test_a_tokenizer_json_that_is_large_or_none(
    make: Callable[[], bytes], word: str, tmp_path: Path
) -> None:
    tm.write_bpe(tmp_path, tm.bpe_document("gpt-2"), rows=ROWS)
    (tmp_path / "tokenizer.json").write_bytes(make())
    begin = time.process_time()
    with pytest.raises(pg.FormatError, match=word) as caught:
        plan_conversion(tmp_path)
    assert time.process_time() - begin < 20
    assert caught.value.path == str(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt"])
def test_files_of_100_mb_are_not_read(name: str, tmp_path: Path) -> None:
    if name == "tokenizer.json":
        tm.write_bpe(tmp_path, tm.bpe_document("gpt-2"), rows=ROWS)
    else:
        write_slow(tmp_path, tm.bpe_document("gpt-2"))
    os.truncate(tmp_path / name, 100 << 20)
    with pytest.raises(pg.FormatError, match="may hold 67108864"):
        plan_conversion(tmp_path)


def test_rows_without_tokens_are_unused(tmp_path: Path) -> None:
    document = tm.bpe_document("o200k")
    vocabulary = document["model"]["vocab"]
    gone = [entry for entry in document["model"]["merges"] if vocabulary["".join(entry)] == 900]
    assert len(gone) == 1
    removed = "".join(gone[0])
    used = [pair for pair in document["model"]["merges"] if removed in pair or pair in gone]
    document["model"]["merges"] = [p for p in document["model"]["merges"] if p not in used]
    del vocabulary[removed]
    metadata = written(tmp_path, document)
    assert metadata["tokenizer.ggml.tokens"][900] == "[PAD900]"
    assert metadata["tokenizer.ggml.token_type"][900] == UNUSED
    tm.load(tmp_path).close()
