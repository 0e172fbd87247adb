"""How a model is quantized, beyond its type."""

from __future__ import annotations

from dataclasses import dataclass

from phiggml.errors import InputError
from phiggml.number import integer

__all__ = ["QuantizeOptions"]


@dataclass(frozen=True)
class QuantizeOptions:
    """How a model is quantized, beyond its type.

    Attributes:
        pure: give every tensor the type's own tensor type; no mixture.
        allow_requantize: take quantized tensors as a source too (this loses quality).
        quantize_output: False leaves output.weight as it is.
        output_type: tensor type of output.weight (of the embedding, where both are one tensor).
        embedding_type: tensor type of token_embd.weight.
        max_memory: bytes of buffers in use at a time; None chooses.
        keep_split: a split source becomes as many parts, with the same tensors in each.
        split_max_bytes: begin a new part when one would grow beyond this; None writes one file.
        measure_error: tell the nrmse of each tensor that changes its type in the report.

    Raises:
        InputError: allow_requantize, keep_split, split_max_bytes or measure_error has a wrong
            value, or parts are both kept and made anew. What is wrong with the others is found
            when they are used.

    Example:
        >>> QuantizeOptions(output_type="Q8_0").pure
        False
    """

    pure: bool = False
    allow_requantize: bool = False
    quantize_output: bool = True
    output_type: str | None = None
    embedding_type: str | None = None
    max_memory: int | None = None
    keep_split: bool = False
    split_max_bytes: int | None = None
    measure_error: bool = False

    def __post_init__(self) -> None:
        for name in ("allow_requantize", "keep_split", "measure_error"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}: {getattr(self, name)!r}: it must be True or False.")
        most = self.split_max_bytes
        if most is None:
            return
        if integer(most, 1) is None:
            raise InputError(
                f"split_max_bytes: {most!r}: it must be a positive number of bytes, or None."
            )
        if self.keep_split:
            raise InputError(
                "split_max_bytes: keep_split decides where parts begin. Give one of the two."
            )
