"""The tokenizer of an export, against sentencepiece and the files it was converted from."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

import checkpoints
import phiggml as pg
from checkpoints import MARKER_IDS, PIECES, write_json
from exports import DATA, KINDS, NANO, changed, json_of
from phiggml.conversion.model_card import card_head, read_model_card
from phiggml.conversion.sentencepiece import (
    SentencePieceModel,
    encode_sentencepiece,
    read_sentencepiece,
)

KEY = "tokenizer.ggml."
TEXTS = (
    "Hello world",
    " leading and  double  spaces ",
    "lines\nand\ttabs\r\n",
    "<|user|>\nWhat is a scale?<|end|>\n<|assistant|>",
    "</s><s><unk> <0x41> [PAD301]",
    "héllo → ü 漢字 😀\x00\x7f",
    "1234567890 3.14",
    "",
    " ",
    "ababaab a b",
)


def exported(checkpoint: Path, folder: Path) -> Path:
    pg.convert(checkpoint, folder / "a.gguf", "F16")
    pg.export_checkpoint(folder / "a.gguf", folder / "out")
    return folder / "out"


def oracle(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize("name", [*KINDS, "phi3-nano"])
def test_sentencepiece_tokenizes_as_with_the_original(name: str, tmp_path: Path) -> None:
    folder = NANO if name == NANO.name else DATA / name
    first, second = oracle(folder), oracle(exported(folder, tmp_path))
    texts = [*TEXTS, *(NANO / "heldout.txt").read_text("utf-8").splitlines()[:50]]
    for text in texts:
        assert second.encode(text) == first.encode(text), text
        assert second.decode(second.encode(text)) == first.decode(first.encode(text))
    for ids in ("bos_id", "eos_id", "unk_id", "pad_id", "vocab_size"):
        assert getattr(second, ids)() == getattr(first, ids)(), ids
    for i in range(first.vocab_size()):
        for asked in ("IdToPiece", "IsControl", "IsUnknown", "IsByte", "IsUnused"):
            assert getattr(second, asked)(i) == getattr(first, asked)(i), (asked, i)
    # Control pieces are never compared by their scores; GGUF holds those of the others.
    assert [second.GetScore(i) for i in range(3, first.vocab_size())] == [
        first.GetScore(i) for i in range(3, first.vocab_size())
    ]


def test_tokenizer_json_is_the_one_that_the_tokenizers_library_wrote(tmp_path: Path) -> None:
    assert json_of(exported(NANO, tmp_path) / "tokenizer.json") == json_of(NANO / "tokenizer.json")
    for name in ("special_tokens_map.json", "added_tokens.json"):
        assert json_of(tmp_path / "out" / name) == json_of(NANO / name)


def apply_merges(text: str, fast: dict[str, Any]) -> list[int]:
    """What a reader of tokenizer.json does with a text without added tokens, step by step."""
    for step in fast["normalizer"]["normalizers"]:
        if step["type"] == "Prepend":
            text = step["prepend"] + text if text else text
        else:
            text = text.replace(step["pattern"]["String"], step["content"])
    vocabulary = fast["model"]["vocab"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(fast["model"]["merges"])}
    parts = list(text)
    while pairs := [(ranks[p], i) for i, p in enumerate(itertools.pairwise(parts)) if p in ranks]:
        i = min(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    ids: list[int] = []
    for part in parts:
        found = [part] if part in vocabulary else [f"<0x{b:02X}>" for b in part.encode()]
        ids += (vocabulary[name] for name in found)
    return ids


@pytest.mark.parametrize("name", KINDS)
def test_tokenizer_json_does_what_sentencepiece_does(name: str, tmp_path: Path) -> None:
    out = exported(DATA / name, tmp_path)
    fast, model = json_of(out / "tokenizer.json"), oracle(out)
    for text in [*TEXTS, *(NANO / "heldout.txt").read_text("utf-8").lower().splitlines()[:20]]:
        if "<" not in text:
            assert apply_merges(text, fast) == model.encode(text), text


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def tokenizer(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: checkpoints.write_tokenizer(folder, **changes)


def model(*pieces: tuple[str, float, int], dummy_prefix: bool = True) -> Callable[[Path], None]:
    """A tokenizer.model with other pieces at the end."""
    data = checkpoints.sentencepiece_model(
        [*PIECES[: len(PIECES) - len(pieces)], *pieces], dummy_prefix=dummy_prefix
    )
    return lambda folder: (folder / "tokenizer.model").write_bytes(data) and None


def added(**tokens: int) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / "added_tokens.json", {**MARKER_IDS, **tokens})


DECODER = checkpoints.tokenizer_config()["added_tokens_decoder"]
KEPT = {i: {**entry, "rstrip": False} for i, entry in DECODER.items()}
DEFINED = {**DECODER, "263": checkpoints.added_token("<user>", special=False)}
TEMPLATES = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
TOKENIZERS: dict[str, Callable[[Path], None]] = {
    "as it is": tokenizer(),
    "no added tokens' flags": drop("tokenizer_config.json"),
    "no generation": drop("generation_config.json"),
    "white space stays": tokenizer(added_tokens_decoder=KEPT),
    "bos": tokenizer(add_bos_token=True, add_eos_token=True),
    "nobody says": tokenizer(add_bos_token=..., add_eos_token=...),
    "named templates": tokenizer(chat_template=TEMPLATES),
    "no template": tokenizer(chat_template=...),
    "no padding": tokenizer(pad_token=...),
    "mask": tokenizer(mask_token="<|placeholder1|>", sep_token="</s>"),
    "no space in front": model(dummy_prefix=False),
    "unused piece": model(("x", -3.0, 5)),
    "unused piece of an added one's name": model(("[PAD263]", -3.0, 5)),
    "user-defined piece": model(("<user>", 0.0, 4), ("ba", -9.0, 1)),
    "control piece": model(("<user>", 0.0, 3)),
    "a hole among added tokens": added(gap=280),
    "all rows": added(**{f"<{i}>": i for i in range(270, checkpoints.ROWS)}),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_tokenizer_comes_back(name: str, tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "phi-3")
    TOKENIZERS[name](tmp_path / "phi-3")
    out = exported(tmp_path / "phi-3", tmp_path)
    oracle(out)
    pg.convert(out, tmp_path / "b.gguf", "F16")
    with pg.GGUFFile(tmp_path / "a.gguf") as a, pg.GGUFFile(tmp_path / "b.gguf") as b:
        assert list(a.metadata) == list(b.metadata)
        for key in a.metadata:
            one, other = a.metadata.exact(key), b.metadata.exact(key)
            assert one.type == other.type, key
            if "user-defined" in name and key == KEY + "scores":
                # Such a piece becomes an added token, which is matched whole as it is.
                assert np.flatnonzero(one.value != other.value).tolist() == [262]
            else:
                assert np.array_equal(np.asarray(one.value), np.asarray(other.value)), key


def test_added_tokens_have_ids_without_holes_in_tokenizer_json(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "m")
    added(gap=280)(tmp_path / "m")
    fast = json_of(exported(tmp_path / "m", tmp_path) / "tokenizer.json")
    assert sorted(fast["model"]["vocab"].values()) == list(range(281))
    assert [entry["id"] for entry in fast["added_tokens"]] == [0, 1, 2, *range(264, 270), 280]


def test_added_tokens_of_another_converter_are_told_by_their_types(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "m")
    pg.convert(tmp_path / "m", tmp_path / "a.gguf", "F16")
    with pg.GGUFFile(tmp_path / "a.gguf") as file:
        scores = np.where(file.metadata[KEY + "scores"] == -1000, 0, file.metadata[KEY + "scores"])
    path = changed(tmp_path / "a.gguf", tmp_path / "b.gguf", {KEY + "scores": scores})
    pg.export_checkpoint(path, tmp_path / "out")
    assert json_of(tmp_path / "out" / "added_tokens.json") == MARKER_IDS
    assert oracle(tmp_path / "out").vocab_size() == len(PIECES)


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.dictionaries(WORDS, st.tuples(FLOATS, st.sampled_from([1, 3, 4, 5]))), st.booleans())
def test_what_is_encoded_is_read_again(entries: dict[str, tuple[float, int]], prefix: bool) -> None:
    entries = {"\ue000 unknown": (0.0, 2), **entries}
    model = SentencePieceModel(
        pieces=tuple(entries),
        scores=tuple(score for score, _ in entries.values()),
        types=tuple(kind for _, kind in entries.values()),
        algorithm=2,
        add_dummy_prefix=prefix,
        bos_id=-1,
        eos_id=len(entries) - 1,
        unk_id=0,
        pad_id=-1,
    )
    with pytest.MonkeyPatch.context() as patch:
        encoded = encode_sentencepiece(model)
        patch.setattr("phiggml.conversion.sentencepiece.read_bytes", lambda path, limit: encoded)
        assert read_sentencepiece(Path("tokenizer.model")) == model


@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.text() | st.lists(st.text()))
)
def test_a_card_reads_as_it_was_written(values: dict[str, str | list[str]]) -> None:
    head, left_out = card_head(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "is_file", lambda path: True)
        patch.setattr(Path, "read_text", lambda path, **settings: head)
        patch.setattr("phiggml.conversion.model_card.regular_size", lambda path: len(head))
        found = read_model_card(Path("README.md"))
    assert found == {key: value for key, value in values.items() if key not in left_out}
    for key in left_out:
        value = values[key]
        awkward = [value] if isinstance(value, str) else value
        assert not awkward or any(
            not t or not t.isprintable() or ("'" in t and ('"' in t or "\\" in t)) for t in awkward
        )


@pytest.mark.parametrize("value", [7, 1.5, True, "text", [1, 2], np.array([1.5])])
def test_values_of_other_types(value: Any, tmp_path: Path) -> None:
    """Faults of the tokenizer's kind are told; what is no list of tags or languages is left out."""
    source = tmp_path / "a.gguf"
    pg.convert(DATA / KINDS[0], source, "F16")
    tags = dict.fromkeys(("general.tags", "general.languages"), value)
    pg.export_checkpoint(changed(source, tmp_path / "b.gguf", tags), tmp_path / "out")
    head = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "tags:" not in head
    assert "language:" not in head
    kind = changed(source, tmp_path / "b.gguf", {f"{KEY}model": value})
    expected = pg.UnsupportedError if value == "text" else pg.FormatError
    with pytest.raises(expected, match="tokenizer"):
        pg.export_checkpoint(kind, tmp_path / "out2")
