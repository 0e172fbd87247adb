"""Where a GGUF file is opened from: a path, a URL, bytes or a file object; and its other parts."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

from phiggml import _core
from phiggml.errors import FormatError, InputError
from phiggml.gguf_remote import RemoteBytes, is_url, open_url

__all__ = ["OpenPart", "Origin", "open_part", "open_parts", "split_place"]

Origin: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]

_FIRST_FRONT = 1 << 20  # most headers, their vocabulary apart


@dataclass(frozen=True)
class OpenPart:
    """One open GGUF file.

    Attributes:
        name: its path or URL, or what stands for it in messages.
        core: the parsed file.
        remote: where its tensor data are read, when they are not mapped.
        has_neighbours: whether `name` leads to other parts.
    """

    name: str
    core: _core.gguf.File
    remote: RemoteBytes | None = None
    has_neighbours: bool = True

    def close(self) -> None:
        """Lets go of the connection, if there is one."""
        if self.remote is not None:
            self.remote.close()


def open_part(origin: Origin) -> OpenPart:
    """Opens and parses one file.

    Raises:
        As GGUFFile.
    """
    if isinstance(origin, bytes | bytearray | memoryview):
        return OpenPart("<bytes>", _of_buffer(origin, "<bytes>"), None, False)
    if not isinstance(origin, str | os.PathLike):
        if hasattr(origin, "read"):
            return _open_stream(origin)
        raise InputError(
            f"GGUFFile: {type(origin).__name__} is no path, URL, bytes or binary file object."
        )
    if is_url(origin):
        return _open_remote(open_url(str(origin)), has_neighbours=True)
    try:
        path = os.fsdecode(origin)
        encoded = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise InputError(f"GGUFFile: {str(origin)!r}: a path cannot hold this: {error}.") from error
    if b"\0" in encoded:
        raise InputError(f"GGUFFile: {path!r}: a path cannot hold NUL.")
    return OpenPart(path, _core.gguf.File(encoded))


def _of_buffer(buffer: bytes | bytearray | memoryview, name: str) -> _core.gguf.File:
    """Bytes that nobody can change are read where they lie."""
    try:
        plain = not isinstance(buffer, memoryview) or (buffer.format, buffer.strides) == ("B", (1,))
        if not (plain and isinstance(getattr(buffer, "obj", buffer), bytes)):
            buffer = bytes(buffer)
        return _core.gguf.File.from_buffer(buffer, name.encode("utf-8", "backslashreplace"))
    except (BufferError, ValueError) as error:
        if isinstance(error, FormatError | InputError):
            raise
        raise InputError(f"GGUFFile: {name}: {error}. Pass bytes(buffer).") from error


def _open_stream(stream: IO[bytes]) -> OpenPart:
    given = getattr(stream, "name", None)
    name = given if isinstance(given, str) else f"<{type(stream).__name__}>"
    if type(stream) is io.BytesIO:
        return OpenPart(name, _of_buffer(stream.getvalue(), name), None, False)
    # Only of these is it sure that the descriptor leads to the same bytes (of a GzipFile not).
    if isinstance(getattr(stream, "raw", stream), io.FileIO):
        stream.flush()  # what was written through it stands in the file then
        encoded = name.encode(sys.getfilesystemencoding(), "backslashreplace")
        return OpenPart(
            name, _core.gguf.File.from_descriptor(stream.fileno(), encoded), None, False
        )
    return _open_remote(RemoteBytes(stream, name), has_neighbours=False)


def _open_remote(remote: RemoteBytes, *, has_neighbours: bool) -> OpenPart:
    """Reads as much of the front as the header takes, in pieces that grow."""
    name = remote.name.encode("utf-8", "backslashreplace")
    try:
        front = remote.read_at(0, min(_FIRST_FRONT, remote.size))
        while True:
            core = _core.gguf.File.from_front(front, remote.size, name)
            if isinstance(core, _core.gguf.File):
                return OpenPart(remote.name, core, remote, has_neighbours)
            wanted = min(max(core, 2 * len(front)), remote.size)
            front += remote.read_at(len(front), wanted - len(front))
    except BaseException:
        remote.close()
        raise


def open_parts(given: OpenPart) -> tuple[OpenPart, ...]:
    """All parts of a split model of which one is given, in order; it alone when it is not split.

    Raises:
        InputError: it is a part, and nothing says where the others are.
        FormatError: names or split.* keys are not those of a split model.
        OSError: a part is not there.

    Source:
        split.* keys as llama_model_loader reads them, names as llama_split_path makes them.
    """
    parts: list[OpenPart] = []
    try:
        place = split_place(given)
        if place is None:
            return (given,)
        number, count = place
        name_of = _neighbours(given, number, count)
        for i in range(count):
            part = given if i == number else open_part(name_of(i))
            parts.append(part)
            if split_place(part) != (i, count):
                raise FormatError(
                    f"{part.name}: its split.no and split.count are not those of part {i + 1} of "
                    f"{count}. Fetch the parts of one model.",
                    path=part.name,
                )
            if part.core.is_big_endian != parts[0].core.is_big_endian:
                raise FormatError(
                    f"{part.name}: its byte order is not that of {parts[0].name}. "
                    "Fetch the parts of one model.",
                    path=part.name,
                )
        _check_tensors(parts)
    except BaseException:
        for part in (given, *parts):
            part.close()
        raise
    return tuple(parts)


def split_place(part: OpenPart) -> tuple[int, int] | None:
    """(split.no, split.count) of a part; None of a file that is whole."""
    count, number = (_value(part, key) for key in ("split.count", "split.no"))
    if count is None or (type(count) is int and count <= 1):
        return None
    number = 0 if number is None else number
    if (
        not all(type(value) is int for value in (count, number))
        or not 1 < count < 1 << 16
        or not 0 <= number < count
    ):
        raise FormatError(
            f"{part.name}: split.no and split.count must be integers with 0 <= no < count < 65536, "
            f"not {number!r} and {count!r}.",
            path=part.name,
        )
    return number, count


def _value(part: OpenPart, key: str) -> Any:
    try:
        return part.core.value(key)
    except KeyError:
        return None


def _neighbours(given: OpenPart, number: int, count: int) -> Callable[[int], str]:
    """What names part i, from 0 on."""
    if not given.has_neighbours:
        raise InputError(
            f"GGUFFile: {given.name}: it is part {number + 1} of {count} of a split model, and "
            "only a path or URL leads to the others. Pass one, or follow_split=False for this part "
            "alone."
        )
    name = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf(\?[^/]*)?", given.name, re.DOTALL)
    if name is None or (int(name[2]), int(name[3])) != (number + 1, count):
        raise FormatError(
            f"{given.name}: it is part {number + 1} of {count}, so its name must end in "
            f"-{number + 1:05}-of-{count:05}.gguf. Rename it, or pass follow_split=False for this "
            "part alone.",
            path=given.name,
        )
    prefix, query = name[1], name[4] or ""
    return lambda i: f"{prefix}-{i + 1:05}-of-{count:05}.gguf{query}"


def _check_tensors(parts: list[OpenPart]) -> None:
    """No name is in two parts, and there are as many tensors as the first part promises."""
    seen: set[str] = set()
    for part in parts:
        for index in range(part.core.n_tensors):
            name = part.core.tensor(index)[0]
            if name in seen:
                raise FormatError(
                    f"{part.name}: tensor {name!r} is in another part too.", path=part.name
                )
            seen.add(name)
    promised = _value(parts[0], "split.tensors.count")
    if promised is not None and (type(promised) is not int or promised != len(seen)):
        raise FormatError(
            f"{parts[0].name}: its {len(parts)} parts hold {len(seen)} tensors, and "
            f"split.tensors.count is not that number: {_short(promised)}.",
            path=parts[0].name,
        )


def _short(value: Any) -> str:
    return str(value) if isinstance(value, int | float) else type(value).__name__
