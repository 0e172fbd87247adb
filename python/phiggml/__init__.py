"""Quantize, convert and run Microsoft's Phi models, and other GGUF models, from Python."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

try:
    # Where it is absent, Python takes the folder of its stubs for a package.
    if importlib.import_module("phiggml._core").__file__ is None:
        raise ImportError("there is none for this Python")
except ImportError as failure:
    if str(failure).startswith("import: "):  # its own sentence
        raise
    raise ImportError(
        f"import: {__path__[0]}: the compiled half of phiggml does not load: {failure}. "
        "Reinstall phiggml; from source, if wheels do not run here.",
        name=failure.name,
        path=failure.path,
    ) from failure

from phiggml.errors import (
    DeviceError,
    FormatError,
    InputError,
    PhiggmlError,
    SessionError,
    UnsupportedError,
)
from phiggml.quant import (
    QuantizationError,
    QuantizedArray,
    QuantType,
    dequantize,
    quant_types,
    quantization_error,
    quantize,
)
from phiggml.runtime import Device, devices

if TYPE_CHECKING:
    from phiggml.adapter import ControlVector, LoraAdapter
    from phiggml.chat import render_chat
    from phiggml.chat_tools import ToolCall
    from phiggml.comparison import TypeComparison, compare_types
    from phiggml.completion import Chunk, Completion, Timings, TokenLogprobs
    from phiggml.conversion import ConversionReport, convert
    from phiggml.conversion.export import ExportReport, export_checkpoint
    from phiggml.conversion.lora import LoraReport, convert_lora
    from phiggml.embedding import get_cmake_dir, get_include, get_library_dir
    from phiggml.gguf import GGUFFile, GGUFTensor, GGUFWriter
    from phiggml.gguf_diff import GGUFDiff, diff_gguf
    from phiggml.gguf_edit import GGUFEdit, edit_gguf
    from phiggml.gguf_extract import extract_tensor
    from phiggml.gguf_hash import GGUFHash, hash_gguf
    from phiggml.gguf_split import merge_gguf, split_gguf
    from phiggml.gguf_value import GGUFValue
    from phiggml.gguf_verify import GGUFVerification, verify_gguf
    from phiggml.grammar import Grammar
    from phiggml.imatrix import Imatrix, read_imatrix
    from phiggml.model import Model
    from phiggml.placement import DevicePlacement, Placement, SessionSettings, plan_placement
    from phiggml.progress import Progress
    from phiggml.prompt_lookup import PromptLookup
    from phiggml.quantization import QuantizeOptions, Report, quantize_model
    from phiggml.recipe import Recipe, model_types
    from phiggml.sampling import Sampling
    from phiggml.session import Score, Session
    from phiggml.speculation import Draft
    from phiggml.speed import Speed, benchmark_model

__version__ = "0.1.0"

# Names that are imported on first use: who quantizes an array need not wait for the rest.
_HOMES = {
    "Chunk": "completion",
    "Completion": "completion",
    "ControlVector": "adapter",
    "ConversionReport": "conversion",
    "DevicePlacement": "placement",
    "Draft": "speculation",
    "ExportReport": "conversion.export",
    "GGUFDiff": "gguf_diff",
    "GGUFEdit": "gguf_edit",
    "GGUFFile": "gguf",
    "GGUFHash": "gguf_hash",
    "GGUFTensor": "gguf",
    "GGUFValue": "gguf_value",
    "GGUFVerification": "gguf_verify",
    "GGUFWriter": "gguf",
    "Grammar": "grammar",
    "Imatrix": "imatrix",
    "LoraAdapter": "adapter",
    "LoraReport": "conversion.lora",
    "Model": "model",
    "Placement": "placement",
    "Progress": "progress",
    "QuantizeOptions": "quantization",
    "PromptLookup": "prompt_lookup",
    "Recipe": "recipe",
    "Report": "quantization",
    "Sampling": "sampling",
    "Score": "session",
    "Session": "session",
    "SessionSettings": "placement",
    "Speed": "speed",
    "Timings": "completion",
    "TokenLogprobs": "completion",
    "ToolCall": "chat_tools",
    "TypeComparison": "comparison",
    "benchmark_model": "speed",
    "compare_types": "comparison",
    "convert": "conversion",
    "convert_lora": "conversion.lora",
    "diff_gguf": "gguf_diff",
    "edit_gguf": "gguf_edit",
    "export_checkpoint": "conversion.export",
    "extract_tensor": "gguf_extract",
    "get_cmake_dir": "embedding",
    "get_include": "embedding",
    "get_library_dir": "embedding",
    "hash_gguf": "gguf_hash",
    "merge_gguf": "gguf_split",
    "model_types": "recipe",
    "plan_placement": "placement",
    "quantize_model": "quantization",
    "read_imatrix": "imatrix",
    "render_chat": "chat",
    "split_gguf": "gguf_split",
    "verify_gguf": "gguf_verify",
}

__all__ = [
    "Chunk",
    "Completion",
    "ControlVector",
    "ConversionReport",
    "Device",
    "DeviceError",
    "DevicePlacement",
    "Draft",
    "ExportReport",
    "FormatError",
    "GGUFDiff",
    "GGUFEdit",
    "GGUFFile",
    "GGUFHash",
    "GGUFTensor",
    "GGUFValue",
    "GGUFVerification",
    "GGUFWriter",
    "Grammar",
    "Imatrix",
    "InputError",
    "LoraAdapter",
    "LoraReport",
    "Model",
    "PhiggmlError",
    "Placement",
    "Progress",
    "PromptLookup",
    "QuantType",
    "QuantizationError",
    "QuantizeOptions",
    "QuantizedArray",
    "Recipe",
    "Report",
    "Sampling",
    "Score",
    "Session",
    "SessionError",
    "SessionSettings",
    "Speed",
    "Timings",
    "TokenLogprobs",
    "ToolCall",
    "TypeComparison",
    "UnsupportedError",
    "benchmark_model",
    "compare_types",
    "convert",
    "convert_lora",
    "dequantize",
    "devices",
    "diff_gguf",
    "edit_gguf",
    "export_checkpoint",
    "extract_tensor",
    "get_cmake_dir",
    "get_include",
    "get_library_dir",
    "hash_gguf",
    "merge_gguf",
    "model_types",
    "plan_placement",
    "quant_types",
    "quantization_error",
    "quantize",
    "quantize_model",
    "read_imatrix",
    "render_chat",
    "split_gguf",
    "verify_gguf",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'phiggml' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"phiggml.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
