"""GGUF models become checkpoints of Hugging Face, dequantized."""

from __future__ import annotations

import errno
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phiggml import _core
from phiggml.atomic_file import AtomicFile, publish_together, require_writable_name
from phiggml.conversion.export_plan import ExportedTensor, ExportPlan, header_of, plan_export
from phiggml.errors import InputError
from phiggml.progress import Progress
from phiggml.quant import QuantType
from phiggml.runtime import thread_count
from phiggml.source import SourceModel, SourceTensor, gguf_source

__all__ = ["ExportReport", "export_checkpoint"]

# What the rows of one piece take on their way: as they are, as float32, and as they become.
_PIECE_BYTES = 32 << 20
_TEMPORARY = re.compile(r"\.phiggml-.*\.tmp")
# Files of a checkpoint that this one replaces or, where it has none of the name, takes away.
_REPLACED = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|tokenizer\.model"
    r"|(added_tokens|config|generation_config|special_tokens_map|tokenizer|tokenizer_config)\.json|README\.md"
)
# Readers would prefer what these say to what is exported.
_FOREIGN = (
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
)


@dataclass(frozen=True)
class ExportReport:
    """What was exported (or would be, in a dry run). str() is a table.

    The files are those of a release: model.safetensors (or shards and their index), config.json,
    generation_config.json, tokenizer.model, tokenizer.json, tokenizer_config.json,
    added_tokens.json, special_tokens_map.json, and a README.md with names, licence and tags.

    GGUF does not keep dropout rates and initializer_range, whether generation samples, the flags
    lstrip, normalized and single_word of added tokens (rstrip goes by the model's name, as in
    llama.cpp), code and documents: readers' defaults stand in. What GGUF has and a checkpoint has
    no words for is listed in `notes`. Converting the checkpoint again gives the GGUF file that
    `convert` made, byte for byte, if its weights were not quantized: in a folder of any name.

    Attributes:
        path: the folder.
        plan: tensor by tensor and file by file.
        seconds: how long it took.
        written: False in a dry run.
    """

    path: Path
    plan: ExportPlan
    seconds: float
    written: bool = True

    @property
    def tensors(self) -> tuple[ExportedTensor, ...]:
        """One row for each tensor: name, shape, dtype, file, and what it was in the GGUF file."""
        return self.plan.tensors

    @property
    def files(self) -> dict[str, int]:
        """Every file and its size in bytes."""
        return self.plan.files

    @property
    def nbytes(self) -> int:
        """The size of all files, in bytes."""
        return sum(self.files.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out or decided, as sentences."""
        return self.plan.notes

    def __str__(self) -> str:
        done = f"written in {self.seconds:.1f} s" if self.written else "a dry run, nothing written"
        return f"{self.plan}\n{os.fspath(self.path)}: {self.nbytes:,} bytes, {done}"


def export_checkpoint(
    src: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    threads: int | None = None,
    progress: Callable[[Progress], object] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> ExportReport:
    """Exports a GGUF model as a Hugging Face checkpoint: safetensors, config and tokenizer.

    Args:
        src: a GGUF file of architecture phi3 with a sentencepiece tokenizer, or any part of one.
        folder: where to; made if absent. Its files and what GGUF does not keep: see ExportReport.
        dtype: "BF16", "F16" or "F32", of the weights; None means BF16, unless all weights of the
            file are F32 or F16. Norms that the dtype would round stay F32.
        max_shard_bytes: weights beyond this many bytes go into several files.
        threads: how many to use; None means all cores available to the process.
        progress: called with a `Progress` after each piece; what it raises ends the work.
        overwrite: whether the files of a checkpoint in the folder may be replaced or, where this
            one has none of the name, removed; other files stay.
        dry_run: plan and report the exact sizes, but write nothing.

    Returns:
        ExportReport; str() of it is a table.

    Raises:
        FileExistsError: the folder is not empty and overwrite is False.
        FormatError: metadata, vocabulary or tensors are no model's; all faults together.
        InputError: weights not finite or beyond the dtype, or a folder that holds the source.
        UnsupportedError: the architecture or the tokenizer is not exported here.

    Cost:
        Memory is bounded, whatever the size of tensors; the GIL is released while numbers are
        converted. Ctrl-C leaves nothing; config.json comes last: who sees it sees a whole model.

    Source:
        Files as transformers' Phi3ForCausalLM and LlamaTokenizer read them; nearest-even rounding.

    Example:
        >>> import phiggml as pg
        >>> report = pg.export_checkpoint("phi3-nano.gguf", "exported")
        >>> report.plan.dtype, len(report.tensors)
        ('F16', 27)
    """
    started = time.perf_counter()
    target = Path(folder)
    n_threads = thread_count(threads, "export")
    with ExitStack() as files:
        source = gguf_source(src, files)
        plan = plan_export(source, dtype=dtype, max_shard_bytes=max_shard_bytes)
        if not dry_run:
            _require_folder(target, source, overwrite=overwrite)
            writer = _Writer(plan, source, n_threads, progress=progress)
            writer.write(target, overwrite=overwrite)
    return ExportReport(target, plan, time.perf_counter() - started, written=not dry_run)


def _require_folder(folder: Path, source: SourceModel, *, overwrite: bool) -> None:
    """Checks, before any work, that the checkpoint may be written there."""
    if not folder.exists():
        if not folder.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder.parent))
        return
    # A file in its place raises NotADirectoryError.
    found = [path for path in sorted(folder.iterdir()) if not _TEMPORARY.fullmatch(path.name)]
    if found and not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
    for path in found:
        if path.name in _FOREIGN:
            raise InputError(
                f"export: {path}: would be read in place of what is exported. "
                "Remove it, or choose another folder."
            )
        if not _REPLACED.fullmatch(path.name):
            continue
        read = [read for read in source.paths if read.exists()]
        if path.exists() and any(map(path.samefile, read)):
            raise InputError(f"export: {path}: is the source itself. Choose another folder.")
        require_writable_name(path, overwrite=True)


class _Writer:
    """Carries rows from the source to the files of weights, a bounded number at a time."""

    def __init__(
        self,
        plan: ExportPlan,
        source: SourceModel,
        threads: int,
        *,
        progress: Callable[[Progress], object] | None,
    ) -> None:
        self._plan = plan
        self._tensors = {tensor.name: tensor for tensor in source.tensors}
        self._threads = threads
        self._progress = progress
        self._done = 0
        self._total = sum(tensor.nbytes for tensor in plan.tensors)

    def write(self, folder: Path, *, overwrite: bool) -> None:
        """Writes all files under temporary names and then gives them their own."""
        with ExitStack() as undo:
            if not folder.exists():
                folder.mkdir()
                undo.callback(_remove_if_empty, folder)
            written: list[tuple[AtomicFile, Path]] = []
            self._advance(0)
            for name, tensors in self._plan.shards.items():
                file = _begun(folder, undo)
                written.append((file, folder / name))
                file.write(header_of(tensors))
                for tensor in tensors:
                    self._tensor(tensor, file)
            for name, data in self._plan.documents.items():
                file = _begun(folder, undo)
                written.append((file, folder / name))
                file.write(data)
            if overwrite:
                _remove_old(folder, written)
            # config.json is the last of them, and publish_together names its first one last.
            publish_together(written[::-1], overwrite=overwrite)
            undo.pop_all()

    def _advance(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(Progress("export", self._done, self._total))

    def _tensor(self, planned: ExportedTensor, file: AtomicFile) -> None:
        source = self._tensors[planned.source]
        for start, stop in _pieces(planned):
            try:
                rows = self._convert(source, planned, start, stop)
            except InputError as error:
                raise InputError(f"export: {planned.source}: {error}") from error
            file.write(rows)
            self._advance(rows.nbytes)

    def _convert(
        self, source: SourceTensor, planned: ExportedTensor, start: int, stop: int
    ) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
        """Rows in the planned dtype: uint8[stop - start, row_bytes], rounded to nearest even."""
        n = planned.shape[-1]
        numbers = np.empty((stop - start, n), np.float32)
        rows = source.read(start, stop)
        _core.quant.dequantize_rows(rows, QuantType(source.type).id, n, numbers, self._threads)
        row_bytes = planned.nbytes // math.prod(planned.shape[:-1])
        out = np.empty((stop - start, row_bytes), np.uint8)
        _core.quant.quantize_rows(
            numbers, QuantType(planned.dtype).id, out, None, self._threads, False
        )
        return out


def _begun(folder: Path, undo: ExitStack) -> AtomicFile:
    file = AtomicFile(folder)
    undo.callback(file.discard)
    return file


def _pieces(planned: ExportedTensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows."""
    rows = math.prod(planned.shape[:-1])
    # No type takes more than four bytes a number, before or after.
    step = max(1, _PIECE_BYTES // (12 * planned.shape[-1]))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _remove_old(folder: Path, written: list[tuple[AtomicFile, Path]]) -> None:
    """Removes what the new checkpoint has no file for; from here on the old one is none."""
    for file, _ in written:
        # Nothing is removed before the disk has everything.
        file.sync()
    (folder / "config.json").unlink(missing_ok=True)
    new = {path.name for _, path in written}
    for path in list(folder.iterdir()):
        if _REPLACED.fullmatch(path.name) and path.name not in new:
            path.unlink()


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
