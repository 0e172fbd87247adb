"""Tensor data of big-endian GGUF files, turned into the bytes that everything else here reads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from phiggml.errors import UnsupportedError
from phiggml.quant_type import QuantType

__all__ = ["little_endian_bytes"]

_NUMBER_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I8": 1, "I16": 2, "I32": 4, "I64": 8}

# Where in a block the two-byte numbers lie; all else is single bytes.
# Source: the types that the gguf package's gguf_convert_endian turns round.
_HALVES_IN_BLOCK: dict[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q6_K": (208,),
    "MXFP4": (),
    "NVFP4": (),
}


def little_endian_bytes(data: npt.NDArray[np.uint8], type: QuantType) -> npt.NDArray[np.uint8]:
    """The bytes of a big-endian tensor as a little-endian file has them.

    Args:
        data: uint8[..., row_bytes], C-contiguous.
        type: the tensor's type.

    Returns:
        uint8[..., row_bytes], a copy.

    Raises:
        UnsupportedError: nobody has said how the type lies in a big-endian file.

    Cost:
        One pass.
    """
    size = _NUMBER_BYTES.get(type)
    if size is not None:
        little: npt.NDArray[np.uint8] = data.view(f">u{size}").astype(f"<u{size}").view(np.uint8)
        return little
    halves = _HALVES_IN_BLOCK.get(type)
    if halves is None:
        raise UnsupportedError(
            f"GGUFTensor: {type} in a big-endian file: no tool defines its bytes there. "
            f"Known: {', '.join([*_NUMBER_BYTES, *_HALVES_IN_BLOCK])}."
        )
    blocks: npt.NDArray[np.uint8] = data.reshape(-1, type.block_bytes).copy()
    for offset in halves:
        blocks[:, [offset, offset + 1]] = blocks[:, [offset + 1, offset]]
    return blocks.reshape(data.shape)
