from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from phiggml._core.gguf import File

class RowSource:
    def __init__(
        self, *args: object, **kwargs: object
    ) -> None: ...  # always raises: it is made by these

def source_of_file(descriptor: int, name: str) -> RowSource: ...
def source_of_array(array: npt.NDArray[np.uint8], name: str) -> RowSource: ...
def source_of_gguf(file: File) -> RowSource: ...

class RowRun:
    def __init__(self, *, source: RowSource, offset: int, n_rows: int, type_id: int) -> None: ...

class Tensor:
    def __init__(
        self,
        *,
        name: str,
        type_id: int,
        n_per_row: int,
        runs: Sequence[RowRun],
        imatrix: npt.NDArray[np.float32] | None,
        rows_of_expert: int,
    ) -> None: ...

class Pipeline:
    def __init__(
        self, *, tensors: Sequence[Tensor], threads: int, max_memory: int, measure_error: bool
    ) -> None: ...
    def next(self) -> tuple[int, npt.NDArray[np.uint8]] | None: ...
    def close(self) -> None: ...
    def error_sums(self) -> list[dict[str, float]]: ...
    def seconds(self) -> tuple[float, float]: ...
