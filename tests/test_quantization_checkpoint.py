"""convert(type=...) in one pass writes what convert and llama_model_quantize write in two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from checkpoint_kinds import KINDS, LONG, Kind, phi3_shapes, write_kind
from phiggml.conversion import convert
from phiggml.errors import UnsupportedError
from phiggml.quantization import QuantizeOptions, quantize_model
from quantization_cases import FILE_TYPE, NEED_IMATRIX, run_jobs, run_once, shared_folder

DATA = Path(__file__).parent / "data"
# Sizes of the small checkpoints, and those of which rows fill a block of any type.
WIDER = {16: 128, 32: 256, 48: 256, 64: 512, 96: 512}
SIZES = {"hidden_size": 256, "intermediate_size": 256}
ROTARY = {key: 8 * LONG[key] for key in ("short_factor", "long_factor")}
TYPES = (
    *("Q4_K_M", "Q8_0", "Q3_K_L", "Q2_K_S", "Q5_1", "Q6_K", "IQ4_XS", "IQ3_S", "TQ1_0"),
    "MXFP4_MOE",
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, and the type of GGUF file that holds all of its numbers."""

    name: str
    stored: str
    kind: Kind | None = None
    fields: Mapping[str, Any] | None = None
    types: tuple[str, ...] = TYPES

    def write(self, folder: Path) -> Path:
        if self.kind is None:
            return DATA / self.name
        shapes = {
            name: tuple(WIDER.get(size, size) for size in shape)
            for name, shape in self.kind.shapes.items()
        }
        wide = replace(self.kind, shapes=shapes)
        fields = {**SIZES, **(self.fields or {})}
        write_kind(folder / self.name, wide, dtype=self.stored, shards=2, **fields)
        return folder / self.name


FEW = ("Q4_K_M", "Q8_0", "IQ4_NL")  # rows of 64 numbers fall back
CHECKPOINTS = {
    checkpoint.name: checkpoint
    for checkpoint in (
        Checkpoint("phi3", "BF16", replace(KINDS["phi3v"], shapes=phi3_shapes(), left_out={}),
                   {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}),
        Checkpoint("phi3-half", "F16", KINDS["phi3v"], types=FEW),
        Checkpoint("phi2", "F16", KINDS["phi2"]),
        Checkpoint("phimoe", "BF16", KINDS["phimoe"], {"rope_scaling": {**LONG, **ROTARY}}),
        Checkpoint("phimoe-fused", "F32", KINDS["phimoe fused"],
                   {"rope_scaling": {**LONG, **ROTARY}}, FEW),
        Checkpoint("phi3-mini-tiny", "F32", types=FEW),
        Checkpoint("phi4-mini-tiny", "BF16", types=FEW),
        Checkpoint("phi2-tiny", "F16", types=FEW),
        Checkpoint("phimoe-tiny", "BF16", types=FEW),
    )
}  # fmt: skip
CASES = [(name, type) for name, checkpoint in CHECKPOINTS.items() for type in checkpoint.types]


def importances(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """For every matrix of a file, in the shape that a mapping of them has."""
    random = np.random.default_rng(5)
    shapes = {t.name: tuple(map(int, reversed(t.shape))) for t in gguf.GGUFReader(path).tensors}
    return {
        name: random.uniform(0.01, 4, (*shape[:-2], shape[-1])).astype(np.float32)
        for name, shape in shapes.items()
        if len(shape) > 1 and name not in ("token_embd.weight", "output.weight")
    }


def make_all(folder: Path) -> None:
    """Checkpoints, what they are as files of their own numbers, and upstream's of these."""
    jobs = []
    for name, checkpoint in CHECKPOINTS.items():
        whole, imatrix = folder / f"{name}.gguf", folder / f"{name}.npz"
        convert(checkpoint.write(folder), whole, checkpoint.stored)
        np.savez(imatrix, **importances(whole))
        for type in checkpoint.types:
            job = {
                "source": str(whole),
                "out": str(folder / f"{name}-{type}.gguf"),
                "file_type": FILE_TYPE[type],
            }
            jobs.append({**job, "imatrix": str(imatrix)} if type in NEED_IMATRIX else job)
    run_jobs(folder, jobs[::2], jobs[1::2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_once(shared_folder(tmp_path_factory, "upstream-of-checkpoints"), make_all)


@pytest.mark.parametrize(("name", "type"), CASES)
def test_one_pass_writes_what_two_do(name: str, type: str, folder: Path, tmp_path: Path) -> None:
    whole, out = folder / f"{name}.gguf", tmp_path / "ours.gguf"
    imatrix = importances(whole) if type in NEED_IMATRIX else None
    checkpoint = folder / name if (folder / name).exists() else DATA / name
    planned = convert(checkpoint, out, type, imatrix=imatrix, threads=2, dry_run=True)
    assert not out.exists()
    report = convert(checkpoint, out, type, imatrix=imatrix, threads=2)
    expected = (folder / f"{name}-{type}.gguf").read_bytes()
    assert out.read_bytes() == expected
    assert planned.nbytes == report.nbytes == len(expected)
    quantize_model(whole, tmp_path / "two.gguf", type, imatrix=imatrix, threads=2)
    assert (tmp_path / "two.gguf").read_bytes() == expected


def test_a_checkpoints_shards_are_no_parts_to_keep(tmp_path: Path) -> None:
    options = QuantizeOptions(keep_split=True)
    with pytest.raises(UnsupportedError, match=r"keep_split: the shards.*Set split_max_bytes"):
        convert(DATA / "phi3-mini-tiny", tmp_path / "out.gguf", "Q8_0", options=options)
    assert not list(tmp_path.iterdir())


def test_exceptions_hold_in_one_pass(folder: Path, tmp_path: Path) -> None:
    whole = folder / "phimoe.gguf"
    exceptions: dict[str, Any] = {
        "imatrix": importances(whole),
        "overrides": {r"blk\.0\.ffn_down_exps": "IQ4_NL", "attn_(k|v)": "Q5_0"},
        "options": QuantizeOptions(output_type="Q8_0", max_memory=50_000),
        "threads": 2,
    }
    convert(folder / "phimoe", tmp_path / "one.gguf", "IQ4_XS", **exceptions)
    quantize_model(whole, tmp_path / "two.gguf", "IQ4_XS", **exceptions)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
