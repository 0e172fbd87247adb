"""What the gguf package sees in a file: the oracle of the tests that edit, split and merge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

PADDING = "phiggml.padding"


@dataclass(frozen=True)
class Seen:
    """Metadata with their types and tensors with their bytes, in order."""

    fields: list[tuple[str, list[str], Any]]
    tensors: list[tuple[str, str, list[int], bytes]]

    def metadata(self) -> dict[str, Any]:
        return {name: value for name, _, value in self.fields}


def seen(path: Path, *, without: str = PADDING) -> Seen:
    """Leaves out the keys that begin with `without`."""
    reader = gguf.GGUFReader(path)
    fields = [
        (name, [kind.name for kind in field.types], field.contents())
        for name, field in reader.fields.items()
        if not name.startswith(("GGUF.", without))
    ]
    tensors = [
        (tensor.name, tensor.tensor_type.name, tensor.shape.tolist(), tensor.data.tobytes())
        for tensor in reader.tensors
    ]
    return Seen(fields, tensors)


def without_padding(content: bytes) -> bytes:
    """A file with the bytes of its padding, which mean nothing, made zeros."""
    head = len(PADDING).to_bytes(8, "little") + PADDING.encode() + bytes([8, 0, 0, 0])
    at = content.find(head)
    if at < 0:
        return content
    begin = at + len(head) + 8
    count = int.from_bytes(content[begin - 8 : begin], "little")
    return content[:begin] + bytes(count) + content[begin + count :]
