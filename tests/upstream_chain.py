"""llama.cpp's own samplers in the order of its defaults, called by ctypes past our code."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import cache
from types import TracebackType

import numpy as np
import numpy.typing as npt

import phiggml as pg
from phiggml.runtime import library_folder

CANDIDATE = np.dtype([("token", np.int32), ("logit", np.float32), ("p", np.float32)])
_I32, _F32, _U32, _P = ctypes.c_int32, ctypes.c_float, ctypes.c_uint32, ctypes.c_void_p
_MAKERS = {
    "logit_bias": [_I32, _I32, _P],
    "penalties": [_I32, _I32, _F32, _F32, _F32],
    "dry": [_P, _F32, _F32, _I32, _I32, _P, ctypes.c_size_t],
    "top_n_sigma": [_F32],
    "top_k": [_I32],
    "typical": [_F32, ctypes.c_size_t],
    "top_p": [_F32, ctypes.c_size_t],
    "min_p": [_F32, ctypes.c_size_t],
    "xtc": [_F32, _F32, ctypes.c_size_t, _U32],
    "temp": [_F32],
    "temp_ext": [_F32, _F32, _F32],
    "greedy": [],
    "dist": [_U32],
    "mirostat": [_I32, _U32, _F32, _F32, _I32],
    "mirostat_v2": [_U32, _F32, _F32],
}


class _Chain(ctypes.Structure):
    _fields_ = [("no_perf", ctypes.c_bool)]


class _Array(ctypes.Structure):
    _fields_ = [
        ("data", _P),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    ]


@cache
def _llama() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_folder() / "libphiggml-llama.so"))
    library.llama_sampler_chain_init.argtypes = [_Chain]
    library.llama_sampler_chain_init.restype = _P
    library.llama_sampler_chain_add.argtypes = [_P, _P]
    library.llama_sampler_apply.argtypes = [_P, ctypes.POINTER(_Array)]
    library.llama_sampler_accept.argtypes = [_P, _I32]
    library.llama_sampler_free.argtypes = [_P]
    for name, types in _MAKERS.items():
        maker = getattr(library, f"llama_sampler_init_{name}")
        maker.argtypes, maker.restype = types, _P
    return library


class UpstreamChain:
    """A chain; DRY is without sequence breakers, which take a model."""

    def __init__(self, s: pg.Sampling, n_vocab: int) -> None:
        self._llama = _llama()
        self._chain = self._llama.llama_sampler_chain_init(_Chain(True))
        self._array = _Array()
        self._fresh = np.zeros(n_vocab, CANDIDATE)
        self._fresh["token"] = np.arange(n_vocab)
        self._candidates = self._fresh.copy()
        self._add_edits(s, n_vocab)
        if s.mirostat:
            self._add("temp", s.temperature)
            if s.mirostat == 1:
                self._add("mirostat", n_vocab, s.seed, s.mirostat_tau, s.mirostat_eta, 100)
            else:
                self._add("mirostat_v2", s.seed, s.mirostat_tau, s.mirostat_eta)
            return
        self._add("top_n_sigma", s.top_n_sigma)
        self._add("top_k", s.top_k)
        self._add("typical", s.typical_p, 0)
        self._add("top_p", s.top_p, 0)
        self._add("min_p", s.min_p, 0)
        self._add("xtc", s.xtc_probability, s.xtc_threshold, 0, s.seed)
        self._add("temp_ext", s.temperature, s.dynatemp_range, s.dynatemp_exponent)
        if s.temperature == 0 and s.dynatemp_range == 0:
            self._add("greedy")
        else:
            self._add("dist", s.seed)

    def _add_edits(self, s: pg.Sampling, n_vocab: int) -> None:
        biases = np.array(list(s.logit_bias), [("token", np.int32), ("bias", np.float32)])
        self._add("logit_bias", n_vocab, len(biases), biases.ctypes.data)
        penalties = s.repeat_penalty, s.frequency_penalty, s.presence_penalty
        self._add("penalties", n_vocab, s.penalty_last_n, *penalties)
        dry = s.dry_multiplier, s.dry_base, s.dry_allowed_length, s.dry_penalty_last_n
        self._add("dry", None, *dry, None, 0)

    def _add(self, name: str, *values: object) -> None:
        made = getattr(self._llama, f"llama_sampler_init_{name}")(*values)
        self._llama.llama_sampler_chain_add(self._chain, made)

    def offer(self, logits: npt.NDArray[np.float32]) -> None:
        """Fills the array of all tokens, which llama_sampler_sample does for each token too."""
        self._fresh["logit"] = logits
        self.refill()

    def refill(self) -> None:
        """Fills it with the same logits again."""
        np.copyto(self._candidates, self._fresh)
        address = self._candidates.ctypes.data
        self._array = _Array(address, len(self._candidates), -1, False)

    def choose(self) -> int:
        """The token that the chain chooses from what was offered, which it accepts."""
        self._llama.llama_sampler_apply(self._chain, ctypes.byref(self._array))
        token = int(self.left()[self._array.selected]["token"])
        self._llama.llama_sampler_accept(self._chain, token)
        return token

    def left(self) -> npt.NDArray[np.void]:
        """The candidates that are left, with the probabilities of the last softmax."""
        begin = (self._array.data - self._candidates.ctypes.data) // CANDIDATE.itemsize
        return self._candidates[begin : begin + self._array.size]

    def accept(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self._llama.llama_sampler_accept(self._chain, int(token))

    def close(self) -> None:
        self._llama.llama_sampler_free(self._chain)

    def __enter__(self) -> UpstreamChain:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
