import numpy as np
import numpy.typing as npt

from phiggml._core.grammar import Grammar
from phiggml._core.model import Model

class SamplingSettings:
    def __init__(self) -> None: ...
    temperature: float
    dynatemp_range: float
    dynatemp_exponent: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: list[str]
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    penalty_last_n: int
    logit_bias: list[tuple[int, float]]
    seed: int

class Sampler:
    def __init__(
        self, settings: SamplingSettings, model: Model, grammar: Grammar | None
    ) -> None: ...
    def accept(self, tokens: npt.NDArray[np.int32]) -> None: ...
    def sample(self, logits: npt.NDArray[np.float32]) -> int: ...

def logprobs(
    logits: npt.NDArray[np.float32], token: int, k: int
) -> tuple[float, list[tuple[int, float]]]: ...
