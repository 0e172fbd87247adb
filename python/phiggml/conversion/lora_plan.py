"""The plan of an adapter's conversion: every pair of matrices, known from headers alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.conversion.architecture import Architecture, ModelConfig
from phiggml.conversion.family import architecture_of
from phiggml.conversion.faults import Faults
from phiggml.conversion.fields import Fields, is_text
from phiggml.conversion.general import card_metadata
from phiggml.conversion.hub import parse_hub_id
from phiggml.conversion.jsonfile import read_object
from phiggml.conversion.lora_config import AdapterConfig, read_adapter_config
from phiggml.conversion.lora_match import EMBEDDING, LoraPart, PlannedPair, match_modules
from phiggml.conversion.lora_module import adapted_modules
from phiggml.conversion.model_card import read_model_card
from phiggml.conversion.naming import parse_model_id, title
from phiggml.conversion.safetensors import SafetensorsFile, StoredTensor
from phiggml.errors import FormatError, InputError, UnsupportedError

__all__ = ["LoraPlan", "plan_lora"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LoraPlan:
    """What an adapter's conversion will write; `str(plan)` is a table.

    Args:
        folder: the adapter.
        base: the folder with the base's config.json.
        architecture: of the base, and of the GGUF file.
        alpha: what the GGUF file's B @ A are multiplied by, divided by their rank.
        metadata: GGUF keys and values.
        pairs: in the order of the file.
        notes: what was left out or decided, as sentences.
    """

    folder: Path
    base: Path
    architecture: str
    alpha: float
    metadata: Mapping[str, Any]
    pairs: tuple[PlannedPair, ...]
    notes: tuple[str, ...]
    weights: SafetensorsFile

    def __str__(self) -> str:
        head = f"{self.folder} -> {self.architecture}: LoRA of {len(self.pairs)} tensors"
        keys = (f"{key} = {_shown(value)}" for key, value in self.metadata.items())
        return "\n".join([head, *map(str, self.pairs), *keys, *self.notes])

    def read(self, pair: PlannedPair) -> tuple[Matrix, Matrix]:
        """A and B as the file holds them: float32[*pair.a_shape], float32[*pair.b_shape].

        Raises:
            FormatError: they hold NaN or infinity, or do once they are scaled.

        Cost:
            Copies of both.
        """
        matrices = [self._matrices(part, pair) for part in pair.parts]
        if len(pair.shape) == 2:
            a, b = matrices[0]
            return (np.ascontiguousarray(a.T), b) if pair.target == EMBEDDING else (a, b)
        return np.stack([a for a, _ in matrices]), np.stack([b for _, b in matrices])

    def _matrices(self, part: LoraPart | None, pair: PlannedPair) -> tuple[Matrix, Matrix]:
        """A of a part [rank, inputs] and its B [outputs, rank], scaled, at the pair's rank."""
        if part is None:
            return np.zeros(pair.a_shape[1:], np.float32), np.zeros(pair.b_shape[1:], np.float32)
        a, b = self._values(part.module.a), self._values(part.module.b)
        if part.experts:
            a = a.reshape(part.experts, part.rank, -1)[part.expert]
            b = b.reshape(b.shape[0], part.rank, part.experts)[:, :, part.expert]
        if part.transposed:
            a, b = b.T, a.T
        if part.rows is not None:
            b = b[slice(*part.rows)]
        multiplier = _multiplier(part, pair, self.alpha)
        if multiplier != 1.0:
            with np.errstate(over="ignore"):
                b = (b.astype(np.float64) * multiplier).astype(np.float32)
            _require_finite(b, part.module.b)
        missing = pair.rank - part.rank
        return (
            np.ascontiguousarray(np.pad(a, ((0, missing), (0, 0)))),
            np.ascontiguousarray(np.pad(b, ((0, 0), (0, missing)))),
        )

    def _values(self, stored: StoredTensor) -> Matrix:
        data = self.weights.data(stored)
        if stored.dtype == "BF16":
            # bf16 is the upper half of float32.
            values = (data.view("<u2").astype("<u4") << 16).view("<f4")
        else:
            values = data.view("<f2" if stored.dtype == "F16" else "<f4").astype("<f4")
        _require_finite(values, stored)
        return values.reshape(stored.shape)


def _shown(value: Any) -> str:
    return repr(value.item() if isinstance(value, np.generic) else value)


def plan_lora(
    adapter: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    model_id: str | None = None,
) -> LoraPlan:
    """Plans the conversion of an adapter; nothing is written and no weights are read.

    Args:
        adapter: a folder with adapter_config.json and adapter_model.safetensors.
        base: a folder with the base's config.json; None takes the one that the adapter names.
        model_id: what the adapter is called, if not as its folder is: "owner/name".

    Returns:
        The plan, which `pg.convert_lora` carries out.

    Raises:
        FileNotFoundError: there is no such folder.
        InputError: it is not known which model is the base.
        FormatError: the adapter breaks its format or does not fit the base; all faults are named
            together.
        UnsupportedError: it is no plain LoRA, or GGUF has no place for what it holds.

    Cost:
        Reads headers only.
    """
    folder = Path(adapter)
    faults = Faults("convert-lora")
    document = _read_config(folder)
    settings = read_adapter_config(Fields(document, folder / _CONFIG, faults))
    faults.raise_if_any(folder)
    base_folder = _base_folder(folder, settings, base)
    base_model = _read_base(base_folder, faults)
    weights = _open_weights(folder)
    try:
        pairs, left_out = _matched(weights, base_model, settings, faults=faults)
    except BaseException:
        weights.close()
        raise
    architecture = base_model[0].gguf_name
    alpha = _file_alpha(pairs)
    own = folder.resolve().name if model_id is None else model_id
    metadata = {
        "general.architecture": architecture,
        **_general_metadata(own, read_model_card(folder), settings),
        "adapter.lora.alpha": np.float32(alpha),
        "general.quantization_version": np.uint32(_core.recipe.quantization_version()),
    }
    notes = (*left_out, *_notes(pairs, document, alpha=alpha))
    return LoraPlan(
        folder,
        base_folder,
        architecture,
        alpha,
        MappingProxyType(metadata),
        pairs,
        notes,
        weights,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.exists():
        raise FileNotFoundError(f"convert-lora: {folder}: there is no such folder.")
    path = folder / _CONFIG
    if not folder.is_dir() or not path.exists():
        raise FormatError(
            f"convert-lora: {folder}: holds no {_CONFIG}. Give the folder that "
            "PeftModel.save_pretrained wrote.",
            path=str(folder),
        )
    return read_object(path)


def _base_folder(
    folder: Path, settings: AdapterConfig, base: str | os.PathLike[str] | None
) -> Path:
    if base is not None:
        found = Path(base)
        if not found.exists():
            raise FileNotFoundError(f"convert-lora: base {found}: there is no such folder.")
    elif settings.base is None or "\0" in settings.base or not Path(settings.base).is_dir():
        named = "names no base" if settings.base is None else f"names {settings.base!r} as its base"
        raise InputError(
            f"convert-lora: {folder / _CONFIG}: {named}, and there is no such folder here. Pass "
            "base= (--base): a folder with the base model's config.json, or its id on the hub; "
            "weights are not needed."
        )
    else:
        found = Path(settings.base)
    if not (found / "config.json").is_file():
        raise FormatError(
            f"convert-lora: base {found}: holds no config.json. Give the base model's folder.",
            path=str(found),
        )
    return found


def _read_base(folder: Path, faults: Faults) -> tuple[Architecture, ModelConfig]:
    path = folder / "config.json"
    document = read_object(path)
    architecture = architecture_of(document, path)
    config = architecture.read_config(Fields(document, path, faults))
    # Wrong dimensions would only make every tensor look wrong.
    faults.raise_if_any(folder)
    return architecture, config


def _open_weights(folder: Path) -> SafetensorsFile:
    path = folder / _WEIGHTS
    if path.exists():
        return SafetensorsFile(path)
    for name in _PICKLES:
        if (folder / name).exists():
            raise UnsupportedError(
                f"convert-lora: {folder / name}: pickled weights are never loaded, because a "
                "pickle can run code. Save the adapter as safetensors first, where you trust it: "
                "PeftModel.save_pretrained(folder)."
            )
    raise FormatError(f"convert-lora: {folder}: holds no {_WEIGHTS}.", path=str(folder))


def _matched(
    weights: SafetensorsFile,
    base: tuple[Architecture, ModelConfig],
    settings: AdapterConfig,
    *,
    faults: Faults,
) -> tuple[tuple[PlannedPair, ...], tuple[str, ...]]:
    modules, others = adapted_modules(weights.tensors, faults)
    architecture, config = base
    pairs, left_out = match_modules(
        architecture, config, settings, modules=modules, others=others, faults=faults
    )
    if not pairs and not faults.sentences:
        of = f" of the text part of {architecture.name}" if modules else ""
        faults.add(weights.path, f"holds no LoRA matrix{of}.")
    faults.raise_if_any(weights.path.parent)
    return pairs, left_out


def _parts(pairs: tuple[PlannedPair, ...]) -> Iterator[tuple[LoraPart, PlannedPair]]:
    for pair in pairs:
        for part in pair.parts:
            if part is not None:
                yield part, pair


def _file_alpha(pairs: tuple[PlannedPair, ...]) -> float:
    """The one alpha of the file: that of most modules, whose numbers then stay as they are."""
    counts = Counter(part.scaling.file_alpha for part, _ in _parts(pairs))
    return counts.most_common(1)[0][0]


def _multiplier(part: LoraPart, pair: PlannedPair, alpha: float) -> float:
    """What B is multiplied by, so that the file's one alpha scales this part as PEFT does."""
    if part.scaling.file_alpha == alpha and part.rank == pair.rank:
        return 1.0
    return part.scaling.factor * pair.rank / alpha


def _notes(
    pairs: tuple[PlannedPair, ...], document: Mapping[str, Any], *, alpha: float
) -> Iterator[str]:
    scaled = {p.module.name for p, pair in _parts(pairs) if _multiplier(p, pair, alpha) != 1.0}
    if scaled:
        yield (
            f"B of {len(scaled)} modules is multiplied, because GGUF has one alpha for all: "
            f"{alpha:g}."
        )
    idle = sum(pair.parts.count(None) for pair in pairs)
    if idle:
        yield f"{idle} matrices of experts without LoRA become zeros, which change nothing."
    if document.get("fan_in_fan_out"):
        yield "fan_in_fan_out has no effect, as in PEFT: no module of the Phi family is turned so."


def _general_metadata(own: str, card: dict[str, Any], settings: AdapterConfig) -> dict[str, Any]:
    """In the order of llama.cpp's converter."""
    name = parse_model_id(own).name if is_text(own) else None
    metadata: dict[str, Any] = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.name": title(name or "Adapter"),
        **card_metadata(card),
    }
    base = settings.base if settings.base is not None else card.get("base_model")
    if isinstance(base, str) and parse_hub_id(base) is not None and not Path(base).exists():
        metadata.update(_base_metadata(base))
    return metadata


def _base_metadata(model_id: str) -> dict[str, Any]:
    model_id = model_id.partition("@")[0]
    parts = parse_model_id(model_id)
    found = {
        "name": title(parts.name) if parts.name else None,
        "version": parts.version,
        "organization": title(parts.organization) if parts.organization else None,
        "repo_url": f"https://huggingface.co/{model_id}",
    }
    keys = {f"general.base_model.0.{key}": value for key, value in found.items() if value}
    return {"general.base_model.count": np.uint32(1), **keys}


def _require_finite(values: Matrix, stored: StoredTensor) -> None:
    if not np.isfinite(values).all():
        raise FormatError(
            f"convert-lora: {stored.path}: tensor {stored.name!r} holds NaN or infinity, or does "
            "once it is scaled. Train or save the adapter again.",
            path=str(stored.path),
            offset=stored.offset,
        )
