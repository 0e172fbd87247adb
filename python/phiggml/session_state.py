"""Files of a session's state: the tokens of one sequence, and what the model computed of them.

All numbers are little-endian, and nothing is padded:

    8 bytes       8B 50 47 53 54 41 54 45, "\\x8bPGSTATE"
    u32           1, the version of this format
    u32           the build of llama.cpp that computed the numbers
    i32, i32      ggml's types of the keys and the values in the cache
    u64           bit 0: positions are turned as beyond the line of long rope; bit 1: values are
                  transposed, as without flash attention; the others are 0
    u64           n_tokens
    u64           n_evaluated, at most n_tokens: the numbers are of so many, the first ones
    u64           n_bytes of numbers
    32 bytes      the model's fingerprint
    32 bytes      SHA-256 of what llama.cpp says of a token's numbers: types, sizes, layers
    i32[]         n_tokens token ids
    u8[]          n_bytes, the numbers: of each layer the keys, then of each the values, all of
                  them by position; transposed values by their place in the row, then by position
    32 bytes      SHA-256 of all bytes before

The fingerprint is the SHA-256 of the model's metadata (as `hash_gguf` has them), and of each
tensor's name, type, shape, first, middle and last row, sorted by name. Models that differ in none
of that are taken for the same. Splitting a model does not change it.

A hash tells damage, not malice: whoever can write the file can write its hash. So no byte of it is
read as anything but a token id, which must be in the vocabulary, or a finite number of the cache's
own type. Which cells the numbers go to, and all that llama.cpp notes of these, is never in a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.atomic_file import AtomicFile, naming_target, require_writable_name
from phiggml.errors import FormatError, InputError, SessionError, UnsupportedError
from phiggml.gguf_hash import metadata_hash
from phiggml.gguf_text import escaped
from phiggml.model import Model
from phiggml.number import integer
from phiggml.session_use import UsedSession

__all__ = ["StoredSession", "checked_sequence"]

_MAGIC, _VERSION = b"\x8bPGSTATE", 1
_HEADER = struct.Struct("<8sIIiiQQQQ32s32s")
_DIGEST_BYTES = 32
_BEYOND_LINE, _TRANSPOSED = 1, 2
_PIECE_BYTES = 8 << 20
_Bytes = npt.NDArray[np.uint8]


class StoredSession(UsedSession):
    """The part of Session that is saved to files and loaded from them."""

    def save(
        self, path: str | os.PathLike[str], *, sequence: int = 0, overwrite: bool = False
    ) -> None:
        """Writes a sequence to a file: its tokens, and what the model computed of them.

        Tokens alone are written where those numbers are not the model's own (a LoRA adapter or a
        control vector takes part), where the next call would evaluate them again anyway, and where
        its memory is not a cache of all tokens (recurrent models, short sliding windows).

        Args:
            path: the file. Whoever reads it reads the text.
            sequence: which of the n_seq_max texts in the context.
            overwrite: replace an existing file.

        Raises:
            InputError: there is no such sequence, or no file can have this path.
            UnsupportedError: the model generates no text.
            SessionError: the session is closed or used by another thread.
            OSError: there is such a file, or it cannot be written; then no part of it stays.

        Cost:
            Writes the sequence's part of the KV cache, in pieces of 8 MiB, without the GIL. The
            first time reads three rows of each of the model's tensors.

        Example:
            >>> import phiggml as pg
            >>> with pg.Session("phi3-nano.gguf") as session:
            ...     logits = session.eval([1, 2, 3])
            ...     session.save("text.state")
            >>> with pg.Session("phi3-nano.gguf") as session:
            ...     session.load("text.state")
            ...     session.tokens
            array([1, 2, 3], dtype=int32)
        """
        # A link is written through, as open() would.
        target = Path(os.path.realpath(_checked_path(path, "save")))
        require_writable_name(target, overwrite=overwrite)
        model = _fingerprint(self._model)
        self._core.allow()
        self._hand_back()
        state = _core.session_state.SessionState(self._core, checked_sequence(sequence))
        with contextlib.closing(state), naming_target(str(target)):
            file = AtomicFile(target.parent, permissions=_permissions(target))
            try:
                digest = hashlib.sha256()
                for piece in _written(state, model):
                    digest.update(piece.data)
                    file.write(piece)
                file.write(digest.digest())
                file.publish(target, overwrite=overwrite)
            finally:
                file.discard()

    def load(self, path: str | os.PathLike[str], *, sequence: int = 0) -> None:
        """Puts what `save` wrote in the place of a sequence, which goes on as the saved one would.

        Where a LoRA adapter or a control vector is set, or the memory is not a cache of all tokens,
        the next call evaluates the tokens again. n_ctx may be another, if they fit.

        Args:
            path: the file. It may come from a stranger.
            sequence: which of the n_seq_max texts in the context to replace.

        Raises:
            InputError: there is no such sequence, or the path is not that of a file.
            FormatError: it is no such file, cut short, damaged, or holds what no session writes.
            UnsupportedError: it is of another version of the format, or the model generates no
                text.
            SessionError: it was saved with another model, build, KV type or kind of attention, or
                its tokens do not fit; the session is closed or used by another thread.
            OSError: it cannot be read.

        Cost:
            Reads the file twice, in pieces of 8 MiB, without the GIL: first for its hash. The
            sequence stays as it was until all is checked but the numbers; if one of them is not
            finite, or reading fails or is interrupted then, its tokens stay and are evaluated
            again by the next call.
        """
        name = _checked_path(path, "load")
        number = checked_sequence(sequence)
        with _opened(name) as stream:
            file = _StateFile(stream, name)
            file.check_digest()
            tokens = file.tokens(self._model.n_vocab)
            file.check_model(_fingerprint(self._model), tokens, self._core.n_ctx)
            self._begin()
            state = _core.session_state.SessionState(self._core, number)
            with contextlib.closing(state):
                n_evaluated = file.usable(state)
                state.begin(tokens, n_evaluated, bool(file.header.flags & _BEYOND_LINE))
                for offset, numbers in file.numbers(state.segments):
                    state.write(offset, numbers)
                state.finish()


def checked_sequence(value: Any) -> int:
    """The number of a sequence, once it may be one; the session knows whether it is there."""
    number = integer(value, 0, 1 << 30)
    if number is None:
        raise InputError(f"session: sequence is {value!r}: it must be a whole number from 0.")
    return number


@dataclass(frozen=True)
class _Header:
    magic: bytes
    version: int
    build: int
    type_k: int
    type_v: int
    flags: int
    n_tokens: int
    n_evaluated: int
    n_bytes: int
    model: bytes
    layout: bytes

    def packed(self) -> bytes:
        return _HEADER.pack(*(getattr(self, field.name) for field in fields(self)))


class _StateFile:
    """An open file, whose header says what its size allows."""

    def __init__(self, stream: io.FileIO, path: Path) -> None:
        self._stream, self._path, self._name = stream, str(path), escaped(str(path))
        self._size = os.fstat(stream.fileno()).st_size
        start = self._read(0, min(_HEADER.size, self._size)).tobytes()
        if not start.startswith(_MAGIC):
            raise self._fault("it is no session state: its first bytes are others.", 0)
        if len(start) < _HEADER.size:
            raise self._fault("it ends within its header.", len(start))
        self.header = _Header(*_HEADER.unpack(start))
        if self.header.version != _VERSION:
            raise UnsupportedError(
                f"load: {self._name}: it is of version {self.header.version} of its format; this "
                f"phiggml reads version {_VERSION}."
            )
        h = self.header
        self._numbers_at = _HEADER.size + 4 * h.n_tokens
        expected = self._numbers_at + h.n_bytes + _DIGEST_BYTES
        if self._size != expected:
            raise self._fault(f"it has {self._size} bytes; its header says {expected}.")
        if h.n_evaluated > h.n_tokens or (h.n_bytes == 0) != (h.n_evaluated == 0):
            raise self._fault("its header contradicts itself.")
        if h.flags & ~(_BEYOND_LINE | _TRANSPOSED):
            raise self._fault("its header has flags that nobody sets.")

    def check_digest(self) -> None:
        """Raises FormatError unless the bytes are those that were written."""
        digest, end = hashlib.sha256(), self._size - _DIGEST_BYTES
        for start in range(0, end, _PIECE_BYTES):
            digest.update(self._read(start, min(_PIECE_BYTES, end - start)).data)
        if digest.digest() != self._read(end, _DIGEST_BYTES).tobytes():
            raise self._fault("it is damaged: its hash is another. Save the session again.")

    def tokens(self, n_vocab: int) -> npt.NDArray[np.int32]:
        """The tokens, all of them in the vocabulary."""
        data = self._read(_HEADER.size, 4 * self.header.n_tokens)
        ids = data.view("<i4").astype(np.int32)
        wrong = np.flatnonzero((ids < 0) | (ids >= n_vocab))
        if len(wrong) > 0:
            raise self._fault(
                f"token {ids[wrong[0]]} is not in the vocabulary of {n_vocab}. Load it with the "
                "model that it was saved with.",
                _HEADER.size + 4 * int(wrong[0]),
            )
        return ids

    def check_model(self, model: bytes, tokens: npt.NDArray[np.int32], n_ctx: int) -> None:
        """Raises SessionError where the tokens are another model's, or too many."""
        if self.header.model != model:
            raise self._misfit("it was saved with another model. Load it with that one.")
        if len(tokens) > n_ctx:
            raise self._misfit(
                f"its {len(tokens)} tokens do not fit into n_ctx = {n_ctx}. Make a session with a "
                "larger n_ctx."
            )

    def usable(self, state: _core.session_state.SessionState) -> int:
        """How many tokens' numbers the session takes; 0 where it must evaluate them itself.

        Raises:
            SessionError: its numbers would be others.
            FormatError: there are more or fewer numbers than tokens have.
        """
        h = self.header
        if h.n_evaluated == 0:
            return 0
        if not state.takes_numbers(h.n_evaluated):
            logging.getLogger("phiggml").debug(
                "load: %s: its %d tokens will be evaluated again.", self._name, h.n_tokens
            )
            return 0
        if h.build != _build():
            raise self._misfit(
                f"its numbers are those of llama.cpp b{h.build}, and this is b{_build()}. Evaluate "
                "the text again."
            )
        for name, saved, own in (
            ("type_k", h.type_k, state.type_k),
            ("type_v", h.type_v, state.type_v),
        ):
            if saved != own:
                raise self._misfit(
                    f"it was saved with {name} = {_type_name(saved)}, and the session has "
                    f"{_type_name(own)}. Make a session of the same types."
                )
        if bool(h.flags & _TRANSPOSED) != state.transposed:
            ways = ("with", "without")
            raise self._misfit(
                f"it was saved {ways[not state.transposed]} flash attention, and the session "
                f"computes {ways[state.transposed]}. Make a session with the same flash_attn."
            )
        if h.layout != hashlib.sha256(state.layout).digest():
            raise self._misfit("its numbers lie otherwise in the cache. Evaluate the text again.")
        if h.n_bytes != h.n_evaluated * state.token_bytes:
            raise self._fault(
                f"it has {h.n_bytes} bytes of numbers; those of {h.n_evaluated} tokens take "
                f"{h.n_evaluated * state.token_bytes}."
            )
        return h.n_evaluated

    def numbers(self, segments: list[tuple[int, int]]) -> Iterator[tuple[int, _Bytes]]:
        """The numbers in pieces, each with its offset among them; all finite."""
        offset = 0
        for type_id, n_bytes in segments:
            block_bytes = _block_bytes(type_id)
            step = _PIECE_BYTES // block_bytes * block_bytes
            for start in range(0, n_bytes, step):
                piece = self._read(self._numbers_at + offset, min(step, n_bytes - start))
                if not _core.session_state.has_finite_numbers(type_id, piece):
                    raise self._fault(
                        "it holds NaN or infinity. Evaluate the text again.",
                        self._numbers_at + offset,
                    )
                yield offset, piece
                offset += len(piece)

    def _read(self, offset: int, n_bytes: int) -> _Bytes:
        data = np.empty(n_bytes, np.uint8)
        self._stream.seek(offset)
        done = 0
        while done < n_bytes:
            n = self._stream.readinto(data[done:].data)
            if not n:
                raise self._fault("it was made shorter meanwhile.", offset + done)
            done += n
        return data

    def _fault(self, rule: str, offset: int | None = None) -> FormatError:
        return FormatError(f"load: {self._name}: {rule}", path=self._path, offset=offset)

    def _misfit(self, rule: str) -> SessionError:
        return SessionError(f"load: {self._name}: {rule}")


def _written(state: _core.session_state.SessionState, model: bytes) -> Iterator[_Bytes]:
    """The file's bytes, but for the hash at the end."""
    segments = state.segments
    flags = _BEYOND_LINE * state.beyond_line | _TRANSPOSED * state.transposed
    header = _Header(
        magic=_MAGIC,
        version=_VERSION,
        build=_build(),
        type_k=state.type_k,
        type_v=state.type_v,
        flags=flags,
        n_tokens=len(state.tokens),
        n_evaluated=state.n_evaluated,
        n_bytes=sum(n_bytes for _, n_bytes in segments),
        model=model,
        layout=hashlib.sha256(state.layout).digest(),
    )
    yield np.frombuffer(header.packed(), np.uint8)
    yield state.tokens.astype("<i4").view(np.uint8)
    piece = np.empty(min(_PIECE_BYTES, header.n_bytes), np.uint8)
    for offset in range(0, header.n_bytes, _PIECE_BYTES):
        part = piece[: header.n_bytes - offset]
        state.read(offset, part)
        yield part


_fingerprints: WeakKeyDictionary[Model, bytes] = WeakKeyDictionary()


def _fingerprint(model: Model) -> bytes:
    model._open()
    if model not in _fingerprints:
        digest = hashlib.sha256(metadata_hash(model._file.metadata, "sha256").encode())
        for name, tensor in sorted(model._file.tensors.items()):
            digest.update(f"{name}\0{tensor.type}\0{tensor.shape}\0".encode())
            for row in (0, tensor.n_rows // 2, tensor.n_rows - 1):
                digest.update(tensor.read_rows(row, row + 1).data)
        _fingerprints[model] = digest.digest()
    return _fingerprints[model]


def _build() -> int:
    return int(dict(_core.runtime.versions())["llama.cpp"].removeprefix("b"))


def _type_name(type_id: int) -> str:
    return next((t.name for t in _core.quant.all_types() if t.id == type_id), f"type {type_id}")


def _block_bytes(type_id: int) -> int:
    return next(t.block_bytes for t in _core.quant.all_types() if t.id == type_id)


def _checked_path(path: str | os.PathLike[str], operation: str) -> Path:
    if not isinstance(path, str | os.PathLike) or "\0" in str(path):
        raise InputError(f"{operation}: {path!r}: a path is text without NUL, or os.PathLike.")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{operation}: {str(path)!r}: a path cannot hold this: {error}."
        ) from error
    return Path(path)


def _permissions(path: Path) -> int | None:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


def _opened(path: Path) -> io.FileIO:
    # A pipe or a device could block, or never end.
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"load: {path}: it is no regular file. Pass one that save() wrote.")
    return io.FileIO(path, "rb")
