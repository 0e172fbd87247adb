import numpy as np
import numpy.typing as npt

from phiggml._core.model import Model

class SamplingSettings:
    def __init__(self) -> None: ...
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    penalty_last_n: int
    seed: int

class Sampler:
    def __init__(self, settings: SamplingSettings, n_vocab: int) -> None: ...
    def accept(self, tokens: npt.NDArray[np.int32]) -> None: ...

class SessionSettings:
    def __init__(self) -> None: ...
    n_ctx: int
    n_batch: int
    n_seq_max: int
    type_k: int
    type_v: int
    flash_attn: bool | None
    offload_kv: bool
    threads: int

class Session:
    def __init__(self, model: Model, settings: SessionSettings) -> None: ...
    def eval(
        self, tokens: npt.NDArray[np.int32], all_logits: bool, sequence: int
    ) -> npt.NDArray[np.float32]: ...
    def prefill(self, tokens: npt.NDArray[np.int32]) -> None: ...
    def sample(self, sampler: Sampler) -> int: ...
    def reset(self) -> None: ...
    def reset_sequence(self, sequence: int) -> None: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def n_ctx(self) -> int: ...
    def tokens(self, sequence: int) -> npt.NDArray[np.int32]: ...
