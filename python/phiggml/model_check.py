"""Whether a GGUF file is a model that llama.cpp survives: checked before it sees the file."""

from __future__ import annotations

from typing import Literal, TypeAlias

from phiggml.errors import UnsupportedError
from phiggml.gguf import GGUFFile
from phiggml.model_check_hyperparameters import check_hyperparameters
from phiggml.model_check_metadata import CheckedMetadata, ModelFaults
from phiggml.model_check_tensors import check_known_tensors, check_tensor_types
from phiggml.model_check_vocabulary import check_vocabulary

__all__ = ["Purpose", "check_model"]

Purpose: TypeAlias = Literal["load", "quantize"]

_OTHER_FILES = {
    "adapter": "a LoRA adapter",
    "imatrix": "an importance matrix",
    "mmproj": "the projector of a multimodal model",
}


def check_model(file: GGUFFile, *, purpose: Purpose) -> None:
    """Checks a model's metadata and tensors for all that llama.cpp aborts on or misreads.

    Architectures whose graphs are known here (the Phi family, llama, qwen2, gemma) are checked
    whole; of others, what llama.cpp assumes of every model.

    Args:
        file: the file, with all its parts.
        purpose: "load", to run it; or "quantize", to write it anew, for which little matters.

    Raises:
        FormatError: it is no model, or a damaged one: all faults together.
        UnsupportedError: numbers or a version that llama.cpp does not read.

    Cost:
        Decodes the tokens once, and reads the factors of rotary positions and tables of experts:
        about a tenth of a second for 262144 tokens.

    Source:
        The assertions and unchecked indices of llama.cpp's llama-model.cpp, llama-vocab.cpp,
        llama-model-loader.cpp and of ggml, b11549.
    """
    faults = ModelFaults(purpose, file.path)
    architecture = _architecture(file, faults)
    if purpose == "quantize":
        return
    _check_container(file)
    _check_parts(file, faults)
    if not file.tensors:
        faults.add("the file", "has no tensors: it holds a vocabulary only", "Pass the model.")
    faults.raise_if_any()
    metadata = CheckedMetadata(file, architecture, faults)
    check_tensor_types(file, faults, n_expert=metadata.count(".expert_count") or 0)
    metadata.text("general.name")
    metadata.count("general.file_type")
    if any(key.startswith(f"{architecture}.") for key in file.metadata):
        n_vocab = check_vocabulary(metadata)
        shape = check_hyperparameters(metadata, architecture)
        if shape is None or n_vocab is None:
            _check_embedding(file, n_vocab, faults)
        else:
            check_known_tensors(file, architecture, shape, n_vocab=n_vocab, faults=faults)
    faults.raise_if_any()


def _architecture(file: GGUFFile, faults: ModelFaults) -> str:
    general_type = file.metadata.get("general.type")
    other = _OTHER_FILES.get(general_type) if isinstance(general_type, str) else None
    if other is not None:
        faults.add("the file", f"holds {other}, no model", "Pass the model that it belongs to.")
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        faults.add(
            "the file", "names no architecture: it holds no model", "Pass a model, or convert one."
        )
        architecture = ""
    faults.raise_if_any()
    return str(architecture)


def _check_container(file: GGUFFile) -> None:
    """Upstream reads neither."""
    remedy = "Write it anew with quantize_model, or phiggml quantize."
    if file.byte_order == "big":
        raise UnsupportedError(f"load: {file.path}: its numbers are big-endian. {remedy}")
    if file.version < 2:
        raise UnsupportedError(f"load: {file.path}: it is GGUF version {file.version}. {remedy}")


def _check_parts(file: GGUFFile, faults: ModelFaults) -> None:
    """Upstream asserts the type of split.no in all parts but the first."""
    parts = file._open_parts()
    for part in parts if len(parts) > 1 else ():
        if part.core.value_type("split.no") != "UINT16":
            faults.add("split.no", f"must be UINT16 in {part.name}", "Split the model anew.")


def _check_embedding(file: GGUFFile, n_vocab: int | None, faults: ModelFaults) -> None:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or n_vocab is None or len(embedding.shape) != 2:
        return
    if embedding.shape[0] < n_vocab:
        faults.add(
            embedding.name, f"has {embedding.shape[0]} rows for a vocabulary of {n_vocab} tokens"
        )
