"""Files of importances as llama-imatrix writes them, by the gguf package and by struct.pack."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """A tensor's sums of squares, float32[experts, n] or flattened, and counts."""

    name: str
    sums: Floats
    counts: Sequence[float] = (640,)

    @property
    def means(self) -> Floats:
        """By the definition, one number after the other."""
        rows = self.sums.reshape(len(self.counts), -1)
        found = np.ones_like(rows)
        for row, values, count in zip(found, rows, self.counts, strict=True):
            for i, value in enumerate(values):
                if count > 0:
                    row[i] = np.float32(value) / np.float32(count)
        return found


def sums(*shape: int, seed: int = 5) -> Floats:
    return np.random.default_rng(seed).uniform(0.1, 900, shape).astype(np.float32)


def write_gguf(
    path: Path,
    entries: Iterable[Entry],
    *,
    datasets: Sequence[str] | None = ("calibration.txt",),
    n_chunks: int | None = 5,
    type: str | None = "imatrix",
) -> Path:
    """The newer form: axes of length 1 in front are left out, statistics follow each tensor."""
    writer = gguf.GGUFWriter(path, "")
    if type is not None:
        writer.add_type(type)
    if datasets is not None:
        writer.add_array("imatrix.datasets", datasets)
    if n_chunks is not None:
        writer.add_uint32("imatrix.chunk_count", n_chunks)
        writer.add_uint32("imatrix.chunk_size", 128)
    for entry in entries:
        counts = np.array(entry.counts, np.float32)
        dense = len(counts) == 1
        values = entry.sums.reshape(-1) if dense else entry.sums
        writer.add_tensor(f"{entry.name}.in_sum2", values)
        writer.add_tensor(f"{entry.name}.counts", counts if dense else counts.reshape(-1, 1))
        writer.add_tensor(f"{entry.name}.in_sum", values - 1)
        writer.add_tensor(f"{entry.name}.stats", np.full(12, np.nan, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dat_entry(name: bytes, values: Floats, n_calls: int) -> bytes:
    head = struct.pack("<i", len(name)) + name + struct.pack("<ii", n_calls, values.size)
    return head + values.astype("<f4").tobytes()


def dat_end(n_chunks: int, dataset: bytes) -> bytes:
    return struct.pack("<ii", n_chunks, len(dataset)) + dataset


def write_dat(path: Path, entries: Iterable[Entry], *, n_calls: int = 1, end: bytes = b"") -> Path:
    """The older form: means times the number of calls, experts one after the other."""
    pieces = [
        dat_entry(e.name.encode(), e.means * np.float32(n_calls or 1), n_calls) for e in entries
    ]
    path.write_bytes(struct.pack("<i", len(pieces)) + b"".join(pieces) + end)
    return path
