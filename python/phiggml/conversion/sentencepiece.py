"""tokenizer.model: a bounded reader and a writer of sentencepiece's ModelProto.

Source: the field numbers of sentencepiece_model.proto (google/sentencepiece) and the protobuf wire
format: a varint key (field number << 3 | wire type), then a varint, 8 bytes, a length and that many
bytes, or 4 bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from phiggml.conversion.jsonfile import read_bytes
from phiggml.errors import FormatError

__all__ = ["FILE_LIMIT", "SentencePieceModel", "encode_sentencepiece", "read_sentencepiece"]

# Phi-3's model is 500 kB with 32,000 pieces; the largest in use holds 256,000.
FILE_LIMIT = 32 << 20
_PIECE_LIMIT = 1 << 20
_FIELD_LIMIT = 4 << 20

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BPE = 2


@dataclass(frozen=True)
class SentencePieceModel:
    """What a tokenizer.model says; `types` are 1 normal to 6 byte, as GGUF numbers them too."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    algorithm: int
    add_dummy_prefix: bool
    bos_id: int
    eos_id: int
    unk_id: int
    pad_id: int


class _Reader:
    """Reads protobuf fields of one file; every fault names the byte it lies at."""

    def __init__(self, data: bytes, path: Path) -> None:
        self.data = data
        self.path = path
        self._fields_left = _FIELD_LIMIT

    def fail(self, sentence: str, offset: int) -> NoReturn:
        raise FormatError(
            f"read tokenizer: {self.path}: byte {offset}: {sentence}. "
            "A sentencepiece model is needed.",
            path=str(self.path),
            offset=offset,
        )

    def varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                self.fail("a number is cut off", at)
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            self.fail("a number is longer than 10 bytes", at)
        return value & 0xFFFF_FFFF_FFFF_FFFF, at

    def fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (field number, wire type, start, end) of each field's value in [at, end)."""
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                self.fail(f"more than {_FIELD_LIMIT} fields", at)
            key_at = at
            key, at = self.varint(at, end)
            number, wire = key >> 3, key & 7
            if number == 0:
                self.fail("field number 0", key_at)
            start = at
            if wire == _VARINT:
                _, at = self.varint(at, end)
            elif wire == _FIXED64:
                at += 8
            elif wire == _FIXED32:
                at += 4
            elif wire == _BYTES:
                length, start = self.varint(at, end)
                at = start + length
            else:
                self.fail(f"wire type {wire} is not in use", key_at)
            if at > end:
                self.fail(f"field {number} reaches beyond the end", key_at)
            yield number, wire, start, at

    def expect(self, wire: int, found: int, what: str, offset: int) -> None:
        if wire != found:
            self.fail(f"{what} has wire type {found} instead of {wire}", offset)

    def integers(self, at: int, end: int, wanted: dict[int, int]) -> dict[int, int]:
        """Returns the varint fields whose numbers are keys of `wanted` (number -> default)."""
        result = dict(wanted)
        for number, wire, start, stop in self.fields(at, end):
            if number in wanted:
                self.expect(_VARINT, wire, f"field {number}", start)
                value, _ = self.varint(start, stop)
                result[number] = value - 2**64 if value >= 2**63 else value
        return result


def _read_piece(reader: _Reader, at: int, end: int) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL
    for number, wire, start, stop in reader.fields(at, end):
        if number == 1:
            reader.expect(_BYTES, wire, "a piece", start)
            try:
                text = reader.data[start:stop].decode("utf-8")
            except UnicodeDecodeError:
                reader.fail("a piece is not UTF-8", start)
        elif number == 2:
            reader.expect(_FIXED32, wire, "a score", start)
            score = struct.unpack_from("<f", reader.data, start)[0]
        elif number == 3:
            reader.expect(_VARINT, wire, "a type", start)
            kind, _ = reader.varint(start, stop)
    if not text:
        reader.fail("a piece is empty", at)
    if not math.isfinite(score):
        reader.fail(f"the score of {text!r} is {score}", at)
    if not NORMAL <= kind <= BYTE:
        reader.fail(f"the type of {text!r} is {kind}; types are 1 to 6", at)
    return text, score, kind


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Reads a tokenizer.model.

    Args:
        path: the file, at most 32 MiB.

    Raises:
        FormatError: it is no sentencepiece model; `offset` says at which byte that shows.

    Cost:
        One read and a Python loop over the pieces, about 0.2 s for 32,000.
    """
    reader = _Reader(read_bytes(path, FILE_LIMIT), path)
    pieces: dict[str, tuple[float, int]] = {}
    trainer = {3: 1, 40: 0, 41: 1, 42: 2, 43: -1}
    normalizer = {3: 1}
    for number, wire, start, stop in reader.fields(0, len(reader.data)):
        if number in (1, 2, 3):
            reader.expect(_BYTES, wire, f"field {number}", start)
        if number == 1:
            text, score, kind = _read_piece(reader, start, stop)
            if text in pieces:
                reader.fail(f"the piece {text!r} occurs twice", start)
            if len(pieces) == _PIECE_LIMIT:
                reader.fail(f"more than {_PIECE_LIMIT} pieces", start)
            pieces[text] = (score, kind)
        elif number == 2:
            trainer = reader.integers(start, stop, trainer)
        elif number == 3:
            normalizer = reader.integers(start, stop, normalizer)
    if not pieces:
        reader.fail("it holds no pieces", 0)
    return SentencePieceModel(
        pieces=tuple(pieces),
        scores=tuple(score for score, _ in pieces.values()),
        types=tuple(kind for _, kind in pieces.values()),
        algorithm=trainer[3],
        add_dummy_prefix=bool(normalizer[3]),
        unk_id=trainer[40],
        bos_id=trainer[41],
        eos_id=trainer[42],
        pad_id=trainer[43],
    )


def _varint(value: int) -> bytes:
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number_field(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _piece_field(text: str, score: float, kind: int) -> bytes:
    body = _bytes_field(1, text.encode("utf-8"))
    body += _varint(2 << 3 | _FIXED32) + struct.pack("<f", score)
    if kind != NORMAL:
        body += _number_field(3, kind)
    return _bytes_field(1, body)


def _trainer_spec(model: SentencePieceModel) -> bytes:
    fields = [
        _number_field(3, model.algorithm),
        _number_field(4, len(model.pieces)),
        _number_field(35, BYTE in model.types),
    ]
    ids = (model.unk_id, model.bos_id, model.eos_id, model.pad_id)
    fields += [_number_field(number, token_id) for number, token_id in enumerate(ids, 40)]
    for number, token_id in enumerate(ids, 45):
        if token_id >= 0:
            fields.append(_bytes_field(number, model.pieces[token_id].encode("utf-8")))
    return b"".join(fields)


def encode_sentencepiece(model: SentencePieceModel) -> bytes:
    """Writes a tokenizer.model that read_sentencepiece reads as `model`.

    The text is taken as it is: no character is replaced, no white space removed.

    Args:
        model: pieces that are not empty, each once, in Unicode that UTF-8 can hold; one is unknown.

    Source:
        sentencepiece_model.proto: pieces 1 {piece 1, score 2, type 3}, trainer_spec 2 {model_type
        3, vocab_size 4, byte_fallback 35, unk, bos, eos, pad: ids from 40, pieces from 45},
        normalizer_spec 3 {name 1, add_dummy_prefix 3, remove_extra_whitespaces 4}.
    """
    entries = zip(model.pieces, model.scores, model.types, strict=True)
    normalizer = (
        _bytes_field(1, b"identity")
        + _number_field(3, model.add_dummy_prefix)
        + _number_field(4, False)
    )
    pieces = b"".join(_piece_field(text, score, kind) for text, score, kind in entries)
    return pieces + _bytes_field(2, _trainer_spec(model)) + _bytes_field(3, normalizer)
