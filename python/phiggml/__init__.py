"""Quantize, convert and run Microsoft's Phi models, and any GGUF, from Python."""

from __future__ import annotations

from phiggml.chat import render_chat
from phiggml.completion import Chunk, Completion, Timings
from phiggml.conversion import convert
from phiggml.errors import (
    DeviceError,
    FormatError,
    InputError,
    PhiggmlError,
    SessionError,
    UnsupportedError,
)
from phiggml.gguf import GGUFFile, GGUFTensor, GGUFWriter
from phiggml.model import Model
from phiggml.progress import Progress
from phiggml.quant import (
    QuantizationError,
    QuantizedArray,
    QuantType,
    dequantize,
    quant_types,
    quantization_error,
    quantize,
)
from phiggml.quantization import QuantizeOptions, Report, quantize_model
from phiggml.recipe import model_types
from phiggml.runtime import Device, devices
from phiggml.sampling import Sampling
from phiggml.session import Session

__version__ = "0.1.0"

__all__ = [
    "Chunk",
    "Completion",
    "Device",
    "DeviceError",
    "FormatError",
    "GGUFFile",
    "GGUFTensor",
    "GGUFWriter",
    "InputError",
    "Model",
    "PhiggmlError",
    "Progress",
    "QuantType",
    "QuantizationError",
    "QuantizeOptions",
    "QuantizedArray",
    "Report",
    "Sampling",
    "Session",
    "SessionError",
    "Timings",
    "UnsupportedError",
    "convert",
    "dequantize",
    "devices",
    "model_types",
    "quant_types",
    "quantization_error",
    "quantize",
    "quantize_model",
    "render_chat",
]
