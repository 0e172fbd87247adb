"""Token ids and texts against the tokenizers library and sentencepiece, on strings from a seed."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers

import checkpoints
import phiggml as pg
import tokenizer_models as tm
from tokenizer_texts import texts

BPE_KINDS = ("gpt-2", "cl100k", "o200k", "qwen2", "llama-bpe")
DATA = Path(__file__).parent / "data"
COUNT = 2000
NORMAL, UNUSED = 1, 5
EVERY = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)

Encode = Callable[[str], list[int]]


def assert_same_ids(strings: list[str], ours: Encode, theirs: Encode) -> None:
    wrong = [text for text in strings if ours(text) != theirs(text)]
    shown = [(text[:60], ours(text)[:40], theirs(text)[:40]) for text in wrong[:3]]
    assert not wrong, f"{len(wrong)} of {len(strings)}: {shown}"


def ours_of(model: pg.Model, *, parse_special: bool = True) -> Encode:
    def encode(text: str) -> list[int]:
        ids = model.tokenize(text, add_special=False, parse_special=parse_special)
        found: list[int] = ids.tolist()
        return found

    return encode


def theirs_of(tokenizer: Any) -> Encode:
    def encode(text: str) -> list[int]:
        found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return found

    return encode


def invertible(strings: list[str]) -> list[str]:
    """Those without the character that stands for a space in sentencepiece's pieces."""
    return [text for text in strings if "▁" not in text]


def added_of(tokenizer: Any) -> list[str]:
    return [token.content for token in tokenizer.get_added_tokens_decoder().values()]


@pytest.fixture(scope="module", params=[*BPE_KINDS, "phi3-nano"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[pg.Model, Any]]:
    """A model, and the tokenizers library's reading of its checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "phi3-nano":
        fast = json.loads((tm.NANO / "tokenizer.json").read_text("utf-8"))
        tm.write_pieces(folder, fast)
    else:
        tm.write_bpe(folder, tm.bpe_document(request.param))
    with tm.load(folder) as model:
        yield model, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_ids_are_those_of_the_tokenizers_library(both: tuple[pg.Model, Any]) -> None:
    model, tokenizer = both
    strings = texts(COUNT, seed=1, added=added_of(tokenizer))
    assert len(strings) >= COUNT
    assert_same_ids(strings, ours_of(model), theirs_of(tokenizer))


def test_texts_are_those_of_the_tokenizers_library(both: tuple[pg.Model, Any]) -> None:
    model, tokenizer = both
    for text in texts(COUNT, seed=2, added=added_of(tokenizer)):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        expected = tokenizer.decode(ids, skip_special_tokens=False)
        assert model.detokenize(ids, special=True) == expected, text


def test_detokenize_inverts_tokenize(both: tuple[pg.Model, Any]) -> None:
    model, _ = both
    for text in invertible(texts(COUNT, seed=3)):
        assert model.detokenize(model.tokenize(text, add_special=False)) == text


def test_special_tokens_are_text_unless_asked_for(both: tuple[pg.Model, Any]) -> None:
    model, tokenizer = both
    tokenizer.encode_special_tokens = True
    try:
        # llama.cpp takes this one for special, whatever the file says, because texts end with it.
        added = [token for token in added_of(tokenizer) if token != "</s>"]
        strings = texts(COUNT, seed=4, added=added)
        assert_same_ids(strings, ours_of(model, parse_special=False), theirs_of(tokenizer))
    finally:
        tokenizer.encode_special_tokens = False


def every_character(step: int) -> Iterator[str]:
    """All characters in the neighbourhoods that splits ask about."""
    for i in range(0, len(EVERY), step):
        chars = EVERY[i : i + step]
        yield "".join(f"x{c}y{c}9{c} {c}Z{c}{c}!{c}a\u0301{c}\n" for c in chars)


@pytest.mark.slow
def test_every_character_is_split_alike(both: tuple[pg.Model, Any]) -> None:
    model, tokenizer = both
    assert_same_ids(list(every_character(512)), ours_of(model), theirs_of(tokenizer))


def test_characters_of_every_script_are_split_alike(both: tuple[pg.Model, Any]) -> None:
    model, tokenizer = both
    strings = [text for i, text in enumerate(every_character(16)) if i % 61 == 0 or i < 700]
    assert_same_ids(strings, ours_of(model), theirs_of(tokenizer))


@pytest.mark.parametrize("name", ["phi3-nano", "phi3-mini-tiny"])
def test_ids_are_sentencepieces(name: str, tmp_path: Path) -> None:
    folder = tm.NANO if name == "phi3-nano" else DATA / name
    pg.convert(folder, tmp_path / "model.gguf", "F16")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    strings = texts(COUNT, seed=5)
    with pg.Model(tmp_path / "model.gguf") as model:
        assert_same_ids(strings, ours_of(model, parse_special=False), pieces.encode)
        for text in invertible(strings):
            assert model.detokenize(pieces.encode(text)) == text


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_pieces_are_merged_as_sentencepiece_merges_them(
    seed: int, whole_words: bool, tmp_path: Path
) -> None:
    """Scores of which many are equal, and bytes for the rest.

    Pieces reach from word to word, and some are out of use; or neither.
    """
    rng = random.Random(seed)
    known = {piece for piece, _, _ in checkpoints.PIECES}
    chosen = {"".join(rng.choices("ab▁cé", k=rng.randint(1, 5))) for _ in range(160)} - known
    kinds: tuple[int, ...] = (NORMAL, NORMAL, UNUSED)
    if whole_words:
        chosen = {piece for piece in chosen if "▁" not in piece.lstrip("▁")}
        kinds = (NORMAL,)
    pieces = [*checkpoints.PIECES[:259], *((c, -rng.randint(0, 9), NORMAL) for c in "ab▁cé")]
    for piece in sorted(chosen - set("ab▁cé")):
        pieces.append((piece, -float(rng.randint(0, 9)), rng.choice(kinds)))
    # Without this sentencepiece takes white space away.
    data = checkpoints.sentencepiece_model(pieces) + checkpoints.proto_bytes(3, b"\x20\x00")
    folder = tm.write_pieces(tmp_path, None, model=data)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    strings = ["".join(rng.choices("ab cdé", k=rng.randint(1, 30))) for _ in range(400)]
    with tm.load(folder) as model:
        assert_same_ids(strings, ours_of(model), oracle.encode)


def test_ids_are_those_recorded_for_phi_3(tmp_path: Path) -> None:
    with pg.GGUFFile(tm.VECTORS) as file:
        keys = [key for key in file.metadata if key.startswith(("tokenizer.", "general.name"))]
        values = {key: file.metadata.exact(key) for key in keys}
    metadata = {k: v.value if isinstance(v.value, str) else v for k, v in values.items()}
    path = tm.with_vocabulary(tmp_path / "phi-3.gguf", metadata)
    inputs = Path(f"{tm.VECTORS}.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    outputs = Path(f"{tm.VECTORS}.out").read_text("utf-8").split("\n")
    expected = [[int(token) for token in line.split()] for line in outputs]
    with pg.Model(path) as model:
        found = [ours_of(model, parse_special=False)(text) for text in inputs]
    assert len(found) > 40
    assert found == expected[: len(found)]


ADDED = (
    "<a>",
    "<a>b",
    "ab",
    "abc",
    "bc",
    "b c",
    "  ",
    " x",
    "x ",
    "\n",
    "</a>",
    "é",
    "'s",
    "日本",
    "a",
)
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def with_random_tokens(document: dict[str, Any], seed: int) -> dict[str, Any]:
    """Other added tokens, which begin, end and lie within each other, with flags by chance."""
    rng = random.Random(seed)
    document = copy.deepcopy(document)
    known = document["model"]["vocab"]
    document["added_tokens"] = [
        entry for entry in document["added_tokens"] if entry["content"] in known
    ]
    first = max(known.values()) + 1
    chosen = [token for token in rng.sample(ADDED, 9) if token not in known]
    for i, token in enumerate(chosen):
        flags = {flag: rng.random() < 0.35 for flag in FLAGS}
        # The library panics where such a token is beside one that takes the space away.
        flags["lstrip"] &= not token[0].isspace()
        document["added_tokens"].append({"id": first + i, "content": token, **flags})
    document["added_tokens"] = document["added_tokens"] or [
        {"id": first, "content": "<x>", **dict.fromkeys(FLAGS, False)}
    ]
    return document


SCHEMES: dict[str, dict[str, Any]] = {
    "as released": {},
    "no prefix": {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    },
    **{
        f"metaspace {scheme}": {
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Metaspace",
                "replacement": "▁",
                "prepend_scheme": scheme,
                "split": False,
            },
        }
        for scheme in ("first", "always", "never")
    },
}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["gpt-2", "o200k", *SCHEMES])
def test_added_tokens_are_found_as_the_tokenizers_library_finds_them(
    kind: str, seed: int, tmp_path: Path
) -> None:
    if kind in SCHEMES:
        fast = json.loads((tm.NANO / "tokenizer.json").read_text("utf-8")) | SCHEMES[kind]
        folder = tm.write_pieces(tmp_path, with_random_tokens(fast, seed))
    else:
        folder = tm.write_bpe(tmp_path, with_random_tokens(tm.bpe_document(kind), seed))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = random.Random(seed)
    parts = (*ADDED, *ADDED, " ", "\n", "a", "_", "1", "\u3000", "▁", "hello")
    strings = ["".join(rng.choices(parts, k=rng.randint(1, 9))) for _ in range(400)]
    with tm.load(folder) as model:
        assert_same_ids(strings, ours_of(model), theirs_of(tokenizer))
        tokenizer.encode_special_tokens = True
        assert_same_ids(strings, ours_of(model, parse_special=False), theirs_of(tokenizer))


def test_lone_surrogates_are_refused(both: tuple[pg.Model, Any]) -> None:
    model, _ = both
    for text in ("\ud800", "a\udfff b", "\udc80<|end|>"):
        with pytest.raises(pg.InputError, match="lone surrogates"):
            model.tokenize(text)


def test_long_runs_take_time_that_grows_with_them(both: tuple[pg.Model, Any]) -> None:
    model, _ = both
    begin = time.process_time()
    for text in ("a", " ", "\n", "!", "漢", "A文", "9", "\u0301"):
        assert model.tokenize(text * 200_000, parse_special=True).size > 5_000
    assert time.process_time() - begin < 20
