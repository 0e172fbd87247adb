import numpy as np
import numpy.typing as npt

from phiggml._core.session import Session

class Pooling:
    none: Pooling
    mean: Pooling
    first: Pooling
    last: Pooling

def embed(
    session: Session, texts: list[npt.NDArray[np.int32]], pooling: Pooling, normalize: bool
) -> npt.NDArray[np.float32]: ...
