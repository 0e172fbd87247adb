"""What `phiggml doctor` computes: arrays, products and the demo model, on CPU and devices."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

import phiggml as pg
from phiggml.cli_demo import demo_checkpoint

__all__ = ["CheckError", "check_arrays", "check_device", "check_model", "check_products"]

# Long enough for BLAS to take part, which leaves few tokens to the CPU module.
_PROMPT = 4 * "What is a quantized model, and what is it for? "
_ALL_LAYERS = 99
# Where the bounds lie: half again of what 8 and 4.5 bits give.
_ROUNDING = (("Q8_0", 0.009), ("Q4_K", 0.12))
# Building those takes seconds.
_WITH_TABLES = ("IQ1", "IQ2", "IQ3")
# A product's other side has 8 bits, too, and may add up in half precision.
_PRODUCTS = 0.02
# Of logits, on a device and on the CPU: the same weights, and activations of fewer bits on some.
_SAME_LOGITS = 0.15


class CheckError(Exception):
    """A check that did not pass, and why."""


def check_arrays() -> str:
    """Whether numbers come back from blocks as near as the type's bits allow."""
    x = np.random.default_rng(0).standard_normal((64, 512), dtype=np.float32)
    errors = {}
    for type, bound in _ROUNDING:
        errors[type] = _relative_error(pg.quantize(x, type).dequantize(), x)
        if not errors[type] <= bound:
            raise CheckError(
                f"{type} gives a relative error of {errors[type]:.4f}, not <= {bound}."
            )
    return ", ".join(f"{type} relative error {error:.4f}" for type, error in errors.items())


def check_products() -> str:
    """Products of the CPU module against numpy's, of all types that need no big tables."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((32, 512), dtype=np.float32)
    y = rng.standard_normal((512, 8), dtype=np.float32)
    worst, types = 0.0, [t for t in pg.quant_types() if not t.startswith(_WITH_TABLES)]
    for type in types:
        q = pg.quantize(x, type)
        error = _relative_error(q @ y, q.dequantize() @ y)
        if not error <= _PRODUCTS:
            raise CheckError(f"products of {type} differ from numpy's by {error:.3f}.")
        worst = max(worst, error)
    return f"{len(types)} types; they differ from numpy's by {worst:.4f} at most, relatively"


def check_model() -> str:
    """A quantized model against the same one in float32."""
    logits = {type: _logits(type, None) for type in ("F32", "Q4_K_M")}
    error = _relative_error(logits["Q4_K_M"], logits["F32"])
    # NaN is no number below the bound either.
    if not error <= 0.5:
        raise CheckError(f"Q4_K_M logits differ from F32 by {error:.3f}, relatively.")
    return f"Q4_K_M logits differ from F32 by {error:.3f}, relatively"


def check_device(name: str, model_types: Sequence[str] = ("Q4_K_M",)) -> str:
    """Quantized models on a device, all layers, against the same on the CPU; and what it takes."""
    errors = {}
    for type in model_types:
        errors[type] = _relative_error(_logits(type, name), _logits(type, None))
        if not errors[type] <= _SAME_LOGITS:
            raise CheckError(
                f"its logits of a {type} model differ from the CPU's by {errors[type]:.3f}."
            )
    said = ", ".join(f"{type} by {error:.4f}" for type, error in errors.items())
    return f"logits differ from the CPU's, relatively: {said}; {_types_taken(name)}"


def _logits(type: str, device: str | None) -> npt.NDArray[np.float32]:
    """Of all layers on a device, or of the CPU without any help."""
    n_gpu_layers, devices = (0, []) if device is None else (_ALL_LAYERS, [device])
    with _folder() as folder:
        path = folder / "model.gguf"
        pg.convert(demo_checkpoint(), path, type)
        with (
            pg.Model(path, n_gpu_layers=n_gpu_layers, devices=devices) as model,
            pg.Session(model, n_ctx=128) as session,
        ):
            return session.eval(model.tokenize(_PROMPT))


def _types_taken(name: str) -> str:
    """The types of tensors that a device multiplies; llama.cpp leaves the others to the CPU."""
    left = [type for type in pg.quant_types() if type != "F32"]
    taken, refused = [], []
    while left:
        places = _placed(left, name)
        taken += [type for type, place in places.items() if place == name]
        refused += [type for type, place in places.items() if place != name]
        left = left[len(places) :]
    rest = f"; left to the CPU: {' '.join(refused)}" if refused else ""
    return f"it takes {' '.join(taken) or 'none'}{rest}"


def _placed(types: Sequence[str], name: str) -> dict[str, str]:
    """Where the matrices of a model go, each of which has one of the types, and nothing but 0."""
    with _folder() as folder:
        demo, path = folder / "demo.gguf", folder / "types.gguf"
        pg.convert(demo_checkpoint(), demo, "F16")
        names: dict[str, str] = {}
        with pg.GGUFFile(demo) as file, pg.GGUFWriter(path) as writer:
            for key in file.metadata:
                writer.metadata[key] = file.metadata.exact(key)
            for tensor in file.tensors.values():
                is_matrix = tensor.name.startswith("blk.") and len(tensor.shape) == 2
                if is_matrix and len(names) < len(types):
                    type = names[tensor.name] = types[len(names)]
                    n_bytes = tensor.shape[-1] * pg.QuantType(type).block_bytes
                    row = n_bytes // pg.QuantType(type).block_size
                    writer.add_tensor(tensor.name, np.zeros((tensor.shape[0], row), np.uint8), type)
                else:
                    writer.add_tensor(tensor.name, tensor.data, tensor.type)
        with pg.Model(path, n_gpu_layers=_ALL_LAYERS, devices=[name]) as model:
            places = model.placement
    return {type: places[tensor] for tensor, type in names.items()}


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="phiggml-doctor-") as folder:
        yield Path(folder)


def _relative_error(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
