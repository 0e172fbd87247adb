"""What is too much: for the reader, for the memory."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

import gguf_bytes as gb
from phiggml import gguf_part, gguf_writer, gguf_writer_metadata
from phiggml.errors import FormatError, InputError
from phiggml.gguf import GGUFFile, GGUFWriter

PADDING = "phiggml.padding"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.gguf"


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_what_the_reader_does_not_read_is_not_written(path, monkeypatch):
    """The limits are the reader's; see the next test."""
    monkeypatch.setattr(gguf_writer, "_MAX_HELD_BYTES", 4096)
    monkeypatch.setattr(gguf_part, "_SLACK", 1000)
    for module in (gguf_writer, gguf_part, gguf_writer_metadata):
        monkeypatch.setattr(module, "MAX_ENTRIES", 5)
    with GGUFWriter(path) as w:
        for i in range(5):
            w.metadata[f"k{i}"] = i
            w.add_tensor(f"t{i}", numbers(i, 500))
        w.metadata["k0"] = 7
        with pytest.raises(InputError, match="there are 5 keys"):
            w.metadata["k5"] = 5
        with pytest.raises(InputError, match="there are 5 tensors"):
            w.add_tensor("t5", numbers(1, 3))
    with GGUFFile(path) as f:
        # The padding would be one more.
        assert dict(f.metadata) == {f"k{i}": i or 7 for i in range(5)}
        for i, tensor in enumerate(f.tensors.values()):
            np.testing.assert_array_equal(tensor.dequantize(), numbers(i, 500))
    with GGUFFile(path) as f, GGUFWriter(path.with_name("more.gguf")) as w:
        w.metadata["k"] = 1
        w.copy_metadata(f.metadata)
        with pytest.raises(InputError, match="6 metadata keys"):
            w.close()
        w.discard()
    monkeypatch.setattr(gguf_part, "_MAX_HEADER_BYTES", 1000)
    w = GGUFWriter(path.with_name("large.gguf"))
    w.metadata["text"] = "x" * 900
    w.add_tensor("t", numbers(1, 2000))
    w.metadata["late"] = "y" * 100
    with pytest.raises(InputError, match="header takes 1"):
        w.close()
    assert sorted(path.parent.iterdir()) == [path]
    # A padding would be read as a part of the header, which has a room of 4096.
    with GGUFWriter(path, overwrite=True) as w:
        w.add_tensor("t", numbers(1, 2000))
    assert PADDING not in gguf.GGUFReader(path).fields


def test_the_limits_are_the_readers(path):
    longest = gguf_part._MAX_HEADER_BYTES
    used = 24 + 8 + 1 + 4 + 8
    for more in (0, 1):
        with path.open("wb") as stream:
            stream.write(gb.gguf([gb.pair("k", gb.STRING, gb.string(b""))], [], b"")[: used - 8])
            stream.write((longest - used + more).to_bytes(8, "little"))
            stream.truncate(longest + more)
        if more:
            with pytest.raises(FormatError, match="header"):
                GGUFFile(path)
        else:
            GGUFFile(path).close()
    counted = gguf_writer_metadata.MAX_ENTRIES
    pairs = b"".join(gb.number(f"k{i}", gb.UINT8, 1) for i in range(counted + 1))
    for count in (counted, counted + 1):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, count) + pairs + bytes(64))
        if count > counted:
            with pytest.raises(FormatError, match="metadata keys"):
                GGUFFile(path)
        else:
            GGUFFile(path).close()


def test_a_large_array_of_another_layout_takes_little_memory(path):
    x = np.ones((4000, 3000), np.float32)
    tracemalloc.start()
    try:
        with GGUFWriter(path) as w:
            w.add_tensor("a", x.T)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert x.nbytes == 48_000_000
    assert peak < 20_000_000
