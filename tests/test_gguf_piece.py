"""The pieces that tensors are read in, and files that are cut off while they are read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gguf_bytes as gb
import phiggml as pg
from phiggml.gguf_piece import blocks_in_pieces

LONG = (1 << 20) + 4096  # numbers in a row that is longer than a piece

CUT_OFF = """
import os, sys
import phiggml as pg

path, out, content = sys.argv[1], sys.argv[2], open(sys.argv[1], "rb").read()

def cut(event):
    if event.done > 0:
        os.truncate(path, len(content) // 8)

def extract(path, **told):
    with pg.GGUFFile(path) as file:
        pg.extract_tensor(file.tensors["t"], out, **told)

for work in (
    pg.verify_gguf,
    pg.hash_gguf,
    lambda path, **told: pg.diff_gguf(path, path, **told),
    extract,
):
    with open(path, "r+b") as file:
        file.write(content)
    try:
        work(path, threads=1, progress=cut)
    except pg.FormatError as error:
        print(error.path == path)
"""


def test_files_that_are_cut_off_are_told_and_end_nothing(tmp_path: Path) -> None:
    """A page of a mapping that has no file behind it would end the process."""
    path = tmp_path / "x.gguf"
    path.write_bytes(gb.gguf([], [gb.tensor("t", (LONG * 2,), gb.F32)], bytes(8 * LONG)))
    command = [sys.executable, "-c", CUT_OFF, str(path), str(tmp_path / "x.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n" * 4, "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.gguf"]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("ne", "n_pieces"), [((LONG, 3), 6), ((64, 1 << 15), 2), ((7,), 1)])
def test_pieces_are_the_data(
    order: str, ne: tuple[int, ...], n_pieces: int, tmp_path: Path
) -> None:
    """Whole rows together, or parts of a row; in order, and little-endian."""
    values = np.arange(np.prod(ne), dtype=np.int32)
    g = gb.Layout(3, order)
    path = tmp_path / "x.gguf"
    data = values.astype(f"{order}i4").tobytes()
    path.write_bytes(g.gguf([], [g.tensor("t", ne, gb.I32)], data + bytes(-len(data) % 32)))
    with pg.GGUFFile(path) as file:
        pieces = list(blocks_in_pieces(file.tensors["t"]))
    assert len(pieces) == n_pieces
    done = 0
    for first, blocks in pieces:
        assert first == done
        assert np.array_equal(blocks.view("<i4")[:, 0], values[done : done + len(blocks)])
        done += len(blocks)
    assert done == values.size
