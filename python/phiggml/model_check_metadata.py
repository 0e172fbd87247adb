"""Values of a model's metadata, read with the types that llama.cpp takes; faults are gathered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from phiggml.errors import FormatError
from phiggml.gguf import GGUFFile, GGUFStrings, GGUFValue

__all__ = ["CONVERT", "CheckedMetadata", "ModelFaults"]

CONVERT = "Convert the checkpoint anew."

MOST = 2**32 - 1

# A damaged model of 512 layers can have thousands; past this many they are only counted.
_SHOWN = 100


class ModelFaults:
    """Gathers what is wrong with a model, so that one error names it all."""

    def __init__(self, operation: str, path: str) -> None:
        self._operation = operation
        self._path = path
        self._sentences: dict[str, None] = {}  # in order, each once

    def add(self, where: str, rule: str, remedy: str = CONVERT) -> None:
        """One more fault; `where` is a key or a tensor's name, `rule` begins with what it is."""
        self._sentences[f"{where} {rule}. {remedy}"] = None

    def __len__(self) -> int:
        return len(self._sentences)

    def raise_if_any(self) -> None:
        """Raises one FormatError for all of them.

        Raises:
            FormatError: there is a fault.
        """
        count = len(self._sentences)
        if count == 0:
            return
        sentences = list(self._sentences)
        if count == 1:
            raise FormatError(f"{self._operation}: {sentences[0]}", path=self._path)
        lines = [f"  {i}. {sentence}" for i, sentence in enumerate(sentences[:_SHOWN], 1)]
        if count > _SHOWN:
            lines.append(f"  ... and {count - _SHOWN} more.")
        text = "\n".join(lines)
        raise FormatError(
            f"{self._operation}: {self._path}: {count} faults:\n{text}", path=self._path
        )


class CheckedMetadata:
    """The metadata of a model.

    Each method gives a value, or None when it is absent or not what it must be; the latter is a
    fault then. Keys that begin with a dot are those of the architecture.

    Source:
        llama_model_loader::get_key, get_arr and get_key_or_arr in llama.cpp, which refuse a value
        of any other type than the one that they are called with.
    """

    def __init__(self, file: GGUFFile, architecture: str, faults: ModelFaults) -> None:
        self._metadata = file.metadata
        self._architecture = architecture
        self.faults = faults

    def name(self, key: str) -> str:
        """The whole key."""
        return self._architecture + key if key.startswith(".") else key

    def has(self, key: str) -> bool:
        """Whether the file has the key, whatever its value."""
        return self.name(key) in self._metadata

    def require(self, *keys: str) -> None:
        """Those that are absent are faults."""
        for key in keys:
            if not self.has(key):
                self.faults.add(self.name(key), "is missing: the model cannot be built without it")

    def fault(self, key: str, rule: str, remedy: str = CONVERT) -> None:
        """A fault of a key."""
        self.faults.add(self.name(key), rule, remedy)

    def count(self, key: str, *, least: int = 0, most: int = MOST) -> int | None:
        """A number that says how many there are of something, from `least` to `most`."""
        value = self._scalar(key, "UINT32", "one number of type UINT32")
        return None if value is None else self._in_range(key, int(value), least, most)

    def counts(self, key: str, n_layer: int, *, most: int = MOST) -> tuple[int, ...] | None:
        """The same for each layer, from one number or an array of as many."""
        exact = self._exact(key)
        if exact is None:
            return None
        if not _is_array(exact.value):
            value = self.count(key, most=most)
            return None if value is None else (value,) * n_layer
        if exact.type not in ("UINT32", "INT32") or len(exact.value) != n_layer:
            self.fault(
                key,
                f"is {_described(exact)}: it must be one number of type UINT32, or one for each of "
                f"the {n_layer} layers",
            )
            return None
        values = tuple(map(int, exact.value))
        offender = next((value for value in values if not 0 <= value <= most), None)
        if offender is not None:
            self._in_range(key, offender, 0, most)
            return None
        return values

    def number(self, key: str) -> float | None:
        """A FLOAT32."""
        value = self._scalar(key, "FLOAT32", "one number of type FLOAT32")
        return None if value is None else float(value)

    def flag(self, key: str) -> bool | None:
        """A BOOL."""
        value = self._scalar(key, "BOOL", "true or false, of type BOOL")
        return None if value is None else bool(value)

    def text(self, key: str) -> str | None:
        """A STRING."""
        value = self._scalar(key, "STRING", "a text")
        return None if value is None else str(value)

    def texts(self, key: str) -> GGUFStrings | None:
        """An array of STRING, not decoded yet."""
        exact = self._exact(key)
        if exact is None:
            return None
        if not isinstance(exact.value, GGUFStrings):
            self.fault(key, f"is {_described(exact)}: it must be an array of texts")
            return None
        return exact.value

    def numbers(self, key: str, *types: str) -> np.ndarray[Any, Any] | None:
        """An array of numbers of one of these types."""
        exact = self._exact(key)
        if exact is None:
            return None
        if not _is_array(exact.value) or exact.type not in types:
            self.fault(key, f"is {_described(exact)}: it must be an array of {' or '.join(types)}")
            return None
        return np.asarray(exact.value)

    def _exact(self, key: str) -> GGUFValue | None:
        return self._metadata.exact(self.name(key)) if self.has(key) else None

    def _scalar(self, key: str, type: str, wanted: str) -> Any:
        exact = self._exact(key)
        if exact is None:
            return None
        if _is_array(exact.value) or exact.type != type:
            self.fault(key, f"is {_described(exact)}: it must be {wanted}")
            return None
        return exact.value

    def _in_range(self, key: str, value: int, least: int, most: int) -> int | None:
        if least <= value <= most:
            return value
        self.fault(key, f"is {value}: it must be {least} to {most}")
        return None


def _is_array(value: object) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


def _described(exact: GGUFValue) -> str:
    """A value and its type, in a few words."""
    if _is_array(exact.value):
        return f"an array of {len(exact.value)} {exact.type}"
    value = exact.value
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} ({exact.type})"
    shown = repr(value)
    return f"{shown if len(shown) <= 40 else shown[:37] + '...'} ({exact.type})"
