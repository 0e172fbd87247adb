"""Fuzz target over the Python face of GGUF files, driven by atheris.

An input that begins with "GGUF" is a file; any other one says how to build a file, most of which is
sound, so that what lies behind the parser is reached as well. Nothing but errors of ours may come
out, no warning, and what one reads must agree with what the next one writes.

    PYTHONPATH=tests python fuzz/fuzz_python.py [libFuzzer's options] CORPUS SEEDS
"""

from __future__ import annotations

import contextlib
import gc
import io
import sys
import tempfile
import types
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import atheris

import gguf_bytes as gb
import phiggml as pg
from phiggml import gguf, gguf_diff, gguf_edit, gguf_hash, gguf_split, gguf_verify

MOST_BYTES = 1 << 20  # of a tensor that is turned into numbers
MOST_ALIGNMENT = 1 << 16  # of what is written again: the padding alone has so many bytes
TYPES = [pg.QuantType(type) for type in pg.quant_types()]
FOLDER = Path(tempfile.mkdtemp())  # libFuzzer leaves no way to remove it: whoever starts this does


def rarely(data: atheris.FuzzedDataProvider) -> bool:
    """Never, once the instructions are used up."""
    return bool(data.ConsumeIntInRange(0, 30) == 30)


def value(data: atheris.FuzzedDataProvider, g: gb.Layout, key: bytes) -> bytes:
    """A pair of any type. Now and then its type or its count is not that of what follows."""
    kind = data.PickValueInList([*gb.CODES, gb.STRING])
    count = data.ConsumeIntInRange(0, 70)
    claimed = data.ConsumeInt(8) % 2**32 if rarely(data) else count
    if data.ConsumeBool():
        if kind == gb.STRING:
            return g.pair(key, kind, g.string(data.ConsumeBytes(count)))
        return g.pair(key, kind, data.ConsumeBytes(8)[: g_size(kind)].ljust(g_size(kind), b"\0"))
    if kind == gb.STRING:
        texts = [data.ConsumeBytes(data.ConsumeIntInRange(0, 9)) for _ in range(count)]
        return g.array(key, kind, claimed, b"".join(map(g.string, texts)))
    nbytes = count * g_size(kind)
    return g.array(key, kind, claimed, data.ConsumeBytes(nbytes).ljust(nbytes, b"\0"))


def g_size(kind: int) -> int:
    return len(gb.Layout().pack(gb.CODES[kind], 0))


def built(data: atheris.FuzzedDataProvider) -> bytes:
    """A file by instructions."""
    g = gb.Layout(data.PickValueInList([1, 2, 3, 3, 3]), data.PickValueInList(["<", "<", ">"]))
    alignment = data.PickValueInList([1, 8, 32, 32, 32, 64, 4096])
    pairs = [g.number("general.alignment", gb.UINT32, alignment)] if alignment != 32 else []
    names = ["general.name", "phiggml.padding", "split.count", "split.no", "tokenizer.ggml.tokens"]
    for i in range(data.ConsumeIntInRange(0, 6)):
        name = names.pop() if names and data.ConsumeBool() else f"key.{i}"
        pairs.append(value(data, g, name.encode()))
    tensors, content = [], b""
    for i in range(data.ConsumeIntInRange(0, 5)):
        kind = data.PickValueInList(TYPES)
        ne = [kind.block_size * data.ConsumeIntInRange(1, 3)]
        ne += [data.ConsumeIntInRange(1, 3) for _ in range(data.ConsumeIntInRange(0, 3))]
        rows = 1
        for n in ne[1:]:
            rows *= n
        nbytes = rows * kind.row_bytes(ne[0])
        offset = data.ConsumeInt(8) % 2**64 if rarely(data) else len(content)
        tensors.append(g.tensor(f"t{i}", ne, kind.id, offset=offset))
        content += data.ConsumeBytes(nbytes).ljust(nbytes, b"\x3c")
        content += bytes(-len(content) % alignment)
    return g.gguf(pairs, tensors, content, alignment=alignment)


def opened(source: Any) -> gguf.GGUFFile | pg.FormatError:
    try:
        return gguf.GGUFFile(source, follow_split=False)
    except pg.FormatError as error:
        assert error.offset is not None
        assert not {unicodedata.category(c) for c in str(error)} & {"Cc", "Zl", "Zp"}, error
        return error


def check_values(file: gguf.GGUFFile, other: gguf.GGUFFile) -> None:
    assert list(file.metadata) == list(other.metadata)
    for key, found in file.metadata.items():
        repr(found)
        encoded = file.metadata.encoded(key)
        assert encoded == other.metadata.encoded(key)
        exact = file.metadata.exact(key)
        if isinstance(found, gguf.GGUFStrings):
            assert list(found) == [found[i] for i in range(len(found))] == found[:]
        writer = gguf.GGUFWriter(FOLDER / "never.gguf", overwrite=True)
        if key != "general.alignment":
            writer.metadata[key] = exact
        writer.discard()


def check_tensors(file: gguf.GGUFFile, other: gguf.GGUFFile) -> None:
    assert list(file.tensors) == list(other.tensors)
    for name, tensor in file.tensors.items():
        assert file.data_offset <= tensor.offset <= file.nbytes - tensor.nbytes
        twin = other.tensors[name]
        assert (tensor.type, tensor.shape, tensor.offset) == (twin.type, twin.shape, twin.offset)
        with contextlib.suppress(pg.UnsupportedError):  # blocks whose big-endian form nobody knows
            assert (tensor.data == twin.data).all()
            assert (tensor.read_rows().ravel() == tensor.data.ravel()).all()
        if tensor.nbytes <= MOST_BYTES:
            with contextlib.suppress(pg.UnsupportedError, pg.InputError):
                assert tensor.dequantize().shape == tensor.shape


def check_writing(file: gguf.GGUFFile, path: Path) -> None:
    """Written again, edited, split and merged: the same tensors and metadata."""
    before = gguf_hash.hash_gguf(path)
    copy = FOLDER / "copy.gguf"
    with gguf.GGUFWriter(copy, overwrite=True) as writer:
        writer.copy_metadata(file.metadata)
        for tensor in file.tensors.values():
            writer.add_tensor(tensor.name, tensor.data, tensor.type)
    assert gguf_hash.hash_gguf(copy).data == before.data
    assert gguf_hash.hash_gguf(copy).metadata == before.metadata
    assert gguf_diff.diff_gguf(path, copy).same
    gguf_verify.verify_gguf(copy)

    first, *_ = [*file.metadata, ""]
    edits = {"set": {"fuzz.key": "new"}, "unset": {first} - {""}, "rename_tensors": {}}
    if file.tensors:
        edits["rename_tensors"] = {next(iter(file.tensors)): "renamed"}
    with contextlib.suppress(pg.InputError):  # of keys that describe the layout, or are there
        gguf_edit.edit_gguf(copy, **edits)
        with gguf.GGUFFile(copy) as edited:
            assert edited.metadata["fuzz.key"] == "new" and first not in edited.metadata
            assert len(edited.tensors) == len(file.tensors)

    if file.tensors:
        parts = gguf_split.split_gguf(path, FOLDER / "part.gguf", max_tensors=1, overwrite=True)
        if len(parts) > 1:
            merged = gguf_split.merge_gguf(parts[-1], FOLDER / "merged.gguf", overwrite=True)
            assert gguf_hash.hash_gguf(merged).data == before.data
        for part in parts:
            part.unlink()


def check_file(content: bytes) -> None:
    path = FOLDER / "input.gguf"
    path.write_bytes(content)
    files = [opened(content), opened(path), opened(io.BytesIO(content))]
    accepted = [isinstance(file, gguf.GGUFFile) for file in files]
    assert accepted in ([True] * 3, [False] * 3), files
    with contextlib.suppress(OSError, pg.InputError):  # parts that are not there
        found = gguf_verify.verify_gguf(path)
        assert accepted[0] or not found.ok
    if not accepted[0]:
        return
    for other in files[1:]:
        check_values(files[0], other)
        check_tensors(files[0], other)
    split = "split.count" in files[0].metadata
    scalars = any(tensor.shape == () for tensor in files[0].tensors.values())
    if not split and not scalars and files[0].alignment <= MOST_ALIGNMENT:
        with contextlib.suppress(pg.UnsupportedError):
            check_writing(files[0], path)
    elif split:
        with contextlib.suppress(pg.FormatError, pg.InputError, OSError):
            gguf.GGUFFile(path).close()


def test_one_input(data: bytes) -> None:
    check_file(data if data.startswith(b"GGUF") else built(atheris.FuzzedDataProvider(data)))


def instrument() -> None:
    """Lets atheris see which lines of phiggml run. Its import hook passes editable installs by."""
    for found in gc.get_objects():
        if isinstance(found, types.FunctionType) and str(found.__module__).startswith("phiggml."):
            atheris.instrument_func(found)


def main() -> None:
    instrument()
    warnings.simplefilter("error")
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
