"""The tokenizer in a GGUF file, as the tokenizer files of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml.conversion import sentencepiece
from phiggml.conversion.fast_tokenizer import encode_fast_tokenizer
from phiggml.conversion.fields import Fields, is_text
from phiggml.conversion.naming import name_strips
from phiggml.conversion.sentencepiece import (
    BYTE,
    CONTROL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    encode_sentencepiece,
)
from phiggml.conversion.special_tokens import END_IDS, TOKEN_KINDS
from phiggml.conversion.vocabulary import (
    ADDED_SCORE,
    END_OF_TURN,
    NEVER_STRIP,
    PADDING_SCORE,
    padding_token,
)
from phiggml.errors import UnsupportedError
from phiggml.gguf_value import GGUFStrings

__all__ = ["ExportedTokenizer", "export_tokenizer"]

_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
# sentencepiece's own: control pieces, whatever a checkpoint's list of added tokens makes of them.
_BEGIN, _END = "<s>", "</s>"
_BYTES = frozenset(f"<0x{value:02X}>" for value in range(256))
_MOST_TOKENS = 1 << 20
_SHOWN = 5
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word")


@dataclass(frozen=True)
class ExportedTokenizer:
    """What a checkpoint says about its tokenizer.

    Attributes:
        model: the bytes of tokenizer.model.
        fast: the bytes of tokenizer.json.
        added: added_tokens.json: token -> id, for ids beyond those of tokenizer.model.
        config: tokenizer_config.json, without the length of the context.
        special: special_tokens_map.json.
        ids: of config.json: "bos_token_id" and so on.
        ends: of generation_config.json: all ids that end a text.
    """

    model: bytes
    fast: bytes
    added: Mapping[str, int]
    config: Mapping[str, Any]
    special: Mapping[str, Any]
    ids: Mapping[str, int | None]
    ends: tuple[int, ...]


@dataclass(frozen=True)
class _Table:
    """The three arrays of a vocabulary, and what is known about each token."""

    tokens: list[str]
    scores: npt.NDArray[np.float32]
    types: npt.NDArray[np.int32]

    def special(self) -> npt.NDArray[np.bool_]:
        return np.isin(self.types, (CONTROL, USER_DEFINED))

    def added(self) -> npt.NDArray[np.bool_]:
        """Tokens that a converter laid over tokenizer.model: it gives them a score of their own."""
        found: npt.NDArray[np.bool_] = self.special() & (self.scores == ADDED_SCORE)
        return found

    def padding(self) -> npt.NDArray[np.bool_]:
        found = np.zeros(len(self.tokens), np.bool_)
        for i in np.flatnonzero(self.types == UNUSED).tolist():
            found[i] = self.tokens[i] == padding_token(i)
        return found

    def n_pieces(self) -> int:
        """Tokens before the added ones and the padding at the end: those of tokenizer.model."""
        special, added, padding = self.special(), self.added(), self.padding()
        count = _end(~(special | padding))
        # A file that scores no token as added was made by another converter: go by types alone.
        if not added[count:].any():
            return count
        return _end(~(added | padding & (self.scores == PADDING_SCORE)))


def _end(mask: npt.NDArray[np.bool_]) -> int:
    """The index after the last true one."""
    found = np.flatnonzero(mask)
    return int(found[-1]) + 1 if found.size else 0


def export_tokenizer(metadata: Fields) -> ExportedTokenizer | None:
    """Turns tokenizer.* metadata into the tokenizer files of a checkpoint.

    White space right of added tokens is stripped where the file says so, or else where llama.cpp
    does so, which goes by the model's name. A text after an added token begins with a space, as
    llama.cpp has it, unless the file says otherwise.

    Returns:
        What to write; None where the vocabulary has faults (metadata.faults tells them).

    Raises:
        UnsupportedError: it is no sentencepiece tokenizer.
    """
    _require_kind(metadata)
    table = _read_table(metadata)
    if table is None:
        return None
    count = table.n_pieces()
    model = _sentencepiece(metadata, table, count)
    ids = _token_ids(metadata, len(table.tokens))
    if model is None:
        return None
    encoded = encode_sentencepiece(model)
    if len(encoded) > sentencepiece.FILE_LIMIT:
        metadata.faults.add(
            metadata.path,
            f"its tokenizer.model would hold {len(encoded)} bytes; "
            f"such a file may hold {sentencepiece.FILE_LIMIT}.",
        )
    entries = _added_tokens(metadata, table, count)
    special = _special_tokens(table, ids, entries)
    return ExportedTokenizer(
        model=encoded,
        fast=encode_fast_tokenizer(model, table.tokens, entries, scheme=_scheme(metadata)),
        added={table.tokens[i]: i for i in entries if i >= count},
        config={
            **{key: entry["content"] for key, entry in special.items()},
            **_added_to_prompts(metadata),
            **({} if model.add_dummy_prefix else {"add_prefix_space": False}),
            "added_tokens_decoder": {str(i): entry for i, entry in entries.items()},
            "clean_up_tokenization_spaces": False,
            "legacy": True,
            "tokenizer_class": "LlamaTokenizer",
            **_templates(metadata),
        },
        special=special,
        ids={f"{name}_token_id": ids.get(name) for name in _ids_of_config(ids)},
        ends=_ends(metadata, ids, table),
    )


def _require_kind(metadata: Fields) -> None:
    kind = metadata.raw(_PREFIX + "model")
    if kind is None:
        metadata.faults.add(metadata.path, f"{_PREFIX}model is missing.")
    elif not isinstance(kind, str):
        metadata.fault(_PREFIX + "model", "must be a string.")
    elif kind != "llama":
        raise UnsupportedError(
            f"export: {metadata.path}: its tokenizer is {kind!r}; only 'llama' (sentencepiece) "
            "ones are exported."
        )
    # It chooses among other kinds of tokenizers, and says nothing about this one.
    metadata.raw(_PREFIX + "pre")


def _read_table(metadata: Fields) -> _Table | None:
    tokens = metadata.raw(_PREFIX + "tokens")
    if tokens is None:
        metadata.faults.add(metadata.path, f"{_PREFIX}tokens is missing.")
    elif not isinstance(tokens, GGUFStrings) or not len(tokens):
        metadata.fault(_PREFIX + "tokens", "must be an array of strings.")
        tokens = None
    elif len(tokens) > _MOST_TOKENS:
        metadata.fault(_PREFIX + "tokens", f"must hold {_MOST_TOKENS} tokens at most.")
        tokens = None
    scores = _numbers(metadata, "scores", "f")
    types = _numbers(metadata, "token_type", "iu")
    if tokens is None or scores is None or types is None:
        return None
    if not len(tokens) == scores.size == types.size:
        metadata.faults.add(
            metadata.path,
            f"the vocabulary has {len(tokens)} tokens, {scores.size} scores and {types.size} "
            "types; one of each is needed for every token.",
        )
        return None
    table = _Table(list(tokens), scores.astype(np.float32), types.astype(np.int32))
    sound = _check_values(metadata, table)
    return table if sound else None


def _numbers(metadata: Fields, name: str, kinds: str) -> npt.NDArray[Any] | None:
    values = metadata.raw(_PREFIX + name)
    if values is None:
        metadata.faults.add(metadata.path, f"{_PREFIX}{name} is missing.")
    elif not isinstance(values, np.ndarray) or values.dtype.kind not in kinds:
        what = "fractions" if kinds == "f" else "integers"
        metadata.fault(_PREFIX + name, f"must be an array of {what}.")
    else:
        return values
    return None


def _check_values(metadata: Fields, table: _Table) -> bool:
    first: dict[str, int] = {}
    checks: dict[str, list[int]] = {
        "is empty or no UTF-8": [i for i, t in enumerate(table.tokens) if not t or not is_text(t)],
        "stands there twice": [i for i, t in enumerate(table.tokens) if first.setdefault(t, i) < i],
        "has a score that is not finite": np.flatnonzero(~np.isfinite(table.scores)).tolist(),
        "has a type other than 1 to 6": np.flatnonzero(
            (table.types < 1) | (table.types > BYTE)
        ).tolist(),
    }
    for what, found in checks.items():
        if len(found):
            shown = ", ".join(f"{i} ({table.tokens[i][:40]!a})" for i in found[:_SHOWN])
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            metadata.faults.add(metadata.path, f"token {shown}{more} {what}.")
    found_bytes = {table.tokens[i] for i in np.flatnonzero(table.types == BYTE)}
    if found_bytes and found_bytes != _BYTES:
        metadata.faults.add(
            metadata.path,
            f"{len(found_bytes)} tokens stand for single bytes; all of <0x00> to <0xFF> are "
            "needed, or none.",
        )
    return not any(map(len, checks.values())) and found_bytes in (_BYTES, set())


def _sentencepiece(metadata: Fields, table: _Table, count: int) -> SentencePieceModel | None:
    unknown = _unknown_id(metadata, table, count)
    if unknown is None:
        return None
    tokens, added = table.tokens[:count], table.added()
    scores = [0.0 if added[i] else float(table.scores[i]) for i in range(count)]
    types = [int(kind) for kind in table.types[:count]]
    for i, token in enumerate(tokens):
        if added[i] and token in (_BEGIN, _END):
            types[i] = CONTROL
    types[unknown] = UNKNOWN

    def control(name: str, key: str) -> int:
        """The id of sentencepiece's own token, or else of the model's; -1 where neither is one."""
        stated = metadata.raw(f"{_PREFIX}{key}_token_id")
        for i in (tokens.index(name) if name in tokens else -1, stated):
            if type(i) is int and 0 <= i < count and types[i] == CONTROL:
                return i
        return -1

    return SentencePieceModel(
        pieces=tuple(tokens),
        scores=tuple(scores),
        types=tuple(types),
        algorithm=sentencepiece.BPE,
        add_dummy_prefix=metadata.boolean(_PREFIX + "add_space_prefix", True),
        bos_id=control(_BEGIN, "bos"),
        eos_id=control(_END, "eos"),
        unk_id=unknown,
        pad_id=-1,
    )


def _unknown_id(metadata: Fields, table: _Table, count: int) -> int | None:
    """Which piece stands for what has no token; a sentencepiece model has exactly one."""
    found = np.flatnonzero(table.types == UNKNOWN)
    if found.size == 1:
        return int(found[0])
    stated = metadata.raw(_PREFIX + "unknown_token_id")
    # llama.cpp takes token 0 where the file says nothing.
    token_id = 0 if stated is None else stated
    if (
        found.size == 0
        and type(token_id) is int
        and 0 <= token_id < count
        and table.special()[token_id]
    ):
        return token_id
    metadata.faults.add(
        metadata.path,
        f"{found.size} tokens are of type {UNKNOWN} (unknown); a sentencepiece model has one.",
    )
    return None


def _added_tokens(metadata: Fields, table: _Table, count: int) -> dict[int, dict[str, Any]]:
    """The checkpoint's list of added tokens by id: content and flags."""
    strips = name_strips(str(metadata.raw("general.name")))
    flagged = {flag: _flagged(metadata, flag) for flag in _FLAGS}
    chosen = table.added()
    chosen[count:] |= table.special()[count:]
    entries = {}
    for i in np.flatnonzero(chosen).tolist():
        entries[i] = {
            "content": table.tokens[i],
            **{flag: ids is not None and i in ids for flag, ids in flagged.items()},
            "special": bool(table.types[i] == CONTROL),
        }
        if flagged["rstrip"] is None:
            entries[i]["rstrip"] = strips and table.tokens[i] not in NEVER_STRIP
    return entries


def _flagged(metadata: Fields, flag: str) -> frozenset[int] | None:
    """Ids of added tokens with a flag; None where the file does not say."""
    values = _listed(metadata, f"phiggml.tokenizer.{flag}")
    return None if values is None else frozenset(values)


def _listed(metadata: Fields, key: str) -> list[int] | None:
    """An array of ids; None where there is none."""
    values = metadata.raw(key)
    if values is None:
        return None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu":
        metadata.fault(key, "must be an array of integers.")
        return None
    ids: list[int] = values.tolist()
    return ids


def _scheme(metadata: Fields) -> str:
    """Which texts begin with a space: "always" and "first" but for those that have one, or each."""
    key = "phiggml.tokenizer.prepend_scheme"
    scheme = metadata.text(key, "") if metadata.has(key) else "each"
    if scheme not in ("each", "always", "first", "never"):
        metadata.fault(key, 'must be "always", "first" or "never".')
    return scheme


def _token_ids(metadata: Fields, n_tokens: int) -> dict[str, int]:
    """Ids by kind ("bos"), as far as the file names them."""
    ids: dict[str, int] = {}
    for name, key in TOKEN_KINDS.items():
        key = f"{_PREFIX}{key}_token_id"
        if metadata.has(key):
            ids[name] = metadata.integer(key, minimum=0, maximum=n_tokens - 1)
    return ids


def _ids_of_config(ids: Mapping[str, int]) -> Iterator[str]:
    """Kinds that config.json names; three always, because readers have defaults for those."""
    for name in TOKEN_KINDS:
        if name in ("bos", "eos", "pad") or (name in ids and name != "unk"):
            yield name


def _special_tokens(
    table: _Table, ids: Mapping[str, int], entries: Mapping[int, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """special_tokens_map.json; a row without a token is named by its id in config.json alone."""
    special = {}
    for name, token_id in ids.items():
        token = table.tokens[token_id]
        if token == padding_token(token_id):
            continue
        entry = entries.get(token_id, {"content": token})
        special[f"{name}_token"] = {
            "content": token,
            **{flag: bool(entry.get(flag)) for flag in _FLAGS},
        }
    return special


def _added_to_prompts(metadata: Fields) -> dict[str, bool]:
    found = {}
    for name in ("bos", "eos"):
        key = f"{_PREFIX}add_{name}_token"
        if metadata.has(key):
            found[f"add_{name}_token"] = metadata.boolean(key, False)
    return found


def _ends(metadata: Fields, ids: Mapping[str, int], table: _Table) -> tuple[int, ...]:
    """All ids that end a text: those that the file names, and the end of turn, named or not."""
    found = [ids["eos"]] if "eos" in ids else []
    for name in ("eot", "eom"):
        key = f"{_PREFIX}{name}_token_id"
        if metadata.has(key):
            found.append(metadata.integer(key, minimum=0, maximum=len(table.tokens) - 1))
    for token_id in _listed(metadata, END_IDS) or []:
        if 0 <= token_id < len(table.tokens):
            found.append(token_id)
        else:
            metadata.fault(END_IDS, f"must hold ids of the {len(table.tokens)} tokens.")
    if END_OF_TURN in table.tokens:
        found.append(table.tokens.index(END_OF_TURN))
    return tuple(dict.fromkeys(found))


def _templates(metadata: Fields) -> dict[str, Any]:
    """The chat template; several become a list in the file's order."""
    named: list[dict[str, str]] = []
    for key in metadata.names():
        if key == _TEMPLATE or key.startswith(_TEMPLATE + "."):
            name = key.removeprefix(_TEMPLATE).removeprefix(".") or "default"
            named.append({"name": name, "template": metadata.text(key, "")})
    # The list of the others' names, which the list of templates makes superfluous.
    metadata.raw(_TEMPLATE + "s")
    if not named:
        return {}
    alone = len(named) == 1 and named[0]["name"] == "default"
    return {"chat_template": named[0]["template"] if alone else named}
