import numpy as np
import numpy.typing as npt

from phiggml._core.gguf import File
from phiggml._core.model import Model
from phiggml._core.session import Session

class LoraAdapter:
    def __init__(self, model: Model, file: File, n_pairs: int) -> None: ...

def set_lora(session: Session, loras: list[tuple[LoraAdapter, float]]) -> None: ...
def set_control_vector(session: Session, rows: npt.NDArray[np.float32]) -> None: ...
