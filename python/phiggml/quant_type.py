"""The types that arrays are quantized to."""

from __future__ import annotations

from functools import cache

from phiggml import _core
from phiggml.errors import InputError

__all__ = ["QuantType", "quant_types"]


@cache
def _facts() -> dict[str, _core.quant.QuantTypeInfo]:
    return {info.name: info for info in _core.quant.all_types()}


class QuantType(str):
    """The type of an array's blocks, by its canonical name: `QuantType("q4_k") == "Q4_K"`.

    Attributes:
        name: the canonical name.
        id: ggml's number for it, as GGUF files hold it.
        block_size: numbers in a block; the last axis is a multiple of it.
        block_bytes: bytes of a block.
        bits_per_weight: 8 * block_bytes / block_size.
        requires_imatrix: quantizing needs an importance matrix.
        can_quantize: `quantize` takes it.
        can_dequantize: `dequantize` takes it.

    Raises:
        InputError: there is no type of this name.

    Source:
        ggml's own type table, asked at run time.

    Example:
        >>> QuantType("q4_k").bits_per_weight
        4.5
    """

    __slots__ = ()

    def __new__(cls, name: str) -> QuantType:
        if isinstance(name, cls):
            return name
        canonical = name.upper() if isinstance(name, str) else None
        if canonical not in _facts():
            raise InputError(f"quant type: {name!r} is unknown. Known: {', '.join(quant_types())}.")
        return super().__new__(cls, canonical)

    @property
    def _facts(self) -> _core.quant.QuantTypeInfo:
        return _facts()[str(self)]

    @property
    def name(self) -> str:
        return str(self)

    @property
    def id(self) -> int:
        return self._facts.id

    @property
    def block_size(self) -> int:
        return self._facts.block_size

    @property
    def block_bytes(self) -> int:
        return self._facts.block_bytes

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_size

    @property
    def requires_imatrix(self) -> bool:
        return self._facts.requires_imatrix

    @property
    def can_quantize(self) -> bool:
        return self._facts.can_quantize

    @property
    def can_dequantize(self) -> bool:
        return self._facts.can_dequantize

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of `n` numbers.

        Args:
            n: numbers in the row.

        Returns:
            The bytes that its blocks take.

        Raises:
            InputError: `n` is no multiple of the block size.
        """
        if n % self.block_size:
            raise InputError(
                f"{self}: a row of {n} numbers is no multiple of its block of "
                f"{self.block_size}. Pad the last axis, or choose a type of smaller blocks."
            )
        return n // self.block_size * self.block_bytes

    def __repr__(self) -> str:
        return f"QuantType({str(self)!r})"

    def __str__(self) -> str:
        return str.__str__(self)

    def __reduce__(self) -> tuple[type[QuantType], tuple[str]]:
        return QuantType, (str(self),)


def quant_types() -> list[QuantType]:
    """Lists the types that `quantize` and `dequantize` take, in the order of ggml's numbers.

    Returns:
        All 28 of them, each a QuantType.

    Source:
        ggml's own type table, asked at run time.

    Example:
        >>> len(quant_types()), "Q4_K" in quant_types()
        (28, True)
    """
    return [QuantType(info.name) for info in _facts().values() if info.can_quantize]
