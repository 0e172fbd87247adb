"""Which architectures are converted, and which one a checkpoint's config.json names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from phiggml.conversion.architecture import Architecture
from phiggml.conversion.fields import is_text, shown
from phiggml.conversion.multimodal import PHI3_VISION, PHI4_MULTIMODAL, PHI4_VISION
from phiggml.conversion.phi2 import PHI2
from phiggml.conversion.phi3 import PHI3
from phiggml.conversion.phimoe import PHIMOE
from phiggml.errors import FormatError, UnsupportedError

__all__ = ["ARCHITECTURES", "architecture_of"]

# The first of several that share a GGUF architecture is the one that exports.
ARCHITECTURES = (PHI3, PHI2, PHIMOE, PHI3_VISION, PHI4_MULTIMODAL, PHI4_VISION)

_CLASS_ENDS = ("ForCausalLM", "ForCausalLMV")
# Class names and model types of the family for which there is no graph.
_WITHOUT_GRAPH: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            ("Phi3SmallForCausalLM", "phi3small"), "Phi-3-small, whose attention is block-sparse"
        ),
        **dict.fromkeys(
            ("Phi4FlashForCausalLM", "phi4flash"),
            "Phi-4-mini-flash, most of whose layers are state-space models",
        ),
    }
)
# What phi-1, phi-1.5 and phi-2 were called before they came to transformers.
_OLD_LAYOUTS = frozenset({"MixFormerSequentialForCausalLM", "mixformer-sequential", "phi-msft"})


def architecture_of(config: Mapping[str, Any], path: Path) -> Architecture:
    """The architecture that config.json names: by class, or else by model type.

    Raises:
        FormatError: it names none.
        UnsupportedError: it names one that is not converted.
    """
    names = config.get("architectures") or []
    model_type = config.get("model_type")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FormatError(
            f"convert: {path}: architectures must be a list of class names.", path=str(path)
        )
    known = ", ".join(
        name for a in ARCHITECTURES for name in (a.name, *a.aliases) if name.endswith(_CLASS_ENDS)
    )
    name = names[0] if names else model_type
    if not isinstance(name, str):
        raise FormatError(
            f"convert: {path}: names neither architectures nor model_type. Known are: {known}.",
            path=str(path),
        )
    if not _OLD_LAYOUTS.isdisjoint({name, model_type if is_text(model_type) else ""}):
        raise UnsupportedError(
            f"convert: {path}: this is the layout of Phi's first releases (2023), whose fields and "
            "tensors have other names. Fetch the checkpoint's present revision."
        )
    for architecture in ARCHITECTURES:
        if name in (architecture.name, architecture.model_type, *architecture.aliases):
            return architecture
    if name in _WITHOUT_GRAPH:
        raise UnsupportedError(
            f"convert: {path}: architecture {name!r} is {_WITHOUT_GRAPH[name]}: "
            f"there is no graph for it. These can be converted: {known}."
        )
    raise UnsupportedError(
        f"convert: {path}: architecture {shown(name)} is unknown. Known are: {known}."
    )
