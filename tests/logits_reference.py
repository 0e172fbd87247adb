"""The checkpoints with known logits, and how far logits are from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

import phiggml as pg

DATA = Path(__file__).parent / "data"
NANO = Path(__file__).parent.parent / "examples" / "phi3-nano"

Logits = npt.NDArray[np.float32]
TokenIds = npt.NDArray[np.int32]

BOUND_F32 = 1e-5
# GELU through a table of half-precision numbers.
BOUND_GELU = 1e-3
# Flash attention accumulates in half precision, and so does a half-precision cache.
BOUND_F16 = 2e-3


@dataclass(frozen=True)
class Kind:
    """A checkpoint: where its long rope changes sides, its window, and the contexts to try."""

    name: str
    line: int | None = None
    window: int | None = None
    contexts: tuple[int, ...] = (512,)
    bound: float = BOUND_F32

    @property
    def folder(self) -> Path:
        return NANO if self.name == NANO.name else DATA / self.name

    def reference(self) -> dict[str, npt.NDArray[np.float32]]:
        with np.load(DATA / f"logits_{self.name}.npz") as arrays:
            return dict(arrays)


def _at_line(name: str) -> Kind:
    return Kind(name, line=128, contexts=(128, 512, 4096))


def _long(name: str) -> Kind:
    """As released: the line is at 4096 of 131072 tokens."""
    return Kind(name, contexts=(512, 4096))


KINDS = {
    kind.name: kind
    for kind in (
        Kind("phi3-nano"),
        Kind("phi3-mini-tiny"),
        Kind("phi3-medium-tiny"),
        Kind("phi4-tiny"),
        Kind("phi4v-tiny"),
        Kind("phi1.5-tiny", bound=BOUND_GELU),
        Kind("phi2-tiny", bound=BOUND_GELU),
        _long("phi3.5-mini-tiny"),
        _long("phi3v-tiny"),
        _long("phi4mm-tiny"),
        Kind("phi3-window-tiny", window=64, contexts=(64, 256, 2048)),
        Kind("slimmoe-tiny", window=64, contexts=(64, 256, 2048)),
        _at_line("phi3-128k-tiny"),
        _at_line("phi4-mini-tiny"),
        _at_line("phimoe-tiny"),
        _at_line("phimoe-hf-tiny"),
    )
}
LINE_KINDS = [name for name, kind in KINDS.items() if kind.line]
WINDOW_KINDS = [name for name, kind in KINDS.items() if kind.window]


def lengths(reference: dict[str, npt.NDArray[np.float32]]) -> list[int]:
    """The lengths of the texts, shortest first."""
    names = [name for name in reference if name.startswith("tokens_")]
    return sorted(int(name.removeprefix("tokens_")) for name in names)


def longest(reference: dict[str, npt.NDArray[np.float32]]) -> TokenIds:
    tokens: TokenIds = reference[f"tokens_{lengths(reference)[-1]}"].astype(np.int32)
    return tokens


def nrmse(found: Logits, truth: Logits) -> float:
    """rms(found - truth) / rms(truth) over all logits."""
    difference = found.astype(np.float64) - truth
    return float(np.sqrt(np.mean(difference**2) / np.mean(truth.astype(np.float64) ** 2)))


def exact_session(
    model: pg.Model,
    *,
    n_ctx: int = 512,
    n_batch: int = 512,
    n_seq_max: int = 1,
    threads: int | None = None,
) -> pg.Session:
    """A session whose cache is F32, without flash attention."""
    return pg.Session(
        model,
        n_ctx=n_ctx,
        n_batch=n_batch,
        n_seq_max=n_seq_max,
        type_k="F32",
        type_v="F32",
        flash_attn=False,
        threads=threads,
    )
