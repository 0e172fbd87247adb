"""What the headers of a model's files become by an edit, or all that is wrong with it."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from phiggml.errors import InputError
from phiggml.gguf import GGUFMetadata
from phiggml.gguf_header import Header, Item
from phiggml.gguf_value import GGUFValue, encode_value
from phiggml.gguf_writer_metadata import (
    ALIGNMENT_KEY,
    MAX_KEY_BYTES,
    MAX_TENSOR_NAME_BYTES,
    PADDING_KEY,
    require_name,
)

__all__ = ["EditRequest", "EditedHeader", "edit_headers"]

_MAX_NAMES_COMPARED = 10_000  # when names near a misspelt one are looked for


@dataclass(frozen=True)
class EditRequest:
    """What edit_gguf was asked for.

    Attributes:
        set: key -> value.
        unset: keys.
        rename: old key -> new key.
        rename_tensors: old name -> new name.
    """

    set: Mapping[str, Any]
    unset: Collection[str]
    rename: Mapping[str, str]
    rename_tensors: Mapping[str, str]


@dataclass(frozen=True)
class EditedHeader:
    """A header after an edit.

    Attributes:
        header: its entries in the old order, what was added last.
        n_added: how many those are.
        changed: keys and names that the edit made, changed or took away.
    """

    header: Header
    n_added: int
    changed: tuple[str, ...]


def edit_headers(
    headers: Sequence[Header], metadata: GGUFMetadata, request: EditRequest, *, path: str
) -> list[EditedHeader]:
    """Edits the headers of a model's files; the metadata are those of the first.

    Raises:
        InputError: every fault of the request.
    """
    faults: list[str] = []
    is_whole = len(headers) == 1
    first = _edit_entries(headers[0], metadata, request, faults, is_whole=is_whole)
    edited = [first, *(EditedHeader(header, 0, ()) for header in headers[1:])]
    edited = _rename_tensors(edited, request.rename_tensors, faults)
    if faults:
        raise InputError(f"edit_gguf: {path}: {' '.join(faults)}")
    return edited


def _edit_entries(
    header: Header,
    metadata: GGUFMetadata,
    request: EditRequest,
    faults: list[str],
    *,
    is_whole: bool,
) -> EditedHeader:
    old = {item.name: item.body for item in header.entries}
    _check_keys(request, old, faults, is_whole=is_whole)
    changed: list[str] = []
    entries: list[Item] = []
    for key, body in old.items():
        if key in request.unset:
            changed.append(key)
            continue
        name = request.rename.get(key, key)
        if name == key and key in request.set:
            body = _encode_set(key, request.set[key], metadata, faults)
        entries.append(Item(name, body))
        if entries[-1] != (key, old[key]):
            changed.append(name)
    added = [
        Item(key, _encode_set(key, value, None, faults))
        for key, value in request.set.items()
        if key not in old
    ]
    changed += [item.name for item in added]
    entries += added
    faults += [
        f"key {name!r}: there would be two of it. "
        "Unset or rename the other before, or in the same call."
        for name in _repeated(item.name for item in entries)
    ]
    return EditedHeader(
        replace(header, entries=tuple(entries)), len(added), tuple(dict.fromkeys(changed))
    )


def _check_keys(
    request: EditRequest, old: Mapping[str, bytes], faults: list[str], *, is_whole: bool
) -> None:
    for key in (*request.unset, *request.rename):
        if key not in old:
            faults.append(f"key {key!r}: there is none{_near(key, old)}.")
    for key in dict.fromkeys((*request.set, *request.rename.values())):
        faults += _faults_of_name(key, f"key {key!r}", MAX_KEY_BYTES)
    targets = set(request.rename.values())
    for key in dict.fromkeys((*request.set, *request.unset, *request.rename, *targets)):
        uses = (key in request.set, key in request.unset, key in request.rename)
        if sum(uses) > 1 or (key in request.set and key in targets):
            faults.append(f"key {key!r}: two edits of it in one call. Keep one.")
        faults += _faults_of_key(key, only_unset=key in request.unset, is_whole=is_whole)


def _faults_of_key(key: str, *, only_unset: bool, is_whole: bool) -> list[str]:
    if key == ALIGNMENT_KEY:
        return [
            f"key {key!r}: the tensors lie where it says, and an edit leaves them there. "
            "Write another file with GGUFWriter to change it."
        ]
    # llama-gguf-split leaves them in files that it has merged.
    if str(key).startswith("split.") and not (only_unset and is_whole):
        return [
            f"key {key!r}: it says how the parts belong together. Use split_gguf or merge_gguf "
            "(phiggml gguf split, merge)."
        ]
    if key == PADDING_KEY and not only_unset:
        return [f"key {key!r}: it is the room that edits use. It may be unset, not set or renamed."]
    return []


def _encode_set(key: str, value: Any, metadata: GGUFMetadata | None, faults: list[str]) -> bytes:
    """The value with the type that the file's has, if it has one; empty where it cannot be."""
    what = f"key {key!r}"
    if metadata is None or isinstance(value, GGUFValue):
        return _encoded(value, what, faults)
    old = metadata.encoded(key)
    type = metadata.exact(key).type
    found: list[str] = []
    new = _encoded(GGUFValue(value, type), what, found)
    is_array = _is_array(old)
    remedy = "pass GGUFValue(value, type) to make it something else."
    if new and _is_array(new) != is_array:
        kinds = (f"an array of {type}", f"one {type}")
        old_kind, new_kind = kinds if is_array else kinds[::-1]
        found.append(f"{what}: it is {old_kind}, and the value is {new_kind}: {remedy}")
    kind = f"an array of {type}" if is_array else type
    faults += [
        fault if "GGUFValue" in fault else f"{fault} The key is {kind}: {remedy}" for fault in found
    ]
    return new


def _encoded(value: Any, what: str, faults: list[str]) -> bytes:
    try:
        return encode_value(value, what)
    except InputError as error:
        faults.append(str(error))
        return b""


def _is_array(body: bytes) -> bool:
    return body[:4] == b"\x09\0\0\0"


def _rename_tensors(
    edited: Sequence[EditedHeader], renames: Mapping[str, str], faults: list[str]
) -> list[EditedHeader]:
    homes = {item.name: i for i, one in enumerate(edited) for item in one.header.tensors}
    for old, new in renames.items():
        faults += _faults_of_name(new, f"tensor {new!r}", MAX_TENSOR_NAME_BYTES)
        if old not in homes:
            faults.append(f"tensor {old!r}: there is none{_near(old, homes)}.")
        elif homes.get(new, homes[old]) != homes[old]:
            # Files are written one after the other; a kill between two would leave it in both.
            faults.append(f"tensor {new!r}: another part holds one. Rename that in a call before.")
    names = [renames.get(name, name) for name in homes]
    faults += [
        f"tensor {name!r}: there would be two of it. Rename the other before, or in the same call."
        for name in _repeated(names)
    ]
    return [_with_renamed_tensors(one, renames) for one in edited]


def _with_renamed_tensors(edited: EditedHeader, renames: Mapping[str, str]) -> EditedHeader:
    tensors = tuple(
        Item(renames.get(item.name, item.name), item.body) for item in edited.header.tensors
    )
    pairs = zip(edited.header.tensors, tensors, strict=True)
    changed = tuple(new.name for old, new in pairs if new != old)
    return replace(
        edited,
        header=replace(edited.header, tensors=tensors),
        changed=(*edited.changed, *changed),
    )


def _faults_of_name(name: str, what: str, longest: int) -> list[str]:
    try:
        require_name(name, what, longest)
    except InputError as error:
        return [str(error)]
    return []


def _repeated(names: Iterable[str]) -> list[str]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return [name for name, count in counts.items() if count > 1]


def _near(name: str, names: Iterable[str]) -> str:
    some = itertools.islice(names, _MAX_NAMES_COMPARED)
    near = difflib.get_close_matches(name, some, n=3) if isinstance(name, str) else []
    return f"; near it: {', '.join(map(repr, near))}" if near else ""
