"""tokenizer.model and its companions against the sentencepiece package and stated rules."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

import checkpoints
import phiggml as pg
from checkpoints import BYTE, CONTROL, MARKER_IDS, NORMAL, PIECES, ROWS, UNKNOWN, write_json
from phiggml.conversion import plan_conversion
from phiggml.conversion.sentencepiece import read_sentencepiece
from phiggml.errors import FormatError, UnsupportedError

DATA = Path(__file__).parent / "data"
NANO = Path(__file__).parent.parent / "examples" / "phi3-nano"
KINDS = ("phi3-mini-tiny", "phi3.5-mini-tiny", "phi3-medium-tiny")
USER_DEFINED, UNUSED = 4, 5


def metadata_of(folder: Path) -> dict[str, Any]:
    return dict(plan_conversion(folder).metadata)


def oracle(path: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def oracle_type(model: sentencepiece.SentencePieceProcessor, i: int) -> int:
    if model.IsUnknown(i):
        return UNKNOWN
    if model.IsControl(i):
        return CONTROL
    if model.IsUnused(i):
        return UNUSED
    return BYTE if model.IsByte(i) else NORMAL


@pytest.mark.parametrize("kind", [*KINDS, NANO, "ours"])
def test_pieces_scores_and_types_are_sentencepieces_own(kind: str, tmp_path: Path) -> None:
    path = DATA / kind / "tokenizer.model"
    if kind == "ours":
        path = tmp_path / "tokenizer.model"
        path.write_bytes(checkpoints.sentencepiece_model())
    model, ours = oracle(path), read_sentencepiece(path)
    ids = range(model.vocab_size())
    assert list(ours.pieces) == [model.IdToPiece(i) for i in ids]
    assert list(ours.scores) == [model.GetScore(i) for i in ids]
    assert list(ours.types) == [oracle_type(model, i) for i in ids]
    assert (ours.bos_id, ours.eos_id) == (model.bos_id(), model.eos_id())
    assert (ours.unk_id, ours.pad_id) == (model.unk_id(), model.pad_id())
    assert ours.add_dummy_prefix is True


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_lie_over_the_pieces(kind: str) -> None:
    metadata = metadata_of(DATA / kind)
    model = oracle(DATA / kind / "tokenizer.model")
    config = json.loads((DATA / kind / "tokenizer_config.json").read_text())
    decoder = {int(i): token for i, token in config["added_tokens_decoder"].items()}
    rows = json.loads((DATA / kind / "config.json").read_text())["vocab_size"]
    tokens = metadata["tokenizer.ggml.tokens"]
    scores, types = metadata["tokenizer.ggml.scores"], metadata["tokenizer.ggml.token_type"]
    assert len(tokens) == len(scores) == len(types) == rows
    assert (scores.dtype, types.dtype) == (np.float32, np.int32)
    for i in range(rows):
        if i in decoder:
            kind_of = CONTROL if decoder[i]["special"] else USER_DEFINED
            expected = (decoder[i]["content"], -1000.0, kind_of)
        elif i < model.vocab_size():
            expected = (model.IdToPiece(i), model.GetScore(i), oracle_type(model, i))
        else:
            expected = (f"[PAD{i}]", -10000.0, UNUSED)
        assert (tokens[i], scores[i], types[i]) == expected


def test_special_ids_and_flags(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    found = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in metadata_of(tmp_path).items()
        if key.startswith("tokenizer.ggml.") and key.endswith(("_id", "_token", "_prefix"))
    }
    assert found == {
        "bos_token_id": 1,
        "eos_token_id": MARKER_IDS["<|endoftext|>"],
        "unknown_token_id": 0,
        "padding_token_id": MARKER_IDS["<|endoftext|>"],
        # llama.cpp knows <|end|> by its text.
        "eom_token_id": MARKER_IDS["<|assistant|>"],
        "add_bos_token": False,
        "add_eos_token": False,
    }


def test_any_number_of_tokens_ends_generation(tmp_path: Path) -> None:
    """llama.cpp knows <|endoftext|> and <|end|> by their texts, and has keys for two others."""
    checkpoints.write_checkpoint(tmp_path)
    ends = [*MARKER_IDS.values(), 260, 261]
    write_json(tmp_path / "generation_config.json", {"eos_token_id": ends})
    plan = plan_conversion(tmp_path)
    metadata = dict(plan.metadata)
    known = {MARKER_IDS["<|end|>"], MARKER_IDS["<|endoftext|>"]}
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eom", "eot")]
    further = metadata["phiggml.tokenizer.end_ids"]
    assert further.dtype == np.int32
    named = [*(metadata[key] for key in keys), *further.tolist()]
    assert len(named) == len(set(named))
    assert {*named, *known} == set(ends)
    tokens = metadata["tokenizer.ggml.tokens"]
    (note,) = plan.notes
    assert all(repr(tokens[i]) in note for i in further)
    pg.convert(tmp_path, tmp_path / "model.gguf", "F16")
    pg.export_checkpoint(tmp_path / "model.gguf", tmp_path / "exported")
    generation = json.loads((tmp_path / "exported" / "generation_config.json").read_text())
    assert set(generation["eos_token_id"]) == set(ends)


def test_no_key_of_ours_where_two_suffice(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    assert "phiggml.tokenizer.end_ids" not in metadata_of(tmp_path)


def test_chat_markers_are_control_tokens_whatever_the_files_say(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    markers = {
        str(i): checkpoints.added_token(m, special=False, rstrip=True)
        for m, i in MARKER_IDS.items()
    }
    write_json(
        tmp_path / "tokenizer_config.json",
        checkpoints.tokenizer_config(added_tokens_decoder=markers),
    )
    types = metadata_of(tmp_path)["tokenizer.ggml.token_type"]
    for marker, i in MARKER_IDS.items():
        assert types[i] == (USER_DEFINED if "placeholder" in marker else CONTROL), marker


def test_without_tokenizer_config_added_tokens_json_suffices(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    for name in ("tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).unlink()
    metadata = metadata_of(tmp_path)
    assert metadata["tokenizer.ggml.tokens"][MARKER_IDS["<|user|>"]] == "<|user|>"
    assert metadata["tokenizer.ggml.token_type"][MARKER_IDS["<|end|>"]] == CONTROL
    assert metadata["tokenizer.ggml.eos_token_id"] == MARKER_IDS["<|endoftext|>"]
    assert not {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"} & metadata.keys()
    assert "tokenizer.ggml.add_bos_token" not in metadata
    assert "tokenizer.chat_template" not in metadata


def test_tokenizer_json_decides_over_the_other_two(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    write_json(
        tmp_path / "tokenizer.json",
        {
            "added_tokens": [
                {"id": MARKER_IDS["<|placeholder1|>"], **checkpoints.added_token("X")}
            ],
            "post_processor": {"type": "TemplateProcessing", "single": [bos, text]},
        },
    )
    metadata = metadata_of(tmp_path)
    assert metadata["tokenizer.ggml.tokens"][MARKER_IDS["<|placeholder1|>"]] == "X"
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.add_eos_token"] is False


PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}
FAST: dict[str, tuple[dict[str, Any], bool]] = {
    "as released": ({"normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}}, True),
    "replace alone": ({"normalizer": REPLACE, "pre_tokenizer": None}, False),
    "metaspace": ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}}, True),
    "metaspace never": ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}}, False),
}


@pytest.mark.parametrize("name", FAST)
def test_tokenizer_json_says_whether_a_space_goes_in_front(name: str, tmp_path: Path) -> None:
    fast, prefix = FAST[name]
    checkpoints.write_checkpoint(tmp_path)
    write_json(tmp_path / "tokenizer.json", fast)
    metadata = metadata_of(tmp_path)
    assert metadata.get("tokenizer.ggml.add_space_prefix", True) is prefix


def test_a_template_of_the_text_alone_adds_no_token(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    checkpoints.write_tokenizer(tmp_path, add_bos_token=..., add_eos_token=...)
    assert "tokenizer.ggml.add_bos_token" not in metadata_of(tmp_path)
    post = {"type": "TemplateProcessing", "single": [SEQUENCE]}
    write_json(tmp_path / "tokenizer.json", {"post_processor": post})
    assert metadata_of(tmp_path)["tokenizer.ggml.add_bos_token"] is False


def test_a_model_without_dummy_prefix_says_so(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    model = checkpoints.sentencepiece_model(dummy_prefix=False)
    (tmp_path / "tokenizer.model").write_bytes(model)
    assert metadata_of(tmp_path)["tokenizer.ggml.add_space_prefix"] is False


def test_user_defined_pieces_keep_their_type(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    pieces = [*PIECES[:-1], ("<user>", 0.0, USER_DEFINED)]
    (tmp_path / "tokenizer.model").write_bytes(checkpoints.sentencepiece_model(pieces))
    assert metadata_of(tmp_path)["tokenizer.ggml.token_type"][len(PIECES) - 1] == USER_DEFINED


def test_an_added_token_beyond_the_embedding_is_left_out_and_noted(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    write_json(tmp_path / "added_tokens.json", {**MARKER_IDS, "<far>": ROWS})
    plan = plan_conversion(tmp_path)
    assert "<far>" not in plan.metadata["tokenizer.ggml.tokens"]
    assert any("'<far>'" in note for note in plan.notes)
    assert "'<far>'" in str(plan)


NAMED = [{"name": "default", "template": "D"}, {"name": "tool use", "template": "T"}]
TEMPLATES: dict[str, tuple[Any, dict[str, str], dict[str, Any]]] = {
    "inline": ("I", {}, {"": "I"}),
    "named": (NAMED, {}, {"": "D", ".tool_use": "T", "s": ["tool_use"]}),
    "none": (..., {}, {}),
    "file": (..., {"chat_template.jinja": "F"}, {"": "F"}),
    "file wins": ("I", {"chat_template.jinja": "F"}, {"": "F"}),
    "json": (..., {"chat_template.json": '{"chat_template": "J"}'}, {"": "J"}),
    "more files": (
        ...,
        {"chat_template.jinja": "F", "additional_chat_templates/rag.jinja": "R"},
        {"": "F", ".rag": "R", "s": ["rag"]},
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates(name: str, tmp_path: Path) -> None:
    inline, files, expected = TEMPLATES[name]
    checkpoints.write_checkpoint(tmp_path)
    checkpoints.write_tokenizer(tmp_path, chat_template=inline)
    (tmp_path / "additional_chat_templates").mkdir()
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    key = "tokenizer.chat_template"
    found = {k.removeprefix(key): v for k, v in metadata_of(tmp_path).items() if k.startswith(key)}
    assert found == expected


def put(name: str, value: Any) -> Any:
    return lambda folder: write_json(folder / name, value)


def raw(name: str, data: bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(data)


def decoder(**entries: Any) -> Any:
    return put("tokenizer_config.json", checkpoints.tokenizer_config(added_tokens_decoder=entries))


BAD_COMPANIONS: dict[str, tuple[Any, str]] = {
    "added_tokens list": (put("added_tokens.json", []), "an object is needed"),
    "added_tokens text id": (put("added_tokens.json", {"x": "7"}), "its id '7'"),
    "added_tokens negative": (put("added_tokens.json", {"x": -1}), "its id -1"),
    "added_tokens true": (put("added_tokens.json", {"x": True}), "its id True"),
    "added_tokens surrogate": (raw("added_tokens.json", b'{"\\ud800": 270}'), "must be UTF-8"),
    "added_tokens empty": (put("added_tokens.json", {"": 270}), "must be UTF-8"),
    "decoder list": (put("tokenizer_config.json", {"added_tokens_decoder": [1]}), "an object"),
    "decoder entry": (decoder(**{"270": "x"}), "'?270'?.* must be an object"),
    "decoder no content": (decoder(**{"270": {}}), "its text None"),
    "decoder bad id": (decoder(**{"2.5": {"content": "x"}}), "its id '2.5'"),
    "decoder twice": (decoder(**{"270": {"content": "ab"}}), "'ab' twice, as 259 and 270"),
    "fast list": (put("tokenizer.json", {"added_tokens": {"a": 1}}), "must be a list"),
    "fast entry": (put("tokenizer.json", {"added_tokens": [7]}), "must be an object"),
    "template number": (put("tokenizer_config.json", {"chat_template": 3}), "chat_template"),
    "template list": (put("tokenizer_config.json", {"chat_template": [{}]}), "chat_template"),
    "template surrogate": (
        raw("tokenizer_config.json", b'{"chat_template": "\\ud800"}'),
        "chat_template",
    ),
    "jinja not UTF-8": (raw("chat_template.jinja", b"ab\xff"), "byte 2: is not UTF-8"),
    "generation list": (put("generation_config.json", []), "an object is needed"),
    "generation id": (put("generation_config.json", {"eos_token_id": [10**9]}), "no token's id"),
    "generation text": (put("generation_config.json", {"eos_token_id": ["x"]}), "no token's id"),
}


@pytest.mark.parametrize("name", BAD_COMPANIONS)
def test_bad_companions_of_the_tokenizer_are_refused(name: str, tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    break_it, word = BAD_COMPANIONS[name]
    break_it(tmp_path)
    with pytest.raises(FormatError, match=word):
        plan_conversion(tmp_path)


def with_piece(text: str | bytes, score: float = 0.0, kind: int = NORMAL) -> bytes:
    return checkpoints.sentencepiece_model([*PIECES, (text, score, kind)])


HOSTILE_MODELS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "holds no pieces"),
    "text": (b"#version: 0.2\nthe tokenizer\n", "A sentencepiece model is needed"),
    "zip": (b"PK\x03\x04" + bytes(30), "A sentencepiece model is needed"),
    "endless number": (b"\xff" * 20, "longer than 10 bytes"),
    "cut number": (b"\x80", "cut off"),
    "length 2^63": (b"\x0a" + checkpoints.varint(2**63), "reaches beyond"),
    "field 0": (b"\x02\x00", "field number 0"),
    "group": (b"\x0b\x0c", "wire type 3"),
    "piece a number": (checkpoints.proto_int(1, 5), "wire type 0 instead of 2"),
    "score a string": (checkpoints.proto_bytes(1, b"\x0a\x01a\x12\x00"), "wire type 2"),
    "type a float": (checkpoints.proto_bytes(1, b"\x0a\x01a\x1d" + bytes(4)), "wire type 5"),
    "not UTF-8": (with_piece(b"\xff"), "not UTF-8"),
    "piece empty": (with_piece(""), "is empty"),
    "piece twice": (with_piece("ab"), "'ab' occurs twice"),
    "score NaN": (with_piece("x", float("nan")), "is nan"),
    "score inf": (with_piece("x", float("inf")), "is inf"),
    "type 0": (with_piece("x", 0.0, 0), "types are 1 to 6"),
    "type 7": (with_piece("x", 0.0, 7), "types are 1 to 6"),
    "more pieces than rows": (
        checkpoints.sentencepiece_model([*PIECES, *((f"x{i}", 0.0, 1) for i in range(ROWS))]),
        "embedding has only 288 rows",
    ),
}


@pytest.mark.parametrize("name", HOSTILE_MODELS)
def test_a_hostile_tokenizer_model_is_refused(name: str, tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    data, word = HOSTILE_MODELS[name]
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(FormatError, match=word) as caught:
        plan_conversion(tmp_path)
    assert caught.value.path == str(tmp_path / "tokenizer.model")


def test_every_truncation_and_flip_ends_in_a_model_or_a_format_error(tmp_path: Path) -> None:
    pieces = [PIECES[0], PIECES[1], PIECES[100], PIECES[-4]]
    whole = checkpoints.sentencepiece_model(pieces)
    path = tmp_path / "tokenizer.model"
    refused = 0
    broken = [whole[:n] for n in range(len(whole))]
    for at in range(len(whole)):
        for flip in (0x01, 0x80, 0xFF):
            broken.append(whole[:at] + struct.pack("B", whole[at] ^ flip) + whole[at + 1 :])
    for data in broken:
        path.write_bytes(data)
        try:
            model = read_sentencepiece(path)
        except FormatError as error:
            refused += 1
            assert error.offset is not None and 0 <= error.offset <= len(data)
        else:
            assert len(model.pieces) == len(model.scores) == len(model.types) > 0
    assert refused > len(broken) // 2


def test_a_tokenizer_json_of_100_mb_is_not_read(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").touch()
    os.truncate(tmp_path / "tokenizer.json", 100 << 20)
    with pytest.raises(FormatError, match="may hold 67108864"):
        plan_conversion(tmp_path)


def test_other_tokenizers_are_unsupported(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(checkpoints.sentencepiece_model(algorithm=1))
    with pytest.raises(UnsupportedError, match="BPE"):
        plan_conversion(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(UnsupportedError, match="no other kinds"):
        plan_conversion(tmp_path)
