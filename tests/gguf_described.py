"""What a GGUF file holds, short enough to be kept: data and long lists by their hashes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf

DIGITS = 16  # of a sha256, enough to tell two files apart


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def value_of(field: gguf.ReaderField) -> Any:
    """A value as JSON; long lists by the hash of their JSON."""
    value = field.contents()
    if isinstance(value, list):
        return {"length": len(value), "sha256": digest(json.dumps(value).encode())}
    return value


def described(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and tensors of a GGUF file."""
    reader = gguf.GGUFReader(path)
    metadata = {
        name: [field.types[-1].name, value_of(field)]
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    tensors = {
        tensor.name: [
            tensor.tensor_type.name,
            [int(n) for n in reversed(tensor.shape)],
            digest(tensor.data.tobytes()),
        ]
        for tensor in reader.tensors
    }
    return metadata, tensors
