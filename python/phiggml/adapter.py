"""What changes a model's computations at run time: LoRA adapters and control vectors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.adapter_check import check_container, check_lora, is_finite
from phiggml.errors import InputError, SessionError
from phiggml.gguf import GGUFFile
from phiggml.gguf_text import one_line
from phiggml.model import Model
from phiggml.model_check_metadata import ModelFaults
from phiggml.number import integer, real
from phiggml.runtime import forward_log

__all__ = ["ControlVector", "LoraAdapter", "ScaledAdapter"]

Vector: TypeAlias = npt.NDArray[np.float32]

MOST_LAYERS = 512
"""Of a model, as llama.cpp counts them."""


class LoraAdapter:
    """A LoRA adapter, loaded for one model; sessions of that model may share it.

    It changes each of its tensors by alpha / rank * B @ A, times the scale with which a session
    uses it. `pg.convert_lora` makes such files from PEFT's.

    Args:
        model: the model that it changes.
        path: its GGUF file.

    Raises:
        OSError: the file cannot be read.
        FormatError: it is no valid GGUF file or no adapter of this model: all faults together.
        UnsupportedError: an activated LoRA (aLoRA); one that changes an embedding which is the
            output, too, or a tensor of type NVFP4.
        DeviceError: a device has no room for it.
        SessionError: the model is closed.

    Cost:
        The file is read twice: once for the check, and into the memory of the devices that hold
        the tensors. The GIL is released while it is loaded.

    Source:
        llama_adapter_lora_init_from_file_ptr, on the very file that phiggml has open and has
        checked. A pair for a tensor that the graph of an architecture multiplies in its own way
        has no effect, as in llama.cpp; for the Phi family all have.

    Example:
        >>> import phiggml as pg
        >>> with pg.Model("phi3-nano.gguf") as model:
        ...     rows, columns = 2048, 256
        ...     with pg.GGUFWriter("adapter.gguf") as writer:
        ...         writer.metadata["general.architecture"] = "phi3"
        ...         writer.metadata["general.type"] = "adapter"
        ...         writer.metadata["adapter.type"] = "lora"
        ...         writer.metadata["adapter.lora.alpha"] = np.float32(8)
        ...         writer.add_tensor("output.weight.lora_a", np.ones((4, columns), np.float32))
        ...         writer.add_tensor("output.weight.lora_b", np.ones((rows, 4), np.float32))
        ...     with pg.LoraAdapter(model, "adapter.gguf") as adapter, pg.Session(model) as session:
        ...         session.set_lora([(adapter, 0.5)])
        ...         adapter.rank, adapter.alpha
        (4, 8.0)
    """

    def __init__(self, model: Model, path: str | os.PathLike[str]) -> None:
        if not isinstance(model, Model):
            raise InputError(f"lora: model is {type(model).__name__}: it must be a Model.")
        core_model = model._open()
        self.path = os.fsdecode(path)
        self._core: _core.adapter.LoraAdapter | None = None
        with GGUFFile(self.path, follow_split=False) as file:
            checked = check_lora(file, model)
            self.metadata: Mapping[str, Any] = MappingProxyType(
                {key: file.metadata[key] for key in file.metadata}
            )
            try:
                self._core = _core.adapter.LoraAdapter(
                    core_model, file._open_file(), len(checked.ranks)
                )
            finally:
                forward_log()
        self.alpha = checked.alpha
        self.ranks: Mapping[str, int] = MappingProxyType(dict(checked.ranks))

    @property
    def rank(self) -> int:
        """The greatest of its ranks."""
        return max(self.ranks.values())

    @property
    def n_tensors(self) -> int:
        """Tensors of the model that it changes."""
        return len(self.ranks)

    def close(self) -> None:
        """Frees it, once no session uses it any more; again does nothing."""
        self._core = None

    def __enter__(self) -> LoraAdapter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        closed = ", closed" if self._core is None else ""
        return (
            f"<LoraAdapter {self.path!r}, {self.n_tensors} tensors, rank {self.rank}, "
            f"alpha {self.alpha:g}{closed}>"
        )

    def _open(self) -> _core.adapter.LoraAdapter:
        if self._core is None:
            raise SessionError(f"lora: {self.path}: it is closed. Load it again.")
        return self._core


ScaledAdapter: TypeAlias = LoraAdapter | tuple[LoraAdapter, float]


class ControlVector(Mapping[int, Vector]):
    """Directions that are added to the outputs of a model's layers: layer -> float32[n_embd].

    Layers are counted from 0, and the first has none. Vectors add up, each with a scale:
    `0.5 * honest + 0.2 * short`.

    Args:
        path: a GGUF file of tensors "direction.1", "direction.2" and so on.

    Raises:
        OSError: the file cannot be read.
        FormatError: it is no valid GGUF file or no control vector: all faults together.
        UnsupportedError: it is big-endian, or of GGUF version 1.

    Cost:
        Reads the file.

    Source:
        common_control_vector_load in llama.cpp's common.cpp, and what llama-cvector-generator
        and repeng write.

    Example:
        >>> import phiggml as pg
        >>> vector = pg.ControlVector.from_arrays({1: np.ones(256, np.float32)})
        >>> with pg.Session("phi3-nano.gguf") as session:
        ...     session.set_control_vector(vector, scale=0.5)
        ...     session.set_control_vector(None)
        >>> (vector + vector)[1][0]
        np.float32(2.0)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with GGUFFile(os.fsdecode(path), follow_split=False) as file:
            self._directions = _read_directions(file)

    @classmethod
    def from_arrays(cls, directions: Mapping[int, npt.ArrayLike]) -> ControlVector:
        """Makes one of arrays.

        Args:
            directions: layer, from 1 -> float[n_embd].

        Returns:
            A ControlVector with copies of them as float32.

        Raises:
            InputError: there is none; a layer is no number from 1; or arrays are not flat, differ
                in length or are not finite in float32.
        """
        vector = cls.__new__(cls)
        vector._directions = {}
        for layer, values in directions.items():
            if not _is_layer(layer):
                raise InputError(
                    f"control vector: layer {layer!r} must be a number from 1 to {MOST_LAYERS - 1}."
                )
            vector._directions[int(layer)] = _direction(values, layer)
        lengths = sorted({len(values) for values in vector._directions.values()})
        if len(lengths) != 1 or lengths[0] == 0:
            found = "there are none" if not lengths else f"they have {lengths} numbers"
            raise InputError(
                f"control vector: directions must have as many numbers as the model's n_embd: "
                f"{found}."
            )
        return vector

    @property
    def n_embd(self) -> int:
        """Numbers in each direction."""
        return len(next(iter(self._directions.values())))

    def __getitem__(self, layer: int) -> Vector:
        return self._directions[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self._directions)

    def __len__(self) -> int:
        return len(self._directions)

    def __add__(self, other: ControlVector) -> ControlVector:
        if not isinstance(other, ControlVector):
            return NotImplemented
        total = dict(self)
        for layer, values in other.items():
            total[layer] = total[layer] + values if layer in total else values
        return ControlVector.from_arrays(total)

    def __mul__(self, scale: float) -> ControlVector:
        if real(scale) is None:
            return NotImplemented
        factor = np.float64(_finite_scale(scale, "control vector"))
        return ControlVector.from_arrays({i: factor * values for i, values in self.items()})

    __rmul__ = __mul__

    def __repr__(self) -> str:
        layers = f"layers {min(self)} to {max(self)}" if len(self) > 1 else f"layer {min(self)}"
        return f"<ControlVector of {layers}, {self.n_embd} numbers each>"

    def _rows(self, n_layer: int, n_embd: int) -> Vector:
        """float32[n_layer - 1, n_embd], zeros where it has no direction.

        Raises:
            InputError: the model has not so many layers, or other vectors.
        """
        if max(self) >= n_layer or self.n_embd != n_embd:
            raise InputError(
                f"set_control_vector: the vector has directions up to layer {max(self)}, of "
                f"{self.n_embd} numbers; the model has layers 0 to {n_layer - 1}, of {n_embd}. "
                "Take a vector of this model."
            )
        rows = np.zeros((n_layer - 1, n_embd), np.float32)
        for layer, values in self.items():
            rows[layer - 1] = values
        return rows


def scaled_loras(
    adapters: Sequence[ScaledAdapter],
) -> list[tuple[_core.adapter.LoraAdapter, float]]:
    """What a session's core takes.

    Raises:
        InputError: one is neither an adapter nor a pair of an adapter and a finite scale.
        SessionError: one is closed.
    """
    if not isinstance(adapters, Sequence):
        raise InputError(f"set_lora: adapters is {adapters!r}: it must be a sequence.")
    loras = []
    for given in adapters:
        adapter, scale = given if isinstance(given, tuple) and len(given) == 2 else (given, 1.0)
        if not isinstance(adapter, LoraAdapter):
            raise InputError(
                f"set_lora: {given!r} is neither a LoraAdapter nor a pair of one and its scale."
            )
        loras.append((adapter._open(), _finite_scale(scale, "set_lora")))
    return loras


def control_rows(
    vector: ControlVector | None,
    model: _core.model.Model,
    *,
    scale: float,
    first_layer: int | None,
    last_layer: int | None,
) -> Vector:
    """What a session's core takes: float32[n_layer - 1, n_embd], or no rows for no vector.

    Raises:
        InputError: an argument is of a wrong type or does not fit the model.
    """
    factor = _finite_scale(scale, "set_control_vector")
    first, last = (
        end if value is None else _layer(name, value, model.n_layer)
        for name, value, end in (
            ("first_layer", first_layer, 1),
            ("last_layer", last_layer, model.n_layer - 1),
        )
    )
    if vector is None:
        return np.empty((0, model.n_embd), np.float32)
    if not isinstance(vector, ControlVector):
        raise InputError(
            f"set_control_vector: vector is {type(vector).__name__}: it must be a ControlVector "
            "or None."
        )
    rows = vector._rows(model.n_layer, model.n_embd)
    with np.errstate(over="ignore"):
        rows *= np.float32(factor)
    rows[: first - 1] = 0
    rows[last:] = 0
    return rows


def _read_directions(file: GGUFFile) -> dict[int, Vector]:
    """Layer -> direction."""
    check_container(file, "control vector")
    remedy = "Pass a control vector, or make it anew."
    faults = ModelFaults("control vector", file.path)
    architecture = file.metadata.get("general.architecture")
    if architecture != "controlvector":
        faults.add(
            "general.architecture", f"is {architecture!r}: it must be 'controlvector'", remedy
        )
    directions: dict[int, Vector] = {}
    lengths = {tensor.shape for tensor in file.tensors.values()}
    for name, tensor in file.tensors.items():
        match = re.fullmatch(r"direction\.([1-9][0-9]{0,2})", name)
        if match is None or not _is_layer(int(match[1])):
            faults.add(
                one_line(name), "is no direction.1, direction.2 and so on of a layer", remedy
            )
        elif tensor.type != "F32" or len(tensor.shape) != 1 or len(lengths) != 1:
            faults.add(
                name,
                f"is {tensor.type} of shape {list(tensor.shape)}: directions are F32, flat and "
                "of one length",
                remedy,
            )
        elif not is_finite(tensor):
            faults.add(name, "holds NaN or infinity", remedy)
        else:
            directions[int(match[1])] = _frozen(tensor.read_rows().view("<f4")[0])
    if not file.tensors:
        faults.add("the file", "has no directions", remedy)
    faults.raise_if_any()
    return directions


def _direction(values: npt.ArrayLike, layer: int) -> Vector:
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, np.float32)
    except (TypeError, ValueError, OverflowError):
        array = np.empty((0, 0), np.float32)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise InputError(
            f"control vector: the direction of layer {layer} must be one axis of finite numbers."
        )
    return _frozen(array)


def _frozen(array: Vector) -> Vector:
    array = array.astype(np.float32)
    array.setflags(write=False)
    return array


def _is_layer(value: Any) -> bool:
    return integer(value, 1, MOST_LAYERS - 1) is not None


def _layer(name: str, value: Any, n_layer: int) -> int:
    if not _is_layer(value) or int(value) >= n_layer:
        raise InputError(
            f"set_control_vector: {name} is {value!r}: it must be a layer from 1 to {n_layer - 1}."
        )
    return int(value)


def _finite_scale(scale: Any, operation: str) -> float:
    value = real(scale)
    if value is None or not abs(value) <= float(np.finfo(np.float32).max):
        raise InputError(f"{operation}: a scale is {scale!r}: it must be a finite number.")
    return value
