from typing import Any

import numpy as np
import numpy.typing as npt

class QuantTypeInfo:
    @property
    def id(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def block_size(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...
    @property
    def requires_imatrix(self) -> bool: ...
    @property
    def can_quantize(self) -> bool: ...
    @property
    def can_dequantize(self) -> bool: ...

def all_types() -> list[QuantTypeInfo]: ...
def quantize_rows(
    x: npt.NDArray[Any],
    type_id: int,
    out: npt.NDArray[np.uint8],
    imatrix: npt.NDArray[np.float32] | None,
    threads: int,
    nonfinite_ok: bool,
) -> None: ...
def dequantize_rows(
    data: npt.NDArray[np.uint8],
    type_id: int,
    n: int,
    out: npt.NDArray[Any],
    threads: int,
) -> None: ...
def multiply_rows(
    x: npt.NDArray[Any],
    data: npt.NDArray[np.uint8],
    type_id: int,
    n: int,
    out: npt.NDArray[np.float32],
    threads: int,
) -> None: ...
def error_sums(
    x: npt.NDArray[Any],
    type_id: int,
    imatrix: npt.NDArray[np.float32] | None,
    threads: int,
) -> dict[str, float]: ...
def from_dlpack(capsule: object) -> tuple[npt.NDArray[Any], bool]: ...
def kernel_sets() -> list[str]: ...
def kernel_set() -> str: ...
def use_kernel_set(name: str) -> None: ...
