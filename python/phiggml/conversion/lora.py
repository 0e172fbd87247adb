"""LoRA adapters of PEFT become GGUF files that llama.cpp applies to a model."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from phiggml import _core
from phiggml.conversion.hub import LocalFolder, Wanted, local_folder
from phiggml.conversion.lora_match import PlannedPair
from phiggml.conversion.lora_plan import LoraPlan, Matrix, plan_lora
from phiggml.errors import InputError
from phiggml.gguf import GGUFWriter
from phiggml.progress import Progress
from phiggml.quant import QuantType, quantize
from phiggml.quantization import file_size
from phiggml.recipe import Plan, PlannedTensor
from phiggml.report import Report

__all__ = ["LoraPlan", "LoraReport", "convert_lora", "plan_lora"]

_TYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True, kw_only=True)
class LoraReport(Report):
    """What a conversion of an adapter wrote (or would write: then str() shows the plan as well).

    Attributes:
        lora: what each pair of matrices is made of, and notes on what was left out.
    """

    lora: LoraPlan

    @property
    def notes(self) -> tuple[str, ...]:
        """What the conversion left out, in sentences."""
        return (*self.lora.notes, *self.plan.notes)

    def __str__(self) -> str:
        if not self.written:
            return f"{self.lora}\n\n{super().__str__()}"
        return "\n".join([*self.lora.notes, super().__str__()])


def convert_lora(
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    type: str = "F16",
    *,
    base: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], object] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> LoraReport:
    """Converts a LoRA adapter that PEFT saved to a GGUF file for `--lora` of llama.cpp.

    Args:
        adapter: a folder with adapter_config.json and adapter_model.safetensors, or its id on the
            Hugging Face hub. Pickled weights are refused.
        out: the file to write; it appears there only when it is complete.
        type: "F32", "F16" or "BF16", any case.
        base: a folder with the config.json of the model that the adapter belongs to, or its id on
            the hub; weights are not needed. None takes the folder that adapter_config.json names.
        progress: called with a `Progress` after each tensor; what it raises ends the work.
        overwrite: whether an existing file may be replaced.
        dry_run: plan and report, but write nothing.

    Returns:
        LoraReport; str() of it is a table, in a dry run with the plan in front.

    Raises:
        FileNotFoundError: there is no such folder, nor such a model on the hub.
        FileExistsError: `out` exists and overwrite is False.
        FormatError: the adapter breaks its format, does not fit its base, or holds NaN or infinity.
        InputError: an unknown or too narrow type; no base is known; `out` is a file of the adapter.
        UnsupportedError: it is no plain LoRA (but DoRA, trained biases, modules or tokens, ...), it
            changes a weight that embedding and output share, or its base is not converted here.

    Cost:
        Reads each matrix once; a few copies of one pair at a time.

    Source:
        Names and shapes as llama.cpp's convert_lora_to_gguf.py writes them. A module's change is
        lora_alpha / r * B @ A, or lora_alpha / sqrt(r) * B @ A with use_rslora, as in PEFT; the
        file has one alpha, and B is multiplied where ranks, patterns or experts need another.

    Example:
        >>> import phiggml as pg
        >>> report = pg.convert_lora("phi2-adapter", "phi2-adapter.gguf", base="phi2")
        >>> report.tensors[0].name
        'token_embd.weight.lora_a'
    """
    started = time.perf_counter()
    canonical = _checked_type(type)
    path = Path(out)
    with ExitStack() as stack:
        plan = _located_plan(adapter, base, stack)
        stack.callback(plan.weights.close)
        _refuse_own_source(plan, path)
        recipe = _recipe(plan, canonical)
        nbytes = file_size(plan.metadata, recipe)
        if not dry_run:
            _write(plan, recipe, path, progress=progress, overwrite=overwrite)
    return LoraReport(path, recipe, nbytes, time.perf_counter() - started, not dry_run, lora=plan)


def _checked_type(type: str) -> str:
    canonical = type.upper() if isinstance(type, str) else ""
    if canonical not in _TYPES:
        raise InputError(
            f"convert-lora: type {type!r}: an adapter is stored as one of {', '.join(_TYPES)}."
        )
    return canonical


def _located_plan(
    adapter: str | os.PathLike[str], base: str | os.PathLike[str] | None, stack: ExitStack
) -> LoraPlan:
    """Plans from folders, or from what ids of the hub stand for."""

    def located(name: str | os.PathLike[str], wanted: Wanted) -> LocalFolder:
        return stack.enter_context(local_folder(name, operation="convert-lora", wanted=wanted))

    folder = located(adapter, Wanted.ADAPTER)
    base_folder = None if base is None else located(base, Wanted.CONFIG).path
    return plan_lora(folder.path, base=base_folder, model_id=folder.model_id)


def _refuse_own_source(plan: LoraPlan, out: Path) -> None:
    """Renaming the result over its source would destroy the adapter, or its base."""
    sources = (plan.weights.path, plan.folder / "adapter_config.json", plan.base / "config.json")
    if out.exists() and any(out.samefile(source) for source in sources):
        raise InputError(
            f"convert-lora: {out}: is the adapter itself, or its base. Write to another name."
        )


def _recipe(plan: LoraPlan, type: str) -> Plan:
    tensors = []
    for pair in plan.pairs:
        for name, shape in _tensors(pair):
            stored = next(part.module.a.dtype for part in pair.parts if part is not None)
            # What the model keeps as F32 decides between near ties: the router's scores.
            chosen = "F32" if pair.float32 else type
            tensors.append(
                PlannedTensor(
                    name,
                    shape,
                    stored,
                    chosen,
                    math.prod(shape) * QuantType(stored).block_bytes,
                    math.prod(shape) * QuantType(chosen).block_bytes,
                )
            )
    types = dict(_core.recipe.model_types())
    return Plan(type, types[type], tuple(tensors))


def _tensors(pair: PlannedPair) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return (
        (f"{pair.target}.lora_a", pair.a_shape),
        (f"{pair.target}.lora_b", pair.b_shape),
    )


def _write(
    plan: LoraPlan,
    recipe: Plan,
    path: Path,
    *,
    progress: Callable[[Progress], object] | None,
    overwrite: bool,
) -> None:
    types = {tensor.name: tensor.type for tensor in recipe.tensors}
    done = 0
    with GGUFWriter(path, overwrite=overwrite) as writer:
        for key, value in plan.metadata.items():
            writer.metadata[key] = value
        for tensor in recipe.tensors:
            writer.add_tensor_stream(tensor.name, tensor.shape, tensor.type)
        for pair in plan.pairs:
            for (name, _), matrix in zip(_tensors(pair), plan.read(pair), strict=True):
                done += _write_matrix(writer, name, matrix, types[name])
                if progress is not None:
                    progress(Progress("convert", done, recipe.nbytes))


def _write_matrix(writer: GGUFWriter, name: str, matrix: Matrix, type: str) -> int:
    try:
        data = quantize(matrix, type).data
    except InputError as error:
        raise InputError(f"convert-lora: {name}: {error}") from error
    writer.write_rows(data)
    return data.nbytes
