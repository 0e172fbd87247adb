import numpy as np
import numpy.typing as npt

def propose(tokens: npt.NDArray[np.int32], ngram: int, n_most: int) -> npt.NDArray[np.int32]: ...
