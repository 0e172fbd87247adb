import numpy as np
import numpy.typing as npt

from phiggml._core.session import Session

def embed(
    session: Session, texts: list[npt.NDArray[np.int32]], pooling: str, normalize: bool
) -> npt.NDArray[np.float32]: ...
